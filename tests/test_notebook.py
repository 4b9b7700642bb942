"""docs/tour.ipynb, cell by cell: it trains, serves on the real engine and asks."""

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"


def cells() -> list[str]:
    """The code of each cell."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_it_is_kept_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook["cells"])


@pytest.mark.train
@pytest.mark.engine
# Raised by libraries at import or inside training; none of them is about this code.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        for number, cell in enumerate(cells(), start=1):
            exec(compile(cell, f"cell {number}", "exec"), names)
    finally:
        if "server" in names:
            names["server"].stop()
    checkpoint, results = names["checkpoint"], names["results"]
    assert checkpoint.path == Path("checkpoints/sentiment")
    assert checkpoint.metrics["accuracy"] > 0.6
    praise, complaint = ({one.label: one.score for one in result.labels} for result in results)
    assert praise["positive"] > complaint["positive"]
    printed = capsys.readouterr().out
    assert "MODEL_NOT_FOUND - " in printed
    assert f"sentiment@{checkpoint.version} sequence-classification ready" in printed
