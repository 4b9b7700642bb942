"""What can go wrong with a call, and the one place where it becomes a gRPC status.

    CallError
    ├── InvalidInput     INVALID_ARGUMENT    BadRequest.FieldViolation with the field's path
    ├── UnknownModel     NOT_FOUND           ResourceInfo; the message lists what exists
    ├── WrongTask        UNIMPLEMENTED       the message says what the model can do
    ├── Overloaded       RESOURCE_EXHAUSTED  RetryInfo and grpc-retry-pushback-ms
    └── Unavailable      UNAVAILABLE         loading, draining or dead
    anything else        INTERNAL            fixed text: never the exception's own, a path or a prompt

Servicers raise these and never name a status code.
"""

from collections.abc import Sequence

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2


class CallError(Exception):
    """A call that ends without an answer, for a reason its caller may know."""

    code: int = code_pb2.INTERNAL

    def details(self) -> Sequence[Message]:
        """google.rpc detail messages for the status."""
        return ()


class InvalidInput(CallError):
    """A field of the request holds something that is not allowed."""

    code = code_pb2.INVALID_ARGUMENT

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description

    def details(self) -> Sequence[Message]:
        violation = error_details_pb2.BadRequest.FieldViolation(field=self.field, description=self.description)
        return (error_details_pb2.BadRequest(field_violations=[violation]),)


class UnknownModel(CallError):
    """No model of that name."""

    code = code_pb2.NOT_FOUND

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"model {name!r} is not served here; served: {', '.join(known)}")
        self.name = name

    def details(self) -> Sequence[Message]:
        return (error_details_pb2.ResourceInfo(resource_type="model", resource_name=self.name),)


class WrongTask(CallError):
    """The model exists but does something else."""

    code = code_pb2.UNIMPLEMENTED

    def __init__(self, name: str, task: str, methods: str) -> None:
        super().__init__(f"model {name!r} does {task}: it answers {methods}")


class Overloaded(CallError):
    """The model's queue is full."""

    code = code_pb2.RESOURCE_EXHAUSTED

    def __init__(self, name: str, limit: int, retry_ms: int) -> None:
        super().__init__(f"model {name!r} has {limit} calls waiting or running, which is its limit")
        self.retry_ms = retry_ms

    def details(self) -> Sequence[Message]:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(self.retry_ms)
        return (error_details_pb2.RetryInfo(retry_delay=delay),)


class Unavailable(CallError):
    """The model loads, drains or failed."""

    code = code_pb2.UNAVAILABLE


def to_status(error: BaseException, request_id: str) -> status_pb2.Status:
    """Returns the status a caller gets to see. Only the text of our own errors is passed on."""
    if isinstance(error, CallError):
        message, code, details = str(error), error.code, error.details()
    else:
        message, code, details = (
            "internal error; the server's log has more under this request id",
            code_pb2.INTERNAL,
            (),
        )
    status = status_pb2.Status(code=code, message=f"{message} (request {request_id})")
    for detail in (*details, error_details_pb2.RequestInfo(request_id=request_id)):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status
