"""Several runs of the command, and their page."""

import asyncio
import base64
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from tuneserve.benchmarks.serving.command import bench_command
from tuneserve.benchmarks.serving.load.calls import Served
from tuneserve.benchmarks.serving.load.report.page import page
from tuneserve.benchmarks.serving.load.result import Result
from tuneserve.benchmarks.serving.load.tally import PERCENTILES
from tuneserve.errors import StepFailed

from ..conftest import Server, settings


async def bench(target: str, *arguments: str) -> dict:
    given = ["--target", target, "--model", "sentiment", "--seconds", "0.5", "--warmup", "0", *arguments]
    result = await asyncio.to_thread(CliRunner().invoke, bench_command, given, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


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


@pytest.mark.parametrize("wrong", ["0", "1,x", "5000", ","])
def test_wrong_lists_are_named(wrong: str) -> None:
    result = CliRunner().invoke(bench_command, ["--model", "m", "--connections", wrong])
    assert result.exit_code == 2
    assert "--connections" in result.stderr


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


async def test_runs_with_the_same_connections_and_rate_are_compared(served: tuple[Server, str], tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for file, arguments in zip(files, (["1,3", "--rate", "50"], ["2,3", "--rate", "50"], ["1,2"]), strict=True):
        file.write_text(json.dumps(await bench(served[1], "--connections", *arguments)))
    result = CliRunner().invoke(bench_command, ["--compare", *map(str, files[:2])], catch_exceptions=False)
    titles = [line.strip() for line in result.stdout.splitlines() if re.match(r" *\d+ connections", line)]
    assert titles == ["3 connections", "3 connections, 50 calls a second"]
    assert result.stdout.count("e2el_ms_p99 ") == 2
    result = CliRunner().invoke(bench_command, ["--compare", str(files[0]), str(files[2])])
    assert "1 connections" in result.stdout
    file.write_text(json.dumps({"results": []}))
    result = CliRunner().invoke(bench_command, ["--compare", *map(str, files[1:])])
    assert "no runs with the same connections and rate" in str(result.exception)


def test_what_is_not_installed_is_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, page.__module__)
    monkeypatch.setitem(sys.modules, "matplotlib.ticker", None)
    result = CliRunner().invoke(bench_command, ["--model", "m", "--target", "127.0.0.1:1", "--html", "page.html"])
    assert "--html needs matplotlib.ticker" in str(result.exception)


async def test_the_page_has_the_plots_of_the_runs(served: tuple[Server, str], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    await bench(served[1], "--connections", "1,4", "--rate", "60", "--goodput", "e2el:500", "--html", str(file))
    written = file.read_text()
    assert "//" not in re.sub(r"data:[^\"]+", "", written), "it needs no network"
    for words in (
        "Latency by rate",
        "Throughput by connections",
        "texts/s on 4 connections",
        "sequence-classification",
    ):
        assert words in written
    images = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", written)
    texts = [" ".join(ElementTree.fromstring(base64.b64decode(one)).itertext()) for one in images]
    assert len(images) == 3
    for drawn, words in zip(texts, ("calls due a second", "texts/s", "connections"), strict=True):
        assert words in drawn
    assert "goal" in texts[0]


def test_a_run_that_the_client_limited_is_marked() -> None:
    def result(rate: float, cpu: float) -> Result:
        times = {f"e2el_ms_p{one:g}": 10.0 * one for one in PERCENTILES}
        figures = {"texts_per_s": rate, "calls_per_s": rate, "client_cpu": cpu} | times
        return Result(settings("x:1", "m", rate=rate), Served("t<b>", "classify"), 5, {}, {}, figures)

    assert "Hollow points" not in page([result(10, 0.1), result(20, 0.2)], None)
    marked = page([result(10, 0.1), result(20, 0.99)], 10.0)
    assert "Hollow points are not valid" in marked
    assert "busy" in marked
    assert "t&lt;b&gt;" in marked
    assert "99 of 100 good" in marked
