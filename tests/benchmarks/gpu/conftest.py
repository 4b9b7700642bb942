"""What a run of one model measured, and a folder with it."""

from pathlib import Path

import pytest

from tuneserve.benchmarks.gpu import results
from tuneserve.benchmarks.gpu.results import Result
from tuneserve.benchmarks.gpu.shapes import TINY
from tuneserve.benchmarks.serving.interleave import Sample

BERT, LLAMA = TINY


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
