"""Training on preferences: TRL's DPO for pairs of answers, its KTO for single answers with a thumb up or down.

    DPO   the better answer of a pair gains probability against the worse one, each measured against the base model
          (Rafailov et al. 2023)
    KTO   good answers gain probability, and bad ones lose it, measured against the base model and against answers of
          the batch that were given to other prompts (Ethayarajh et al. 2024)

The base model is the model without its adapter.
"""

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from tuneserve.checkpoint.rows import Row
from tuneserve.finetune.train import sft


def trainer(run: Any, common: dict[str, Any]) -> Any:
    """Returns the trainer of a `training.Run`; `common` are the arguments of every trainer."""
    # Rows are already tokenized and truncated.
    common = {**common, "beta": run.config.preference_beta, "max_length": None, "remove_unused_columns": False}
    pad: int = run.tokenizer.pad_token_id
    if "documents" in run.encoded[0]:
        return _made(PairTrainer, DPOConfig(**common), pairs(DataCollatorForPreference(pad)), run)
    good = sum(row["label"] for row in run.encoded)
    bad = len(run.encoded) - good
    # Both kinds weigh the same in sum, as the paper advises (equation 8).
    weights = {"desirable_weight": max(1.0, bad / good), "undesirable_weight": max(1.0, good / bad)}
    return _made(SingleTrainer, KTOConfig(**common, **weights), singles(DataCollatorForUnpairedPreference(pad)), run)


def _made(kind: Any, settings: Any, collator: Any, run: Any) -> Any:
    made = kind(
        model=run.model,
        args=settings,
        data_collator=collator,
        # As for SFTTrainer: one row here, all rows below.
        train_dataset=Dataset.from_list([run.encoded[0]]),
        eval_dataset=Dataset.from_list([run.validation[0]]) if run.validation else None,
        processing_class=run.tokenizer,
    )
    made.train_dataset, made.eval_dataset = run.encoded, run.validation or None
    # TRL adds a copy of the adapter, which would be saved with it. Without that copy, it compares with the base model.
    run.model.delete_adapter("ref")
    sft.train_in_fp32(run.model)
    return made


class PairTrainer(DPOTrainer):  # type: ignore[misc]
    """DPOTrainer of rows that are already tokenized."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class SingleTrainer(KTOTrainer):  # type: ignore[misc]
    """KTOTrainer of rows that are already tokenized."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def pairs(collate: Callable[[list[Row]], Any]) -> Callable[[Sequence[Row]], Any]:
    """Returns a collator of rows from `preferences.encode`, which gives TRL's their prompts and answers."""

    def batch(rows: Sequence[Row]) -> Any:
        given = []
        for row in rows:
            prompt, chosen = _parts(row)
            given.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": _parts(row["documents"][0])[1]})
        return collate(given)

    return batch


def singles(collate: Callable[[list[Row]], Any]) -> Callable[[Sequence[Row]], Any]:
    """The same of single answers; each prompt also gets the answer to another prompt of the batch."""

    def batch(rows: Sequence[Row]) -> Any:
        parts = [_parts(row) for row in rows]
        return collate(
            [
                {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": other, "label": row["label"]}
                for row, (prompt, answer), (_, other) in zip(rows, parts, [parts[-1], *parts[:-1]], strict=True)
            ]
        )

    return batch


def _parts(row: Row) -> tuple[list[int], list[int]]:
    return row["input_ids"][: row["start"]], row["input_ids"][row["start"] :]
