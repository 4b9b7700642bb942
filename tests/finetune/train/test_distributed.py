"""Several processes, as `accelerate launch` starts them, train what one does."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tuneserve import checkpoint
from tuneserve.errors import UserError
from tuneserve.finetune.train import distributed, training

pytestmark = [
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

ADAPTER = "adapter_model.safetensors"
# Not by the command line, which starts anew with other libraries for OpenMP: sums would come in another order.
PROGRAM = """
import sys
from pathlib import Path
from tuneserve.finetune import config, pipeline
pipeline.finetune(config.load(Path(sys.argv[1])))
"""


def launched(directory: Path, values: dict[str, Any], count: int = 2) -> subprocess.CompletedProcess[str]:
    """Runs a finetune in several processes of `accelerate launch`, to its end."""
    directory.mkdir()
    (directory / "run.yaml").write_text(json.dumps(values))
    (directory / "run.py").write_text(PROGRAM)
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count)]
    return subprocess.run(
        [sys.executable, *launch, "--main_process_port", "0", str(directory / "run.py"), str(directory / "run.yaml")],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )


def test_two_processes_train_what_one_does(
    run: Callable[..., Path], tmp_path: Path, encoder: Path, reviews: Path
) -> None:
    # Two processes drop other places than one.
    base = Path(shutil.copytree(encoder, tmp_path / "base"))
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps(settings | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    )
    values: dict[str, Any] = {
        "task": "sequence-classification",
        "base_model": str(base),
        "train": str(reviews),
        "test_size": 0.2,
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 5e-3,
        "save_steps": 5,
    }
    alone = run(tmp_path, **values)
    done = launched(tmp_path / "both", values | {"output": "out", "precision": "fp32", "max_length": 64})
    assert done.returncode == 0, done.stderr
    # What the main process alone prints, and nothing beside the results.
    assert done.stdout.count("made by") == 1
    both = tmp_path / "both" / "out"
    assert sorted(path.name for path in both.parent.iterdir()) == [
        "out", "out-adapter", "out-report", "run.py", "run.yaml"
    ]  # fmt: skip
    first, second = checkpoint.load(alone).lineage, checkpoint.load(both).lineage
    assert second[1].metrics["train_steps"] == first[1].metrics["train_steps"] == 18
    assert second[1].metrics["train_loss"] == pytest.approx(first[1].metrics["train_loss"], rel=1e-4)
    # Those that begin at zero: what is in them is what was learned.
    one, two = (
        torch.cat([w.flatten() for name, w in load_file(path / ADAPTER).items() if "lora_B" in name])
        for path in (alone.with_name("out-adapter"), both.with_name("out-adapter"))
    )
    assert (one - two).norm() <= 0.01 * one.norm()


def test_a_batch_that_they_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert distributed.share(8) == 2
    with pytest.raises(UserError, match="batch_size is 6, for 4 processes"):
        distributed.share(6)


def test_deepspeed_that_would_keep_the_weights_in_parts() -> None:
    def check(stage: int, **settings: bool) -> None:
        plugin = SimpleNamespace(zero_stage=stage, deepspeed_config={"zero_optimization": settings})
        state = SimpleNamespace(deepspeed_plugin=plugin)
        training._check_gathers(SimpleNamespace(accelerator=SimpleNamespace(state=state)))

    check(2)
    check(3, stage3_gather_16bit_weights_on_model_save=True)
    with pytest.raises(UserError, match="would not gather the trained weights") as caught:
        check(3, stage3_gather_16bit_weights_on_model_save=False)
    assert "zero3_save_16bit_model" in caught.value.hint
