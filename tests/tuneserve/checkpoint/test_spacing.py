"""What is between words, in prose."""

import pytest

from tuneserve.checkpoint import spacing


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("It 's the view , is n't it ? I 'm here !!", "It's the view, isn't it? I'm here!!"),
        ("RT @anna : Paris ( France ) costs $ 5 ; 10 % off ...", "RT @anna: Paris (France) costs $5; 10% off..."),
        ('He said " no way " , then " yes " .', 'He said "no way", then "yes".'),
        ("`` No '' -LRB- he -RRB- said", '"No" (he) said'),
        ("one \" alone and the students ' rooms", "one \" alone and the students' rooms"),
        # Smileys are words, and so are dashes.
        ("nice :) and sad :( or ;-) - yes", "nice :) and sad :( or ;-) - yes"),
        ("2005 年 、 南アフリカ 共和 国 で iPhone OS を", "2005年、南アフリカ共和国でiPhone OSを"),
        ("他 在 北京 。", "他在北京。"),
        ("서울 에 , 산다", "서울 에, 산다"),
        ("go 🎉 🎉 !", "go 🎉 🎉!"),
    ],
)
def test_usual_spacing(words: str, text: str) -> None:
    found, places = spacing.joined(words.split(" "))
    assert found == text
    written = [found[start:end] for start, end in places]
    assert "".join(written) == text.replace(" ", "")
    assert len(written) == len(words.split(" "))


def test_no_words() -> None:
    assert spacing.joined([]) == ("", [])
