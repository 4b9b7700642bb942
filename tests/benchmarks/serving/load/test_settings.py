"""What a run does, and the shares of its processes."""

import pytest

from tuneserve.benchmarks.serving.load.settings import Share

from ..conftest import settings


def test_each_item_is_dealt_to_one_process() -> None:
    shares = [Share(index, 3) for index in range(3)]
    dealt = [list(share.deal(range(10))) for share in shares]
    assert dealt == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


@pytest.mark.parametrize(("chosen", "is_open"), [({}, False), ({"rate": 5.0}, True), ({"self_timed": True}, True)])
def test_calls_with_arrivals_are_an_open_loop(chosen: dict[str, object], is_open: bool) -> None:
    assert settings("x:1", "m", **chosen).is_open is is_open


def test_each_run_begins_with_a_number_of_its_own() -> None:
    numbers = {Share().number for _ in range(20)}
    assert len(numbers) > 1
    assert {len(str(number)) for number in numbers} == {8}
