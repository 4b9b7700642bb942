"""The state that a run saves while it trains, in `OUTPUT-training`; `--resume` continues from it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuneserve.errors import UserError
from tuneserve.finetune.config import FinetuneConfig, changed_settings
from tuneserve.finetune.train.training import last_state, whole_states
from tuneserve.machine import disk


@contextmanager
def kept(state: Path, config: FinetuneConfig, data_sha256: str, overwrite: bool, resume: bool) -> Iterator[None]:
    """Creates or finds the directory of a run's state; removes it if the run saved no state.

    Raises UserError if an earlier run was interrupted here, unless it is resumed with the same settings; StepFailed
    if the disk is full.
    """
    settings = json.loads(json.dumps(config.public() | {"data_sha256": data_sha256}))
    noted = state / "run.json"
    if last_state(state) and resume:
        before = json.loads(noted.read_text(encoding="utf-8"))
        if changed := changed_settings(before, settings):
            raise UserError(
                f"{state}: that run was started with another {changed[0]}",
                "give the settings that it was started with, or start again with --overwrite",
            )
    elif last_state(state) and not overwrite:
        raise UserError(f"{state}: a run was interrupted here", "--resume continues it, --overwrite starts again")
    else:
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir(parents=True)
        noted.write_text(json.dumps(settings), encoding="utf-8")
    try:
        with disk.watched(state, "free some; --resume continues from the last saved state"):
            yield
    except BaseException:
        whole = whole_states(state)
        for path in [state] if not whole else set(state.glob("checkpoint-*")) - set(whole):
            shutil.rmtree(path, ignore_errors=True)
        raise


def needed(model: Any, config: FinetuneConfig) -> int:
    """Estimates how many bytes a run writes: two states at once, the adapter, the checkpoint in bf16."""
    every: int = sum(parameter.numel() for parameter in model.parameters())
    learning: int = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    saved = 4 * (every if config.method == "full" else learning)
    # AdamW keeps two numbers for each trained weight.
    return 2 * (saved + 8 * learning) + saved + 2 * every
