"""When calls arrive in an open loop."""

import time
from itertools import pairwise

import numpy as np
import pytest

from tuneserve.benchmarks.serving.load.arrivals import arrivals, gamma
from tuneserve.benchmarks.serving.load.open_loop import open_loop


async def test_arrivals_are_a_poisson_process_of_the_seed() -> None:
    async def sent(seed: int) -> tuple[int, list[int]]:
        numbers: list[int] = []

        async def call(number: int) -> float | None:
            numbers.append(number)
            return None

        result = await open_loop(call, rate=400, seconds=0.5, seed=seed)
        assert result.errors == {}
        assert result.figures["wait_ms_p50"] is None
        assert result.recovery_seconds is None
        return result.sent, numbers

    first, numbers = await sent(1)
    assert numbers == list(range(first))
    assert (await sent(1))[0] == first
    assert len({(await sent(seed))[0] for seed in range(2, 8)}) > 1
    # Five standard deviations around 200.
    assert 130 < first < 270


@pytest.mark.parametrize("burstiness", [0.2, 1.0, 25.0])
def test_gaps_have_a_gamma_distribution(burstiness: float) -> None:
    gaps = np.diff([0.0, *gamma(50.0, 400.0, seed=7, burstiness=burstiness)])
    assert np.mean(gaps) == pytest.approx(1 / 50, rel=0.05)
    # A gamma distribution's coefficient of variation is 1 / sqrt(shape).
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(burstiness**-0.5, rel=0.05)


def test_a_seed_has_its_own_arrivals() -> None:
    first, again, other = (list(gamma(20.0, 5.0, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert all(before < after for before, after in pairwise([0.0, *first, 5.0]))


async def test_calls_are_due_whether_or_not_the_client_is_late() -> None:
    begin = time.perf_counter()
    times = [0.01, 0.02, 0.2]
    seen = []
    async for due in arrivals(times, begin):
        assert time.perf_counter() >= due
        seen.append(due - begin)
        time.sleep(0.05)  # noqa: ASYNC251 - a busy client
    assert seen == pytest.approx(times)
