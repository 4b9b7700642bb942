"""The state that a run saves, and --resume."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tuneserve.errors import StepFailed, UserError
from tuneserve.finetune.train import training

from .conftest import Run
from .test_training import weights

pytestmark = [
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


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


# Not by the command line, which starts anew with other libraries for OpenMP: sums would come in another order.
