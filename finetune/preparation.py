"""What a run begins with: all that may be wrong with its settings is found here, before anything is trained."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuneserve.finetune import augmentation, models
from tuneserve.finetune.config import FinetuneConfig
from tuneserve.finetune.data import Data
from tuneserve.finetune.tokens import Target, encode
from tuneserve.rows import Row

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """A run that may begin."""

    config: FinetuneConfig
    split: Data
    train: Sequence[Row]  # the split's, and after them their changed copies
    encoded: Sequence[Row]  # the same from `tokens.encode`
    target: Target
    tokenizer: Any
    bf16: bool


def prepare(config: FinetuneConfig, split: Data) -> Ready:
    """Checks, and encodes the training rows. Raises UserError."""
    target, tokenizer = check(config, split)
    bf16 = models.use_bf16(config.precision)
    train = augmentation.augmented(split.train, config)
    return Ready(config, split, train, encode(tokenizer, target, train), target, tokenizer, bf16)


def check(config: FinetuneConfig, split: Data) -> tuple[Target, Any]:
    """Returns what will be trained, no longer than the base model can read, and the tokenizer; reads no weights.

    Raises UserError when the base model can't be served, or the teacher can't teach it.
    """
    models.check_servable(config.task, config.base_model)
    augmentation.check(config)
    tokenizer = models.load_tokenizer(config.base_model)
    longest = models.max_length(config.base_model, tokenizer)
    if config.task == "generation":
        # Measured through the server, where each call has to have room for one token to make.
        longest -= 1
    if config.max_length > longest:
        logger.warning("max_length is %d, the base model can be trained at %d: using that", config.max_length, longest)
    target = Target(
        task=config.task,
        labels=tuple(split.labels),
        problem_type=config.problem_type,
        max_length=min(config.max_length, longest),
    )
    # Late: it imports torch.
    from tuneserve.finetune import distillation

    distillation.check(config, target, tokenizer)
    return target, tokenizer
