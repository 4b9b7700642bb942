"""What a caller is told of an error: its status, and details that programs can read."""

import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2
from google.rpc import error_details_pb2 as rpc

from tuneserve.server.call import errors
from tuneserve.server.call.errors import InvalidInput, to_status

LONG = "ß" * 5000
MANY = InvalidInput("a", LONG, *(InvalidInput(f"b{number}", LONG) for number in range(100)))
# The error, its code and reason, and the details that not all of them have.
CASES = [
    (InvalidInput("top_k", "is 0"), "INVALID_ARGUMENT", "INVALID_FIELD", [rpc.BadRequest]),
    (InvalidInput(LONG, LONG), "INVALID_ARGUMENT", "INVALID_FIELD", [rpc.BadRequest]),
    (MANY, "INVALID_ARGUMENT", "INVALID_FIELD", [rpc.BadRequest]),
    (errors.NotFound("model", "x", ["a"]), "NOT_FOUND", "MODEL_NOT_FOUND", [rpc.ResourceInfo]),
    (errors.AlreadyLoaded("x@1"), "ALREADY_EXISTS", "ALREADY_LOADED", [rpc.ResourceInfo]),
    (errors.WrongState("5 GiB", "NO_MEMORY"), "FAILED_PRECONDITION", "NO_MEMORY", [rpc.PreconditionFailure]),
    (errors.WrongTask("x", "y", "z"), "FAILED_PRECONDITION", "WRONG_TASK", [rpc.PreconditionFailure]),
    (errors.Changed("another etag"), "ABORTED", "CHANGED", []),
    (errors.Unauthenticated("no key"), "UNAUTHENTICATED", "UNAUTHENTICATED", []),
    (errors.NotAllowed("no"), "PERMISSION_DENIED", "PERMISSION_DENIED", []),
    (errors.Overloaded("full", "QUEUE_FULL", 100), "RESOURCE_EXHAUSTED", "QUEUE_FULL", [rpc.RetryInfo]),
    (
        errors.Overloaded("spent", "TOKEN_QUOTA", 100),
        "RESOURCE_EXHAUSTED",
        "TOKEN_QUOTA",
        [rpc.RetryInfo, rpc.QuotaFailure],
    ),
    (errors.DeadlinePassed("late"), "DEADLINE_EXCEEDED", "DEADLINE_PASSED", []),
    (errors.Unavailable("loads"), "UNAVAILABLE", "UNAVAILABLE", []),
    (ZeroDivisionError("a secret"), "INTERNAL", "INTERNAL", []),
]


def unpacked(status: status_pb2.Status, kind: type[Message]) -> Message:
    [found] = [detail for detail in status.details if detail.Is(kind.DESCRIPTOR)]
    message = kind()
    found.Unpack(message)
    return message


@pytest.mark.parametrize(("error", "code", "reason", "kinds"), CASES)
def test_each_has_a_reason_and_its_details(error, code, reason, kinds):
    status = to_status(error, "the-id")
    assert code_pb2.Code.Name(status.code) == code
    assert "secret" not in status.message
    info = unpacked(status, rpc.ErrorInfo)
    assert (info.reason, info.domain) == (reason, "tuneserve.dev")
    assert unpacked(status, rpc.RequestInfo).request_id == "the-id"
    expected = [kind.DESCRIPTOR.full_name for kind in (*kinds, rpc.ErrorInfo, rpc.RequestInfo)]
    assert [detail.TypeName() for detail in status.details] == expected
    # Escaped and in base 64 it has to fit into the headers that clients take.
    assert len(status.message.encode()) * 3 + status.ByteSize() * 4 / 3 < 8000


def test_every_class_is_among_the_cases():
    def below(kind: type) -> set[type]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    assert {type(error) for error, *_ in CASES} >= below(errors.CallError) - {errors.CallError}


def test_all_fields_are_named_at_once():
    found = InvalidInput("a", "is 1", InvalidInput("b", "is 2"), InvalidInput("c", "is 3", InvalidInput("d", "is 4")))
    bad = unpacked(to_status(found, "x"), rpc.BadRequest)
    assert {one.field: one.description for one in bad.field_violations} == {
        "a": "is 1",
        "b": "is 2",
        "c": "is 3",
        "d": "is 4",
    }
    assert str(found) == "a: is 1; b: is 2; c: is 3; d: is 4"
    errors.refuse([])
    with pytest.raises(InvalidInput, match="a: is 1; b: is 2"):
        errors.refuse([InvalidInput("a", "is 1"), InvalidInput("b", "is 2")])
