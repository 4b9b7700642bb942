"""Training: what each setting changes, and that a killed run goes on to the same weights."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tuneserve import checkpoint
from tuneserve.errors import StepFailed, UserError
from tuneserve.finetune.train import training

pytestmark = [
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

Run = Callable[..., Path]


@pytest.fixture
def tune(run: Run, tmp_path: Path, encoder: Path, reviews: Path) -> Run:
    """tune(name, **settings): a short run on the reviews, into the directory `name`."""

    def go(name: str, **settings: Any) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        values: dict[str, Any] = {
            "task": "sequence-classification",
            "base_model": str(encoder),
            "train": str(reviews),
            "test_size": 0.2,
            "epochs": 4,
            "batch_size": 8,
            "learning_rate": 5e-3,
        }
        return run(tmp_path / name, **values | settings)

    return go


@pytest.fixture(scope="module")
def plain() -> list[str]:
    """The weights of a run with no special settings, once they are known."""
    return []


def weights(output: Path) -> str:
    return checkpoint.sha256_file(output / "model.safetensors")


def metrics(output: Path) -> dict[str, float]:
    """Those of the last training."""
    return dict([step for step in checkpoint.load(output).lineage if step.name == "finetune"][-1].metrics)


def losses(output: Path) -> list[float]:
    """Those of each step, in the run's report."""
    history = json.loads((output.with_name("out-report") / "metrics.json").read_text())["history"]
    return [one["loss"] for one in history if "loss" in one]


def logged(output: Path) -> list[float]:
    """The same, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output.with_name("out-report") / "tensorboard"))
    events.Reload()
    return [one.value for one in events.Scalars("train/loss")]


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


# Not by the command line, which starts anew with other libraries for OpenMP: sums would come in another order.
KILLED = """
import sys
from pathlib import Path
from tuneserve.finetune import config, pipeline
pipeline.finetune(config.load(Path(sys.argv[1])))
"""


def test_a_killed_run_goes_on_to_the_same_weights(tune: Run, tmp_path: Path, encoder: Path, reviews: Path) -> None:
    settings = {"epochs": 30, "save_steps": 7}
    whole = tune("whole", **settings)
    killed = tmp_path / "killed"
    killed.mkdir()
    values = {
        "task": "sequence-classification",
        "base_model": str(encoder),
        "train": str(reviews),
        "output": "out",
        "test_size": 0.2,
        "batch_size": 8,
        "learning_rate": 5e-3,
        "precision": "fp32",
        "max_length": 64,
        **settings,
    }
    (killed / "run.yaml").write_text(json.dumps(values))
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(killed / "run.yaml")], stdout=log, stderr=log)
    state, deadline = killed / "out-training", time.monotonic() + 120
    while training.last_state(state) is None:
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert not (killed / "out").exists(), "the test must kill it earlier"
    # TensorBoard orders its files by the second in which they were begun.
    time.sleep(1)

    with pytest.raises(UserError, match="a run was interrupted here"):
        tune("killed", **settings)
    with pytest.raises(UserError, match="started with another learning_rate"):
        tune("killed", resume=True, **settings, learning_rate=1e-3)
    resumed = tune("killed", resume=True, **settings)
    assert weights(resumed) == weights(whole)
    # The report is of the whole run, too, with what the killed one had logged.
    assert losses(resumed) == losses(whole)
    assert logged(resumed) == pytest.approx(losses(whole))
    assert not state.exists()


def test_a_full_disk_leaves_what_was_saved_before(tune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"save_steps": 5}
    whole, state = weights(tune("whole", **settings)), tmp_path / "full" / "out-training"

    def interrupt(_callback: Any, _args: Any, at: Any, _control: Any, **_: Any) -> None:
        if at.global_step == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training._Progress, "on_step_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tune("full", **settings)
    # A file of a disk that is full.
    (state / "checkpoint-10").mkdir()
    (state / "checkpoint-10" / "optimizer.pt").symlink_to("/dev/full")
    with pytest.raises(StepFailed, match="out-training: the disk is full") as caught:
        tune("full", resume=True, **settings)
    assert "--resume" in caught.value.hint
    assert [path.name for path in state.glob("checkpoint-*")] == ["checkpoint-5"]
    # As if an older release, which knew of no packing, had begun it.
    begun = json.loads((state / "run.json").read_text())
    assert begun.pop("packing") is False
    (state / "run.json").write_text(json.dumps(begun))
    assert weights(tune("full", resume=True, **settings)) == whole


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
