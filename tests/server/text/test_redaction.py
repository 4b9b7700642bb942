"""Personal data out of texts: what overlaps, and places in the masked text back to the caller's own."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneserve.errors import UserError
from tuneserve.server.text.recognizers import FINDERS
from tuneserve.server.text.redaction import KINDS, Redactor, check

EVERYTHING = Redactor(KINDS)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        # The surest, then the longest of what overlaps gives its name.
        ("https://user:pw@host.com/?mail=a@b.org", "[URL]"),
        ("DE89 3704 0044 0532 0130 00", "[IBAN]"),
        ("4111 1111 1111 1111", "[CARD]"),
        ("anna@example.org", "[EMAIL]"),
        ("943 476 5870", "[NATIONAL_ID]"),
        ("a@b.org, +49 30 901820, 192.168.1.1", "[EMAIL], [PHONE], [IP]"),
    ],
)
def test_overlapping_matches_become_one(text: str, masked: str):
    assert EVERYTHING.mask(text).text == masked


def test_only_the_kinds_that_were_asked_for():
    text = "a@b.org, +49 30 901820"
    assert Redactor(["phone"]).mask(text).text == "a@b.org, [PHONE]"
    assert Redactor(["phone", "email", "email"]).mask(text).text == "[EMAIL], [PHONE]"
    assert Redactor([]).mask(text).text == text


def test_places_map_back():
    text = "née a@b.org or +49 30 901820."
    masked = Redactor(["email", "phone"]).mask(text)
    assert masked.text == "née [EMAIL] or [PHONE]."

    def back(part: str) -> str:
        start = masked.text.index(part)
        return text[slice(*masked.original(start, start + len(part)))]

    assert back("née") == "née"
    assert back("[EMAIL]") == back("MAI") == back("[") == "a@b.org"
    assert back("L] or") == "a@b.org or"
    assert back("or [") == "or +49 30 901820"
    assert back(".") == "."
    assert masked.original(0, 0) == (0, 0)
    assert masked.original(len(masked.text), len(masked.text)) == (len(text), len(text))
    # Between a space and the placeholder: nothing of it.
    assert masked.original(3, 4) == (3, 4)
    assert Redactor(["email"]).mask("a@b.org").original(0, 0) == (0, 0)


PERSONAL = st.sampled_from(
    ["a@b.org", "+49 30 901820", "4111 1111 1111 1111", "DE89370400440532013000", "192.168.1.77"]
)
PLAIN = st.text(st.characters(exclude_characters="\x00", exclude_categories=("Nd", "Cs")), max_size=8).filter(
    lambda text: "@" not in text
)


@settings(deadline=None)
@given(st.lists(st.tuples(PLAIN, PERSONAL), max_size=5), PLAIN)
def test_offsets_map_back_whatever_stands_around(pairs, last):
    text, wanted = "", []
    for plain, personal in pairs:
        # Not signs alone: "#" or "x" behind a number says that the digits behind it are its extension.
        text += f"{plain} and "
        wanted.append((len(text), len(text) + len(personal)))
        text += f"{personal} and "
    text += last
    masked = Redactor(["email", "phone", "card", "iban", "ip"]).mask(text)

    position, cursor = 0, 0  # in the masked text, and in the caller's
    for start, end in wanted:
        size = start - cursor
        assert masked.text[position : position + size] == text[cursor:start]
        for index in range(size):
            assert masked.original(position + index, position + index + 1) == (cursor + index, cursor + index + 1)
        position += size
        close = masked.text.index("]", position) + 1
        for left in range(position, close):
            for right in range(left + 1, close + 1):
                assert masked.original(left, right) == (start, end)
        position, cursor = close, end
    assert masked.text[position:] == text[cursor:]
    assert masked.original(position, len(masked.text)) == (cursor, len(text))


@settings(deadline=None)
@given(st.text("aZ019@.:-+ /(ß例😀\n[]" + "é", max_size=60))
def test_any_text_is_masked_and_mapped_whole(text):
    masked = EVERYTHING.mask(text)
    assert masked.original(0, len(masked.text)) == (0, len(text))
    places = [masked.original(index, index + 1) for index in range(len(masked.text))]
    assert places == sorted(places)
    # Together they cover the caller's text: what was not cut out is there, character by character.
    assert sorted({index for start, end in places for index in range(start, end)}) == list(range(len(text)))
    for index, (start, end) in enumerate(places):
        assert start < end
        if end - start == 1 and masked.text[index] not in "[]":
            assert text[start] == masked.text[index]


def test_nothing_of_a_match_is_left():
    # 300 characters of one before an @ are more than mail allows: what mail allows goes, the address's host too.
    masked = Redactor(["email"]).mask(f"{'secret' * 50}@example.org")
    assert masked.text.endswith("[EMAIL]")
    assert "@" not in masked.text
    # Two kinds that overlap in part: both go, not only the one that wins.
    text = "http://x.de/4111 1111 1111 1111"
    assert Redactor(["url", "card"]).mask(text).text in ("[CARD]", "[URL]")


def test_threads_share_a_redactor():
    text = "a@b.org, +49 30 901820, 4111 1111 1111 1111"
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: EVERYTHING.mask(text).text, range(100))) == {"[EMAIL], [PHONE], [CARD]"}


def test_kinds_are_checked():
    check(KINDS, "models.chat.redact")
    check([], "models.chat.redact")
    with pytest.raises(UserError, match=r"models\.chat\.redact: 'name' is not allowed") as caught:
        check(["email", "name"], "models.chat.redact")
    assert caught.value.hint
    assert "national_id" in caught.value.hint
    assert tuple(FINDERS) == KINDS


def test_recognizers_are_imported_late():
    code = (
        "import sys; from tuneserve.server.text import redaction; redaction.check(['email'], 'x'); "
        "assert not {'stdnum', 'phonenumbers'} & set(sys.modules); redaction.Redactor(['email']); "
        "assert 'stdnum' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("card ４１１１ １１１１ １１１１ １１１１.", "card [CARD]."),
        ("4111\u200b1111\u00ad1111\u20601111!", "[CARD]!"),
        ("4111\u20111111\u20111111\u20111111", "[CARD]"),
        ("٤١١١ ١١١١ ١١١١ ١١١١", "[CARD]"),
        ("4\ufe0f\u20e3111 1111 1111 1111", "[CARD]"),
        ("ａｎｎａ＠ｅｘａｍｐｌｅ．ｃｏｍ、です", "[EMAIL]、です"),
        ("an\u200bna@exam\u00adple.com", "[EMAIL]"),
        ("+４９ ３０ ９０１８２０", "[PHONE]"),
        ("+49\u200b30\u2011901820", "[PHONE]"),
        ("192\u2024168.100.200", "[IP]"),
        ("ＤＥ８９ ３７０４ ００４４ ０５３２ ０１３０ ００", "[IBAN]"),
        ("见https://a.example/道，然后（再见）", "见[URL]，然后（再见）"),
    ],
)
def test_what_is_written_in_other_signs_is_found_as_it_reads(text: str, masked: str):
    assert EVERYTHING.mask(text).text == masked


def test_places_map_back_where_signs_are_read_as_others():
    text = "née ㎏\u200b4\u200b111 １１１１ 1111 1111\u200b, Ω"
    masked = Redactor(["card"]).mask(text)
    assert masked.text == "née ㎏\u200b[CARD]\u200b, Ω"
    start = masked.text.index("[")
    assert text[slice(*masked.original(start, start + 6))] == "4\u200b111 １１１１ 1111 1111"
    assert text[slice(*masked.original(start + 7, len(masked.text)))] == text[-3:]


@settings(deadline=None)
@given(st.text("aZ01@.:-+（４\u200b\u00ad\u2011٣㎏ﷺé例", max_size=40))
def test_any_signs_are_masked_and_mapped_whole(text):
    masked = EVERYTHING.mask(text)
    assert masked.original(0, len(masked.text)) == (0, len(text))
    places = [masked.original(index, index + 1) for index in range(len(masked.text))]
    assert places == sorted(places)
    assert sorted({index for start, end in places for index in range(start, end)}) == list(range(len(text)))
