"""Prepares a run, and finds everything that may be wrong with its settings before anything is trained."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from tuneserve.checkpoint import examples
from tuneserve.checkpoint.rows import Row
from tuneserve.errors import UserError
from tuneserve.finetune.config import WRITERS, FinetuneConfig
from tuneserve.finetune.data import augmentation, back_translation, dataset, negatives, preferences, tokens
from tuneserve.finetune.data.dataset import Data
from tuneserve.finetune.data.disk_rows import DiskRows
from tuneserve.finetune.data.tokens import Target, encode
from tuneserve.finetune.model import base_models, pooling

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """A checked run that can be trained."""

    config: FinetuneConfig
    split: Data
    train: Sequence[Row]  # the split's rows, followed by their augmented copies
    encoded: Sequence[Row]  # the same rows from `tokens.encode`
    target: Target
    tokenizer: Any
    bf16: bool
    translated: back_translation.BackTranslated  # those of `train` that are back-translated


def prepare(config: FinetuneConfig, split: Data) -> Ready:
    """Checks the run and encodes its training rows. Raises UserError."""
    target, tokenizer = check(config, split)
    bf16 = base_models.use_bf16(config.precision)
    split = usable(config, split, target, tokenizer)
    if split.left_out:
        logger.warning(dataset.left_out(split))
    translated = back_translation.of(split.train, config)
    augmented = augmentation.augmented(split.train, config)
    if translated.rows:
        augmented = DiskRows(chain(augmented, translated.rows))
    train = negatives.mined(augmented, config)
    encoded = for_training(tokenizer, target, train, config.train_on)
    if more := len(encoded) - len(train):
        logger.info("%d answers are rendered differently when turns follow: each is trained in a row of its own", more)
    return Ready(config, split, train, encoded, target, tokenizer, bf16, translated)


def for_training(tokenizer: Any, target: Target, rows: Sequence[Row], train_on: str = "last-turn") -> Sequence[Row]:
    """Returns rows as their trainer reads them."""
    if target.task == "preference":
        return preferences.encode(tokenizer, rows, target.max_length)
    return encode(tokenizer, target, rows, train_on)


def usable(config: FinetuneConfig, split: Data, target: Target, tokenizer: Any) -> Data:
    """Returns the data without the rows of generation and preference that can't be trained on.

    Raises UserError if that leaves no rows to train on or to measure, or preferences of one kind of answers alone.
    """
    if config.task not in WRITERS:
        return split
    conversation = next((row for row in split.train if "messages" in row), None)
    if conversation and not examples.is_special(tokenizer, examples.answer(tokenizer, conversation)[0][-1]):
        logger.warning("the chat template ends answers without a special token: the model will not learn to stop")
    left_out = Counter[str]()
    for name in ("train", "test", "validation"):
        rows = getattr(split, name)
        kept, reasons = tokens.usable(tokenizer, target, rows, config.long_prompts)
        left_out += reasons
        if len(rows) and not len(kept):
            what = ", ".join(f"{count} have {reason}" for reason, count in reasons.items())
            raise UserError(f"no {name} row can be used: {what}", "a larger max_length, or long_prompts: truncate")
        split = replace(split, **{name: kept})  # type: ignore[arg-type]
    if config.task == "preference":
        preferences.check(config, train=split.train, validation=split.validation, test=split.test)
    return replace(split, left_out=left_out)


def check(config: FinetuneConfig, split: Data) -> tuple[Target, Any]:
    """Returns the target, with at most the length that the base model can read, and the tokenizer; reads no weights.

    Raises UserError if the base model can't be served, or the teacher does not fit it.
    """
    base_models.check_servable(config.task, config.base_model)
    augmentation.check(config)
    negatives.check(split.train, config)
    tokenizer = base_models.load_tokenizer(config.base_model)
    if config.chat_template:
        tokenizer.chat_template = config.chat_template
    longest = base_models.max_length(config.base_model, tokenizer)
    if config.task in WRITERS:
        # Quality is measured through the server, where each call needs room for one generated token.
        longest -= 1
    if config.max_length > longest:
        logger.warning("max_length is %d, the base model can be trained at %d: using that", config.max_length, longest)
    target = Target(
        task=config.task,
        labels=tuple(split.labels),
        problem_type=config.problem_type,
        max_length=min(config.max_length, longest),
    )
    if config.task == "embedding":
        how, prompts = pooling.of(config)
        target = replace(target, pooling=how, prompts=prompts, sizes=config.matryoshka or ())
    if config.temperature_scaling:
        # Imported late, because it imports scipy.
        from tuneserve.finetune.eval import temperature

        temperature.check(len(split.parents.unseen(split.validation)))
    if config.rdrop_alpha and not config.lora_dropout and not base_models.has_dropout(config.base_model):
        remedy = "leave it out" if config.method in ("full", "ia3") else "set lora_dropout: 0.1, or leave it out"
        raise UserError(f"rdrop_alpha: {config.base_model} has no dropout, so both passes would be the same", remedy)
    # Imported late, because it imports torch.
    from tuneserve.finetune.train import distillation

    distillation.check(config, target, tokenizer)
    return target, tokenizer
