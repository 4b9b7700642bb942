"""PEFT adapters where a whole model is asked for: refused, with what to do with an adapter of its kind."""

import json
from pathlib import Path

from tuneserve.errors import CheckpointError

CONFIG = "adapter_config.json"
# Kinds of PEFT that put learned vectors before a prompt.
VIRTUAL_TOKENS = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE")


def refuse(directory: Path) -> None:
    """Raises CheckpointError for the directory of an adapter that has no model beside it."""
    if (directory / "config.json").exists() or not (directory / CONFIG).is_file():
        return
    try:
        kind = str(json.loads((directory / CONFIG).read_text(encoding="utf-8"))["peft_type"])
    except (ValueError, KeyError, TypeError):
        kind = "of an unknown kind"
    if kind in VIRTUAL_TOKENS:
        hint = "its virtual tokens have no weights that could be merged, and vLLM puts none before a prompt: train LoRA"
    else:
        hint = (
            "merge it into its base model: `tuneserve merge` for what finetune made, PEFT's merge_and_unload for others"
        )
    raise CheckpointError(f"{directory}: a PEFT adapter ({kind}), not a model", hint)
