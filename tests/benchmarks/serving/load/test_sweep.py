"""Several runs of the command."""

import asyncio

import pytest
from click.testing import CliRunner

from tuneserve.benchmarks.serving.command import bench_command
from tuneserve.errors import StepFailed

from ..conftest import Server, bench


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        (["--connections", "1,3"], [(1, None), (3, None)]),
        (["--connections", "3", "--rate", "50,100"], [(3, 50.0), (3, 100.0)]),
        (["--connections", "1,3", "--rate", "50"], [(1, None), (3, None), (3, 50.0)]),
    ],
)
async def test_each_run_is_reported(
    served: tuple[Server, str], arguments: list[str], runs: list[tuple[int, float | None]]
) -> None:
    found = await bench(served[1], *arguments)
    assert [(one["connections"], one["rate"]) for one in found["results"]] == runs
    assert all(one["texts_per_s"] > 0 for one in found["results"])


async def test_a_run_without_answers_is_left_out(served: tuple[Server, str]) -> None:
    server, target = served
    answer = server._take

    async def take(request, context) -> None:
        # Only a run on one connection is answered.
        server.refuse = int(len(server.peers | {context.peer()}) > 1)
        await answer(request, context)

    server._take = take
    found = await bench(target, "--connections", "1,2")
    assert [one["connections"] for one in found["results"]] == [1]
    server.refuse = 1
    with pytest.raises(StepFailed, match="queue full"):
        await bench(target, "--connections", "1,2")


async def test_the_table_has_a_row_for_each_run(served: tuple[Server, str]) -> None:
    arguments = [
        "--model",
        "chat",
        "--connections",
        "4,1",
        "--rate",
        "30",
        "--goodput",
        "ttft:5000",
        "--max-tokens",
        "3",
    ]
    given = ["--target", served[1], "--seconds", "0.5", "--warmup", "0", *arguments]
    result = await asyncio.to_thread(CliRunner().invoke, bench_command, given, catch_exceptions=False)
    # The numbers of connections, closed loops first.
    rows = [line.split() for line in result.stdout.splitlines() if line.strip()[:1].isdigit() and "%" in line]
    assert [row[0] for row in rows] == ["1", "4", "4"]
    assert rows[2][1] == "30.0"
    shown = " ".join(result.stdout.split())
    for words in ("TTFT", "TPOT", "E2EL", "good", "p50 / p99", "100.0%"):
        assert words in shown
