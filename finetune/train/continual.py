"""Continual learning from a finished checkpoint: extends the head by new labels, and measures forgetting.

The checkpoint's labels and their rows of the head are kept; new labels get new rows. Its held-out rows are measured
before and after training, and become held-out rows of the new checkpoint: each generation is measured on everything
learned so far. Old rows mixed with the new ones (replay) help most against forgetting (Chaudhry et al. 2019).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tuneserve.checkpoint.layers import heads
from tuneserve.checkpoint.rows import Row, input_key
from tuneserve.checkpoint.tasks import TRAINABLE
from tuneserve.evaluation import quality
from tuneserve.finetune.data.previous import Old
from tuneserve.finetune.data.tokens import Target
from tuneserve.v1 import checkpoint_pb2 as pb

BEFORE, AFTER, DROP = "forgetting/{}_before", "forgetting/{}_after", "forgetting/{}_drop"
NEW = "new/{}"


def extend_head(model: Any, labels: Sequence[str]) -> list[str]:
    """Gives a model's head one row for each label, and copies the rows of labels that it had, by name.

    Returns a list with the name of the new module, or an empty list if the labels are unchanged.
    """
    known = model.config.label2id
    if not labels or [label for label, _ in sorted(known.items(), key=lambda pair: pair[1])] == list(labels):
        return []
    import torch

    # The output layer comes after all other layers outside of the blocks.
    name = heads(model)[-1]
    old = model.get_submodule(name)
    new = torch.nn.Linear(old.in_features, len(labels), bias=old.bias is not None).to(old.weight)
    model._init_weights(new)
    with torch.no_grad():
        for index, label in enumerate(labels):
            if label in known:
                for parameter, before in zip(new.parameters(), old.parameters(), strict=True):
                    parameter[index] = before[known[label]]
    model.set_submodule(name, new)
    model.num_labels = len(labels)
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: index for index, label in enumerate(labels)}
    return [name.partition(".")[0]]


def measure(model: Any, tokenizer: Any, target: Target, old: Old) -> dict[str, float]:
    """Returns the metrics on the old held-out rows, in fp32, if there are any."""
    if not old.test:
        return {}
    import torch

    from tuneserve.finetune.eval import evaluation

    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return evaluation.evaluate(model, tokenizer, target, old.test, bf16=False).metrics


def forgetting(task: pb.Task, before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Returns the headline metric before and after training, and its drop (see quality.drop), by metric name."""
    if not before:
        return {}
    name = quality.headline(task, before).name
    return {
        BEFORE.format(name): before[name],
        AFTER.format(name): after[name],
        DROP.format(name): quality.drop(task, before, after),
    }


def of_new(model: Any, tokenizer: Any, target: Target, old: Old, test: Sequence[Row]) -> dict[str, float]:
    """Returns the headline metric on the new held-out rows, without the old ones, as `new/NAME`."""
    known = {input_key(row) for row in old.test}
    new = [row for row in test if input_key(row) not in known]
    metrics = measure(model, tokenizer, target, replace(old, test=new))
    if not metrics:
        return {}
    name = quality.headline(TRAINABLE[target.task], metrics).name
    return {NEW.format(name): metrics[name]}


def show(task: pb.Task, metrics: Mapping[str, float]) -> None:
    """Prints the metrics of `forgetting`."""
    from rich.console import Console
    from rich.table import Table

    name = quality.headline(task, metrics).name
    if BEFORE.format(name) in metrics:
        table = Table("", f"{name} before", "after", "drop")
        table.add_row("old held-out rows", *(f"{metrics[key.format(name)]:.4f}" for key in (BEFORE, AFTER, DROP)))
        if NEW.format(name) in metrics:
            table.add_row("new held-out rows", "", f"{metrics[NEW.format(name)]:.4f}", "")
        Console().print(table)
