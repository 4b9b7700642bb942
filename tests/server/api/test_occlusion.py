import pytest

from tuneserve.server.api.occlusion import without, words
from tuneserve.server.text.redaction import Masked, Redactor


def split(text: str) -> list[str]:
    return [text[word.start : word.end] for word in words(Masked(text))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The film's well-made, isn't it?", ["The", "film's", "well-made", "isn't", "it"]),
        ("  spaces\tand\nlines  ", ["spaces", "and", "lines"]),
        ("u\u0308ber हिन्दी", ["u\u0308ber", "हिन्दी"]),
        ("東京です", ["東", "京", "で", "す"]),
        ("good 🙂👩\u200d🔬!", ["good", "🙂👩\u200d🔬"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("... !", []),
    ],
)
def test_words_of_many_scripts(text, expected):
    assert split(text) == expected


def test_a_word_goes_with_the_space_it_leaves():
    text = "a good film"
    assert [without(text, word) for word in words(Masked(text))] == ["good film", "a film", "a good "]


def test_what_was_masked_is_one_word_and_never_comes_apart():
    masked = Redactor(["phone", "email"]).mask("mail ann.b@example.com or bob now")
    text = "mail ann.b@example.com or bob now"
    found = words(masked)
    assert [text[word.start : word.end] for word in found] == ["mail", "ann.b@example.com", "or", "bob", "now"]
    variants = [without(masked.text, word) for word in found]
    assert variants[1] == "mail or bob now"
    assert not [variant for variant in variants if "@" in variant or "ann" in variant]
