"""Training: what each setting changes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tuneserve import checkpoint
from tuneserve.errors import StepFailed

from .conftest import Run

pytestmark = [
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def plain() -> list[str]:
    """The weights of a run with no special settings, once they are known."""
    return []


def weights(output: Path) -> str:
    return checkpoint.sha256_file(output / "model.safetensors")


def metrics(output: Path) -> dict[str, float]:
    """Those of the last training."""
    return dict([step for step in checkpoint.load(output).lineage if step.name == "finetune"][-1].metrics)


@pytest.mark.parametrize(
    "settings",
    [
        {"class_weights": "balanced", "focal_gamma": 2.0, "label_smoothing": 0.1},
        {"rdrop_alpha": 1.0},
        {"fgm_epsilon": 0.01},
        {"neftune_alpha": 1.0},
        {"schedule": "cosine"},
        {"schedule": "constant"},
        {"gradient_checkpointing": True},
        {"augment_copies": 2, "word_swap": 0.1},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_each_setting_trains_otherwise_and_learns(tune: Run, plain: list[str], settings: dict[str, Any]) -> None:
    given = {"method": "full", "learning_rate": 2e-3, "epochs": 20}
    output = tune("other", **given | settings)
    assert checkpoint.load(output).lineage[-1].metrics["accuracy"] >= 0.9
    if not plain:
        plain.append(weights(tune("plain", **given)))
    # What only saves memory changes nothing.
    assert ([weights(output)] == plain) == ("gradient_checkpointing" in settings)


def test_fgm_moves_embeddings_that_are_frozen(tune: Run) -> None:
    assert weights(tune("adversarial", fgm_epsilon=0.01)) != weights(tune("plain"))


def test_accumulated_batches_are_as_one(tune: Run, trained: Path) -> None:
    """Their mean, not their sum, which would be four times as much: the loss of a run is about the same."""
    for more in ({}, {"focal_gamma": 1.0}):
        whole = metrics(tune(f"whole{len(more)}", batch_size=8, base_model=str(trained), **more))
        parts = metrics(
            tune(f"parts{len(more)}", batch_size=2, gradient_accumulation=4, base_model=str(trained), **more)
        )
        assert parts["train_steps"] == whole["train_steps"]
        assert parts["train_loss"] == pytest.approx(whole["train_loss"], rel=0.6)


def test_the_best_epoch_is_kept_and_training_ends_early(tune: Run) -> None:
    stopped = tune("stopped", epochs=60, learning_rate=2e-2, validation_size=0.2, early_stopping=2)
    assert metrics(stopped)["train_steps"] < 60 * 5
    assert not stopped.with_name("out-training").exists()


def test_a_loss_that_is_no_number(tune: Run, tmp_path: Path, encoder: Path) -> None:
    base = Path(shutil.copytree(encoder, tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    tensors["encoder.layer.1.output.dense.bias"][0] = float("nan")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StepFailed, match="the loss is nan at step 1") as caught:
        tune("spoiled", base_model=str(base))
    assert "learning_rate" in caught.value.hint
    assert list((tmp_path / "spoiled").iterdir()) == []


@pytest.mark.parametrize(("ratio", "warm"), [(0, 1), (0.5, 12), (1, 24)])
def test_the_warm_up_is_a_share_of_all_steps(tune: Run, ratio: float, warm: int) -> None:
    output = tune("warm", warmup_ratio=ratio)
    history = json.loads((output.with_name("out-report") / "metrics.json").read_text())["history"]
    rates = [one["learning_rate"] for one in history if "learning_rate" in one]
    assert len(rates) == 24
    # The first step's comes before it.
    assert rates.index(max(rates)) == min(warm, 23) if ratio else rates[0] == max(rates)
    assert rates[:warm] == sorted(rates[:warm])
