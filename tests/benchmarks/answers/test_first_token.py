import pytest

from tuneserve.benchmarks.answers import first_token
from tuneserve.benchmarks.claims import ratios


class Steady(first_token.Sides):
    """Answers in a known time, of which some is neither search nor generation."""

    def __init__(self, more: float) -> None:
        self.more = more
        self.asked: list[str] = []

    def search(self, question: str) -> float:
        self.asked.append(f"search {question}")
        return 0.01

    def generate(self, question: str) -> float:
        self.asked.append(f"generate {question}")
        return 0.03

    def answer(self, question: str) -> float:
        self.asked.append(f"answer {question}")
        return 0.04 + self.more


@pytest.mark.parametrize(("more", "verdict"), [(0.018, "kept"), (0.022, "not kept")])
def test_what_an_answer_adds_is_promised(more: float, verdict: str) -> None:
    sides = Steady(more)
    means = first_token.measured(sides, ["a", "b"], 15)
    assert {len(some) for some in means.values()} == {15}
    [ratio] = ratios([first_token.CLAIM], means)
    assert ratio.verdict == verdict
    assert list(first_token.table(means, ratio).columns[3].cells)[-1] == verdict
    assert sides.asked[:6] == ["answer a", "generate a", "search a", "answer b", "generate b", "search b"]
    assert sides.asked[6:9] == ["search a", "generate a", "answer a"]
