"""How the vectors of a text's tokens become one: as the base model's files or the settings say; nothing is guessed."""

from collections.abc import Mapping
from pathlib import Path

from tuneserve.checkpoint import encoders
from tuneserve.errors import UserError
from tuneserve.finetune.config import FinetuneConfig
from tuneserve.finetune.model import base_models


def of(config: FinetuneConfig) -> tuple[str, Mapping[str, str]]:
    """Returns the pooling and the prompts of a run for embeddings. Raises UserError if the pooling is not known."""
    directory = files(config.base_model)
    if further := encoders.further_steps(directory):
        raise UserError(
            f"base_model: {config.base_model} has a {further[0]} layer after its pooling, which can't be trained here",
            "choose an encoder without one",
        )
    width = base_models.read(config.base_model, "AutoConfig").get_text_config().hidden_size
    if too_large := [size for size in config.matryoshka or () if size >= width]:
        raise UserError(
            f"matryoshka: {too_large[0]} dimensions, and a vector has {width}", f"give numbers below {width}"
        )
    pooling = config.pooling or encoders.pooling(directory)
    if not pooling:
        raise UserError(
            f"base_model: {config.base_model} does not say how its tokens' vectors become one",
            f"set pooling, to what the model was trained with: {', '.join(encoders.POOLINGS)}",
        )
    if config.prompts is None:
        return pooling, encoders.prompts(directory)
    return pooling, dict(config.prompts.items())


def files(base_model: str) -> Path:
    """Returns a directory with the files of sentence-transformers that a base model has."""
    if Path(base_model).is_dir():
        return Path(base_model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(base_model, allow_patterns=["*.json", "*_Pooling/*.json"]))
