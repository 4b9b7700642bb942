"""Which answers a model prefers: counted by hand, pair by pair."""

from itertools import product

import pytest

from tuneserve.checkpoint.rows import Row
from tuneserve.evaluation import preferences
from tuneserve.evaluation.preferences import Sides

TALK: Row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}]}
BAD = {"role": "assistant", "content": "bad"}


def test_both_answers_of_a_pair() -> None:
    row = TALK | {"rejected": BAD}
    assert preferences.answers(row) == [row, row | {"messages": [TALK["messages"][0], BAD]}]
    plain = {"prompt": "q", "completion": "good", "rejected": "bad"}
    assert [one["completion"] for one in preferences.answers(plain)] == ["good", "bad"]
    assert preferences.answers(TALK) == [TALK]


def test_the_sides() -> None:
    ends: list[Row] = [{"rejected": "b"}, {"label": True}, {"label": False}]
    pair, up, down = ({"prompt": "q", "completion": "a"} | end for end in ends)
    found = preferences.sides([pair, TALK])
    assert ([pair, TALK], ["b"]) == (found.good, [row["completion"] for row in found.bad])
    assert preferences.sides([up, down, down]) == Sides([up], [down, down])


# Log-likelihoods and tokens: the second pair is preferred because of its base model, and the third one in spite of it.
OWN = Sides([[-4.0, 4], [-9.0, 3], [-2.0, 1]], [[-6.0, 3], [-8.0, 4], [-8.0, 2]])
BASE = Sides([[-4.0, 4], [-9.5, 3], [-1.0, 1]], [[-6.0, 3], [-7.0, 4], [-8.0, 2]])


def test_pairs() -> None:
    found = preferences.metrics(OWN, BASE, paired=True)
    # Equal rewards, 0.5 against -1, and -1 against 0.
    assert found["reward_accuracy"] == pytest.approx(1.5 / 3)
    # -1 against -2, -3 against -2, -2 against -4 for each token.
    assert found["win_rate"] == pytest.approx(2 / 3)
    assert found["base_win_rate"] == pytest.approx(2 / 3)
    assert found["reward_accuracy_low"] < 0.5 < found["reward_accuracy_high"]
    assert preferences.metrics(OWN, None, paired=True) == {"win_rate": found["win_rate"]}


def test_single_answers_are_paired_with_all_of_the_other_kind() -> None:
    own, base = Sides(OWN.good, OWN.bad[:2]), Sides(BASE.good, BASE.bad[:2])
    rewards = preferences.rewards(own, base)
    assert rewards == Sides([0, 0.5, -1], [0, -1])
    wins = [(good > bad) + (good == bad) / 2 for good, bad in product(rewards.good, rewards.bad)]
    found = preferences.metrics(own, base, paired=False)
    assert found["reward_accuracy"] == pytest.approx(sum(wins) / 6)
    # As wide as for two pairs, which is all that the rarer answers make.
    assert found["reward_accuracy_high"] - found["reward_accuracy_low"] > 0.6
    # -1, -3 and -2 for each token, against -2 and -2.
    assert found["win_rate"] == pytest.approx(3 / 6)
