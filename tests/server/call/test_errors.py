"""What a caller is told of an error: its status, and details that programs can read."""

from collections.abc import Iterable

import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2
from google.rpc import error_details_pb2 as rpc

from tuneserve.server.call import errors
from tuneserve.server.call.errors import InvalidInput, NotFound, Violations, to_status

LONG = "ß" * 5000
MANY = InvalidInput("a", LONG, *((f"b{number}", LONG) for number in range(100)), left_out=5)
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
    (errors.Full("no room"), "RESOURCE_EXHAUSTED", "FEEDBACK_FULL", []),
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


def named(error: InvalidInput) -> list[tuple[str, str]]:
    """What a program reads of the error."""
    bad = unpacked(to_status(error, "x"), rpc.BadRequest)
    return [(one.field, one.description) for one in bad.field_violations]


def collected(fields: Iterable[str], raised: Exception | None = None) -> InvalidInput:
    def run() -> None:
        with Violations() as wrong:
            for field in fields:
                wrong.add(field, "is bad")
            if raised:
                raise raised

    with pytest.raises(InvalidInput) as caught:
        run()
    return caught.value


def test_all_fields_are_named_at_once():
    found = InvalidInput("a", "is 1", ("b", "is 2"), ("c", "is 3"))
    assert named(found) == [("a", "is 1"), ("b", "is 2"), ("c", "is 3")]
    assert str(found) == "a: is 1; b: is 2; c: is 3"
    assert str(found.renamed(str.upper)) == "A: is 1; B: is 2; C: is 3"


def test_violations_are_raised_at_the_end_of_their_block():
    with Violations():
        pass
    assert collected(["a", "b"]).violations == (("a", "is bad"), ("b", "is bad"))
    # A field that is too large to go on ends the block, and comes last.
    assert str(collected(["a"], InvalidInput("b", "is huge"))) == "a: is bad; b: is huge"
    assert str(collected([], InvalidInput("b", "is huge"))) == "b: is huge"
    # Fields go before the state of the server, and not before its defects.
    with pytest.raises(NotFound), Violations():
        raise NotFound("model", "x", [])
    assert str(collected(["a"], NotFound("model", "x", []))) == "a: is bad"
    with pytest.raises(ZeroDivisionError):
        collected(["a"], ZeroDivisionError())


def test_of_many_violations_the_first_are_named_and_the_others_counted():
    names = [f"sampling.stop_token_ids[{index}]" for index in range(100)]
    found = collected(names)
    assert named(found) == [*((name, "is bad") for name in names[:32]), ("request", "has 68 more violations")]
    assert str(found).endswith("; and 68 more")
    again = collected(["a"], found)
    assert named(again)[-1] == ("request", "has 69 more violations")
    with pytest.raises(InvalidInput) as caught, Violations() as wrong:
        wrong.each(range(1 << 20), lambda index: (names[index], "is bad"))
    assert named(caught.value)[31:] == [(names[31], "is bad"), ("request", f"has {(1 << 20) - 32} more violations")]


def test_long_names_leave_room_for_every_description():
    found = collected([f"{index:0200}" for index in range(32)])
    *shown, rest = named(found)
    assert {description for _, description in shown} == {"is bad"}
    assert rest == ("request", f"has {32 - len(shown)} more violations")
    # What short descriptions leave is for the long ones.
    assert [len(text) for _, text in named(InvalidInput("a", "x", ("b", "y" * 500), ("c", "z" * 700)))] == [1, 500, 700]
