"""Two runs beside each other."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tuneserve.benchmarks.serving.command import bench_command
from tuneserve.benchmarks.serving.load.bench import measure

from ...conftest import Server, settings


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
