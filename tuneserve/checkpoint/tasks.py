"""What every package knows about a task. What one package alone needs is there: its calls in server/models/tasks.py."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneserve.v1 import checkpoint_pb2 as pb


@dataclass(frozen=True)
class Headline:
    """The one metric that a quality gate compares for a task."""

    name: str
    higher_is_better: bool


@dataclass(frozen=True)
class Task:
    """One task."""

    name: str  # in settings, tables and metrics
    auto: str  # the class of transformers that loads a model with the task's head
    pipeline: str  # transformers' pipeline of the task, which is also the hub's tag
    call: str  # the command of `tuneserve call`
    headline: Headline


TASKS: Mapping[pb.Task, Task] = {
    pb.TASK_SEQUENCE_CLASSIFICATION: Task(
        "sequence-classification",
        "AutoModelForSequenceClassification",
        "text-classification",
        "classify",
        Headline("accuracy", higher_is_better=True),
    ),
    pb.TASK_TOKEN_CLASSIFICATION: Task(
        "token-classification",
        "AutoModelForTokenClassification",
        "token-classification",
        "tokens",
        Headline("entity_f1", higher_is_better=True),
    ),
    pb.TASK_GENERATION: Task(
        "generation",
        "AutoModelForCausalLM",
        "text-generation",
        "generate",
        Headline("perplexity", higher_is_better=False),
    ),
    pb.TASK_EMBEDDING: Task(
        "embedding", "AutoModel", "feature-extraction", "embed", Headline("ndcg@10", higher_is_better=True)
    ),
    pb.TASK_RANKING: Task(
        "ranking",
        "AutoModelForSequenceClassification",
        "text-classification",
        "rank",
        Headline("ndcg@10", higher_is_better=True),
    ),
}
# By name: each can be trained and measured. Training on preferences makes a model for generation.
TRAINABLE = {task.name: value for value, task in TASKS.items()} | {"preference": pb.TASK_GENERATION}
TASK_NAMES = {value: task.name for value, task in TASKS.items()}


def auto_class(task: pb.Task) -> Any:
    """Returns transformers' auto class of a task."""
    import transformers

    return getattr(transformers, TASKS[task].auto)
