"""What the server's errors become."""

import asyncio
import pickle
import time
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2

from tuneserve.client import (
    Client,
    DeadlineExceeded,
    FieldViolation,
    InvalidInput,
    NotFound,
    Overloaded,
    Unauthenticated,
    WrongState,
    errors,
)
from tuneserve.server.call import errors as server_errors
from tuneserve.server.call.errors import to_status


async def test_of_the_real_server(asking: Any, served: Any) -> None:
    ask = asking(served.app.address)
    with pytest.raises(NotFound, match="served: ") as caught:
        await ask("classify", "other", "a")
    assert (caught.value.reason, caught.value.domain) == ("MODEL_NOT_FOUND", "tuneserve.dev")
    assert caught.value.request_id
    assert caught.value.request_id in str(caught.value)
    with pytest.raises(InvalidInput) as refused:
        await ask("classify", "sentiment", ["a", "", ""])
    assert {violation.field for violation in refused.value.violations} == {"inputs[1].text", "inputs[2].text"}
    assert all(violation.description for violation in refused.value.violations)
    with pytest.raises(WrongState) as wrong:
        await ask("stream", "sentiment", "a")
    assert (wrong.value.reason, wrong.value.code) == ("WRONG_TASK", grpc.StatusCode.FAILED_PRECONDITION)


async def test_the_real_servers_pause_is_kept(asking: Any, served: Any, until: Any) -> None:
    engine, address = served.engines["sentiment"], served.app.address
    rejections = served.app.metrics.rejections.labels("sentiment", "queue_full")._value
    before = rejections.get()
    engine.delay = 60
    # Of the same kind, so that it is one connection: others would have room beside a caller that fills the queue.
    ask = asking(address)
    others = [asyncio.create_task(ask("classify", "sentiment", "a film", timeout=3)) for _ in range(4)]
    await until(lambda: engine.running == 4)
    started = time.monotonic()
    with pytest.raises(Overloaded) as caught:
        await asking(address, attempts=3)("classify", "sentiment", "a film")
    # 100 ms before each of the others.
    assert time.monotonic() - started >= 0.19
    assert (rejections.get() - before, caught.value.reason, caught.value.retry_after) == (3, "QUEUE_FULL", 0.1)
    await asyncio.gather(*others, return_exceptions=True)
    await until(lambda: engine.running == 0)


async def test_a_deadline_ends_the_call(asking: Any, served: Any, until: Any) -> None:
    engine = served.engines["sentiment"]
    engine.delay = 0.5
    with pytest.raises(DeadlineExceeded):
        await asking(served.app.address)("classify", "sentiment", "a", timeout=0.1)
    await until(lambda: engine.running == 0)


# Of each of the server's errors: what it is here.
KINDS = [
    (server_errors.InvalidInput("a", "b", ("c", "d")), errors.InvalidInput),
    (server_errors.NotFound("adapter", "a", ["b"]), errors.NotFound),
    (server_errors.WrongState("a", "UNLOADING"), errors.WrongState),
    (server_errors.Unauthenticated("a"), errors.Unauthenticated),
    (server_errors.NotAllowed("a"), errors.NotAllowed),
    (server_errors.Overloaded("a", "CALLS", 1500), errors.Overloaded),
    (server_errors.DeadlinePassed("a"), errors.DeadlineExceeded),
    (server_errors.Unavailable("a"), errors.Unavailable),
    (server_errors.Changed("a"), errors.CallError),
    (RuntimeError("a secret"), errors.CallError),
]


def failed(code: int, message: str, *metadata: tuple[str, Any]) -> Any:
    """What gRPC raises."""
    [status] = [one for one in grpc.StatusCode if one.value[0] == code]
    return SimpleNamespace(code=lambda: status, details=lambda: message, trailing_metadata=lambda: metadata)


@pytest.mark.parametrize(("raised", "kind"), KINDS)
def test_of_each_of_the_servers(raised: Exception, kind: type[errors.CallError]) -> None:
    status = to_status(raised, "id")
    error = errors.of(failed(status.code, status.message, ("grpc-status-details-bin", status.SerializeToString())))
    assert type(error) is kind
    assert error.request_id == "id"
    assert error.reason == getattr(raised, "reason", "INTERNAL")
    if kind is errors.InvalidInput:
        assert error.violations == (FieldViolation("a", "b"), FieldViolation("c", "d"))
    assert error.retry_after == (1.5 if kind is errors.Overloaded else None)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))


def test_details_that_are_none() -> None:
    for details in (b"\xff\xff", b"", any_pb2.Any(type_url="x", value=b"\xff").SerializeToString()):
        error = errors.of(failed(16, "", ("grpc-status-details-bin", details), ("x-request-id", "r")))
        assert isinstance(error, Unauthenticated)
        assert (str(error), error.reason, error.violations, error.request_id) == ("no reason given", "", (), "r")
    assert errors.of(failed(13, "lost")).request_id == ""


def test_a_closed_client(failing: Any) -> None:
    with failing() as server:
        with Client(server.address) as client:
            client.classify("m", "a")
        with pytest.raises(ValueError, match="closed channel"):
            client.classify("m", "a")
