"""Files of results, and the page that is made of them."""

import json
from pathlib import Path

import pytest

from tuneserve.benchmarks.gpu import report, results
from tuneserve.benchmarks.gpu.phases import ROOFS, Phase, Variant
from tuneserve.benchmarks.gpu.results import Result
from tuneserve.benchmarks.gpu.shapes import TINY
from tuneserve.benchmarks.serving.interleave import Sample

BERT, LLAMA = TINY
PHASES = [Phase(ROOFS, 1), Phase(LLAMA.name, 1, LLAMA, (Variant("ours", "bf16"),)), Phase(BERT.name, 1, BERT)]


def streamed(rate: float) -> Sample:
    return Sample(rate, 0.5, 0.25, 0.125, 12.0, 0.0, 6.5, 6.75)


@pytest.fixture
def result() -> Result:
    samples = {"ours, bf16": [streamed(200), streamed(220)], "vllm serve, bf16": [streamed(100), streamed(110)]}
    return Result(
        LLAMA.name,
        seconds=55,
        starts={"ours, bf16": 20.0},
        missing=["vllm serve in Rust, bf16: it ended\nits last words"],
        roofs={"one stream": {"ours, bf16": 420.0, "vllm serve, bf16": None}},
        samples={"one stream": samples, "64 streams": {"ours, bf16": []}},
    )


@pytest.fixture
def out(tmp_path: Path, result: Result) -> Path:
    results.write(
        tmp_path / "machine.json", {"gpus": ["A card"], "tier": "gpu", "cpu": "16 cores", "versions": "vllm 1"}
    )
    result.write(tmp_path / f"{LLAMA.name}.json")
    return tmp_path


def test_a_result_is_read_as_it_was_written(out: Path, result: Result) -> None:
    assert Result.read(out / f"{LLAMA.name}.json") == result
    assert Result.read(out / "none.json") is None


def test_a_file_that_was_not_finished_does_not_replace_one_that_was(out: Path, result: Result) -> None:
    with pytest.raises(TypeError):
        results.write(out / f"{LLAMA.name}.json", {"no": object()})
    assert Result.read(out / f"{LLAMA.name}.json") == result


def test_the_page_has_every_figure_and_says_what_is_missing(out: Path) -> None:
    assert results.roofs(out) is None
    found = {"bandwidth": 4e12, "copied": 4e12, "read": 3e12, "operations": {"bf16": 7e14}, "missing": {"fp8": "why"}}
    results.write(out / "roofs.json", found)
    roofs = results.roofs(out)
    assert roofs is not None
    assert (roofs.bandwidth, roofs.operations) == (4e12, {"bf16": 7e14})
    page = report.write(PHASES, out).read_text()
    assert page.startswith("# A card\n")
    assert "4,000 GB/s (copy 4,000, read 3,000)" in page
    assert "bf16: 700.0 T operations a second" in page
    assert "fp8: not measured: why" in page
    [ours] = [line for line in page.splitlines() if line.startswith("| ours, bf16")]
    assert [cell.strip() for cell in ours.split("|")][2:-1] == [
        *("209.8 (114.5 to 384.3)", "420", "50%", "12.00", "6.50", "6.75", "0.50", "0.25", "0.12")
    ]
    assert "ours, to vllm serve: 2.00 (2.00 to 2.00)" in page
    assert "55 s, cut off. Seconds to start, all at the same time: ours, bf16 20." in page
    assert "- Not measured: vllm serve in Rust, bf16: it ended" in page
    assert "64 streams" not in page
    assert page.endswith(f"## {BERT.name}\n\nNot measured yet.\n")


def test_the_files_are_json(out: Path) -> None:
    assert {path.name for path in out.iterdir()} == {"machine.json", f"{LLAMA.name}.json"}
    assert all(json.loads(path.read_text()) for path in out.iterdir())
