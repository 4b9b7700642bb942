"""Averaged runs: the weights are the mean, and what can't be averaged is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tuneserve import checkpoint
from tuneserve.checkpoint import rows
from tuneserve.errors import UserError
from tuneserve.finetune.soup import soup
from tuneserve.v1 import checkpoint_pb2 as pb

pytestmark = [
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def runs(run: Run, tmp_path_factory: pytest.TempPathFactory, trained: Path, reviews: Path) -> list[Path]:
    """Two runs that go on from the same one, each a little, on the same rows."""
    lines = reviews.read_text().splitlines(keepends=True)
    folder = tmp_path_factory.mktemp("runs")
    (folder / "train.jsonl").write_text("".join(lines[:48]))
    (folder / "test.jsonl").write_text("".join(lines[48:]))
    common: dict[str, Any] = {
        "task": "sequence-classification",
        "base_model": str(trained),
        "train": "train.jsonl",
        "test": "test.jsonl",
        "method": "full",
        "epochs": 2,
    }
    settings = ({"learning_rate": 1e-4, "seed": 1}, {"learning_rate": 5e-4, "seed": 2})
    return [run(folder, output=f"run{one['seed']}", **one, **common) for one in settings]


def test_the_mean_of_two_runs(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = soup(runs, tmp_path / "soup")
    manifest = checkpoint.load(output)
    assert manifest.lineage[-1].name == "soup"
    assert manifest.lineage[-1].metrics["accuracy"] >= 0.8
    assert rows.read(output / manifest.calibration_split.path) == rows.read(runs[0] / checkpoint.CALIBRATION_SPLIT)
    assert "soup                    accuracy" in capsys.readouterr().out
    first, second, mean = (load_file(path / "model.safetensors") for path in (*runs, output))
    for name in first:
        expected = (first[name].float() + second[name].float()) / 2
        assert torch.allclose(mean[name].float(), expected, rtol=2**-7, atol=1e-6), name
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_what_can_not_be_averaged(runs: list[Path], trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two or more checkpoints, and one was given"):
        soup(runs[:1], tmp_path / "soup")
    with pytest.raises(UserError, match="other held-out rows"):
        soup([runs[0], trained], tmp_path / "soup")
    foreign = Path(shutil.copytree(runs[0], tmp_path / "foreign"))
    (foreign / checkpoint.MANIFEST).unlink()
    with pytest.raises(UserError, match="not trained here"):
        soup([runs[0], foreign], tmp_path / "soup")
    for field, value in {"pooling": "cls", "prompts": {"query": "q: "}}.items():
        other = Path(shutil.copytree(runs[1], tmp_path / field))
        manifest = checkpoint.read_manifest(other)
        manifest.MergeFrom(pb.Checkpoint(**{field: value}))
        checkpoint.seal(other, manifest)
        with pytest.raises(UserError, match=f"another {field} than"):
            soup([runs[0], other], tmp_path / "soup")
    assert not (tmp_path / "soup").exists()
