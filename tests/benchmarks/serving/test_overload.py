"""Our server under overload: peak and open loop in turns, for the same time."""

import pytest

from tuneserve.benchmarks.serving import overload as overload_module
from tuneserve.benchmarks.serving.overload import overload

from .conftest import SERVICE_SECONDS, OneAtATime


async def test_overload_measures_the_peak_as_often_and_as_long(
    one_at_a_time: tuple[OneAtATime, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[tuple[str, float]] = []
    for name, place in (("closed_loop", 2), ("open_loop", 2)):
        measure = getattr(overload_module, name)

        async def noted(*given: object, _name=name, _place=place, _measure=measure, **more: object) -> object:
            parts.append((_name, given[_place]))
            return await _measure(*given, **more)

        monkeypatch.setattr(overload_module, name, noted)
    _, target = one_at_a_time
    # Only answers of the second half count: a machine that stops for that long would leave none.
    measured = await overload(target, "m", 0, batch=2, times=5, seconds=2.0, rounds=3)
    # The warm-up, and then in turns.
    order = ["closed_loop", "open_loop", "open_loop", "closed_loop", "closed_loop", "open_loop"]
    assert [name for name, _ in parts[2:]] == order
    assert {seconds for _, seconds in parts[1:]} == {2.0}
    assert len(measured.rounds) == 3
    assert len({one.result.rate for one in measured.rounds}) == 1
    assert len({one.result.seed for one in measured.rounds}) == 3
    for one in measured.rounds:
        assert 0 < one.peak <= 1 / SERVICE_SECONDS * 1.1
        assert one.result.rejected > 0
    assert len(measured.to_json()["rounds"]) == 3
    peaks = sorted(one.peak for one in measured.rounds)
    assert measured.medians()["peak_per_s"] == pytest.approx(peaks[1], abs=0.01)
