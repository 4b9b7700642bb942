import pytest

from tuneserve.evaluation.words import Rarity, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The deposits, the Deposit!", {"the", "depos"}),
        ("no. 12,500.50 by 8:30", {"no", "12,500.50", "by", "8:30"}),
        ("ABC123", {"abc", "123"}),
        ("利率是多少", {"利率", "率是", "是多", "多少"}),
        ("水。ok", {"水", "ok"}),
        ("보증금은", {"보증", "증금", "금은"}),
        ("née Größe", {"née", "gröss"}),
        ("?! …", set()),
    ],
)
def test_words_of_any_script(text, expected):
    assert words(text) == expected


def test_rare_words_tell_more():
    rarity = Rarity(map(words, ["the tenant pays", "the landlord pays", "the cat"]))
    assert rarity.of(["cat"]) > rarity.of(["pays"]) > rarity.of(["the"]) > 0
    assert rarity.of(["dog"]) == rarity.of(["cat"])
    assert rarity.of(["is"]) < rarity.of(["dog"]) < rarity.of(["house"]) == rarity.of(["7"]) == rarity.of(["利率"])
    assert rarity.of(["cat", "the"]) == rarity.of(["cat"]) + rarity.of(["the"])


def test_the_share_that_is_said():
    rarity = Rarity(map(words, ["the tenant pays", "the landlord pays"]))
    assert rarity.share(words("tenant pays"), words("tenant pays it")) == 1
    assert 0.5 < rarity.share(words("the tenant"), words("tenant")) < 1
    assert rarity.share(words("dog"), words("the tenant pays")) == 0
    assert rarity.share(frozenset(), words("the")) == 0
    assert Rarity([]).share(words("dog"), words("dog")) == 0
