"""Two runs beside each other."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from tuneserve.benchmarks.serving.command import bench_command
from tuneserve.benchmarks.serving.load.bench import measure

from ...conftest import Server, bench, settings


async def test_two_runs_are_compared(served: tuple[Server, str], tmp_path: Path) -> None:
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file, connections, delay in zip(files, (2, 4), (0.04, 0.01), strict=True):
        served[0].delay = delay
        result = await measure(settings(served[1], "sentiment", connections=connections))
        file.write_text(f"a table\n{json.dumps(result.to_json())}\n")
    result = CliRunner().invoke(bench_command, ["--compare", *map(str, files)], catch_exceptions=False)
    assert "connections: 2 and 4" in result.stdout.replace("\n", " ")
    rows = {line.split("│")[1].strip(): line.split("│")[2:5] for line in result.stdout.splitlines() if "│" in line}
    before, after, ratio = (float(one.replace(",", "")) for one in rows["e2el_ms_p50"])
    assert 10 <= after < before
    assert ratio == pytest.approx(after / before, abs=0.01)
    files[0].write_text("a table\n")
    result = CliRunner().invoke(bench_command, ["--compare", *map(str, files)])
    assert "a.txt: its last line is no result of tuneserve bench" in str(result.exception)
    result = CliRunner().invoke(bench_command, [])
    assert "Missing option '--model'" in result.stderr


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
