"""Training for generation: TRL's SFTTrainer on rows that are already tokenized and have labels."""

from functools import partial
from typing import Any

from datasets import Dataset
from torch.nn import functional
from trl import SFTConfig, SFTTrainer

from tuneserve.finetune.data import packing
from tuneserve.finetune.data.tokens import IGNORED


def trainer(run: Any, common: dict[str, Any]) -> SFTTrainer:
    """Returns the trainer of a `training.Run`; `common` are the arguments of every trainer.

    Raises UserError for a model whose rows can't be packed.
    """
    settings = SFTConfig(
        **common,
        # Rows are already tokenized and truncated, and their labels count only the answers in the loss.
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )
    options: dict[str, Any] = {
        "model": run.model,
        "args": settings,
        # TRL takes only a Dataset, which holds all rows or copies them to disk. It gets one row here, all rows below.
        "train_dataset": Dataset.from_list([run.encoded[0]]),
        "eval_dataset": Dataset.from_list([run.validation[0]]) if run.validation else None,
        "processing_class": run.tokenizer,
    }
    if run.config.packing:
        packing.check(run.model)
        options["data_collator"] = partial(packing.collate, pad_token_id=run.tokenizer.pad_token_id)
    if run.teacher:
        if run.config.packing:
            packing.check(run.teacher.model)
        from tuneserve.finetune.train.distillation_generation import DistillingTrainer

        made = DistillingTrainer(teacher=run.teacher, config=run.config, **options)
    else:
        made = AnswerTrainer(**options)
    made.train_dataset, made.eval_dataset = run.encoded, run.validation or None
    train_in_fp32(run.model)
    return made


def train_in_fp32(model: Any) -> None:
    """Undoes what TRL does to a quantized model: it converts the adapter to bf16. Here, trained weights are fp32."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


class AnswerTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer that, also on a CPU, computes logits only at the positions of answers.

    TRL's own loss does so with Triton. Without it, TRL computes the logits of every position, padding included, in
    chunks, and a second time in the backward pass: a third of a small model's time.
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See Trainer."""
        if self.args.device.type != "cpu" or self.aux_loss_enabled or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        targets = functional.pad(inputs.pop("labels")[:, 1:], (0, 1), value=IGNORED)
        counted = targets != IGNORED
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        # By a hook before the head, not with the head's weights, so that anything the model does to its logits is kept.
        with head.register_forward_pre_hook(lambda _module, given: (given[0][counted][None], *given[1:])):
            scores = model(**inputs, use_cache=False).logits[0]
        total = functional.cross_entropy(scores.float(), targets[counted], reduction="sum")
        if num_items_in_batch is None:
            return total / counted.sum().clamp_min(1)
        # num_items_in_batch counts all processes, whose gradients are then averaged.
        return total / num_items_in_batch * self.accelerator.num_processes
