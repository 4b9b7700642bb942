"""Which calls a model gets."""

import pytest

from tuneserve.benchmarks.serving.load.bench import measure
from tuneserve.benchmarks.serving.load.calls import CALLS, default_call
from tuneserve.call.channel import CallFailed
from tuneserve.checkpoint.tasks import TASK_NAMES
from tuneserve.errors import UserError
from tuneserve.v1 import (
    classification_pb2,
)

from ..conftest import Server, settings


async def test_unknown_model_and_wrong_batch_are_refused(served: tuple[Server, str]) -> None:
    with pytest.raises(CallFailed, match="served: sentiment, ner, chat"):
        await measure(settings(served[1], "other"))
    with pytest.raises(UserError, match="--batch 9: model sentiment takes at most 8"):
        await measure(settings(served[1], "sentiment", batch=9))
    with pytest.raises(UserError, match="--batch 2: model chat takes at most 1"):
        await measure(settings(served[1], "chat", batch=2))


async def test_no_server() -> None:
    with pytest.raises(CallFailed, match=r"no server answers at 127\.0\.0\.1:1"):
        await measure(settings("127.0.0.1:1", "sentiment"))


async def test_no_input_is_sent_twice_not_even_by_the_next_run(served: tuple[Server, str]) -> None:
    server, target = served
    for model in ("chat", "plain", "ner", "sentiment") * 2:
        await measure(settings(target, model, seconds=0.5, warmup=0.0))
    sent: list[str] = []
    for request in server.requests:
        if isinstance(request, classification_pb2.ClassifyRequest):
            sent += [entry.text for entry in request.inputs]
        elif isinstance(request, classification_pb2.ClassifyTokensRequest):
            sent += request.texts
        else:
            sent.append(request.prompt.text or request.prompt.chat.messages[0].content)
    assert len(sent) > 100
    assert len(set(sent)) == len(sent)


def test_each_task_has_a_call() -> None:
    assert {default_call(task, is_chat=False) for task in TASK_NAMES.values()} == CALLS.keys() - {"chat"}
    assert default_call("generation", is_chat=True) == "chat"
