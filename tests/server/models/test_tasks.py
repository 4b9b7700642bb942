"""What the server knows of each task: every task has its services and methods, as the API has them."""

import re

import pytest

from tuneserve.server.models.tasks import TASKS
from tuneserve.v1 import checkpoint_pb2, classification_pb2, embedding_pb2, generation_pb2

SERVICES = {
    service.full_name: service
    for module in (classification_pb2, embedding_pb2, generation_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
}


def test_every_task_of_a_checkpoint_is_known():
    assert set(TASKS) == set(checkpoint_pb2.Task.values()) - {checkpoint_pb2.TASK_UNSPECIFIED}


@pytest.mark.parametrize("task", TASKS.values(), ids=map(checkpoint_pb2.Task.Name, TASKS))
def test_what_callers_are_told_to_call_is_there(task):
    service = SERVICES[task.service]
    assert task.methods.startswith(f"{service.name}.")
    names = set(re.findall(r"[A-Z]\w+", task.methods)) - {service.name}
    every = {method for one in SERVICES.values() for method in one.methods_by_name}
    assert names
    assert names <= every


def test_every_method_is_some_tasks():
    told = " ".join(task.methods for task in TASKS.values())
    assert all(re.search(rf"\b{method}\b", told) for one in SERVICES.values() for method in one.methods_by_name)


def test_only_generation_writes():
    writes = [task for task, known in TASKS.items() if known.pooling is None]
    assert writes == [checkpoint_pb2.TASK_GENERATION]
