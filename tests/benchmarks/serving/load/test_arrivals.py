"""When calls arrive in an open loop."""

from tuneserve.benchmarks.serving.load.open_loop import (
    open_loop,
)


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
