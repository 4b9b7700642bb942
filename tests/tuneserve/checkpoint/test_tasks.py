"""The table of tasks: every task is in it, and what it names exists."""

import pytest

from tuneserve.call.command import call_command
from tuneserve.checkpoint.tasks import TASK_NAMES, TASKS, TRAINABLE, Task, auto_class
from tuneserve.evaluation.significance import METRICS
from tuneserve.v1 import checkpoint_pb2 as pb


def test_every_task_of_a_checkpoint_is_known() -> None:
    assert TASKS.keys() == set(pb.Task.values()) - {pb.TASK_UNSPECIFIED}
    assert set(TRAINABLE.values()) == TASKS.keys()


@pytest.mark.parametrize(("value", "task"), TASKS.items(), ids=TASK_NAMES.values())
def test_what_is_said_of_it_exists(value: pb.Task, task: Task) -> None:
    from transformers.pipelines import SUPPORTED_TASKS

    assert auto_class(value) in SUPPORTED_TASKS[task.pipeline]["pt"]
    assert task.call in call_command.commands
    assert task.headline is None or task.headline.name in METRICS
    assert pb.Task.Name(value) == f"TASK_{task.name.upper().replace('-', '_')}"
