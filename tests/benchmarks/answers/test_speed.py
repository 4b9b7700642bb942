import asyncio

import pytest

from tuneserve.benchmarks.answers import speed
from tuneserve.benchmarks.claims import ratios
from tuneserve.errors import StepFailed


def search(seconds: float, *found: str) -> speed.Search:
    async def run(place: int) -> set[str]:
        await asyncio.sleep(seconds)
        return set(found)

    return run


async def test_callers_search_at_the_same_time() -> None:
    seen: list[int] = []
    running = most = 0

    async def one(place: int) -> set[str]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        seen.append(place)
        await asyncio.sleep(0.01)
        running -= 1
        return set()

    assert await speed.rate(one, 40) > 100
    assert (sorted(seen), most) == (list(range(40)), speed.CALLERS)


async def test_both_sides_are_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_IDLE_SECONDS", 0.0)
    rates = await speed.measured({"Search": search(0.004, "a"), "store": search(0.002, "a", "b")}, 16, 3)
    assert {name: len(some) for name, some in rates.items()} == {"Search": 3, "store": 3}
    [ratio] = ratios([speed.CLAIM], rates)
    assert 0.2 < ratio.interval.mean < 0.9
    drawn = speed.table([0.01] * 98 + [2.0] * 2, rates, ratio, 10)
    assert list(drawn.columns[3].cells)[:2] == ["", "not kept"]


async def test_other_findings_are_an_error() -> None:
    with pytest.raises(StepFailed, match=r"query 0: Search found \{'c'\}"):
        await speed.measured({"Search": search(0, "a", "c"), "store": search(0, "a")}, 16, 1)
