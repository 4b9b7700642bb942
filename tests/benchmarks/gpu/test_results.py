"""Files of results."""

import json
from pathlib import Path

import pytest

from tuneserve.benchmarks.gpu import results
from tuneserve.benchmarks.gpu.results import Result

from .conftest import LLAMA


def test_a_result_is_read_as_it_was_written(out: Path, result: Result) -> None:
    assert Result.read(out / f"{LLAMA.name}.json") == result
    assert Result.read(out / "none.json") is None


def test_a_file_that_was_not_finished_does_not_replace_one_that_was(out: Path, result: Result) -> None:
    with pytest.raises(TypeError):
        results.write(out / f"{LLAMA.name}.json", {"no": object()})
    assert Result.read(out / f"{LLAMA.name}.json") == result


def test_the_files_are_json(out: Path) -> None:
    assert {path.name for path in out.iterdir()} == {"machine.json", f"{LLAMA.name}.json"}
    assert all(json.loads(path.read_text()) for path in out.iterdir())
