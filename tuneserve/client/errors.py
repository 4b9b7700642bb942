"""The exceptions of failed calls.

    CallError
    ├── InvalidInput      INVALID_ARGUMENT     `violations` has the path of each field, and what is allowed
    ├── NotFound          NOT_FOUND            no such model, version or adapter; the message lists what there is
    ├── WrongState        FAILED_PRECONDITION  e.g. the model has another task
    ├── Unauthenticated   UNAUTHENTICATED      no API key, or an unknown one
    ├── NotAllowed        PERMISSION_DENIED    the API key does not permit this call
    ├── Overloaded        RESOURCE_EXHAUSTED   the server is overloaded, or a quota is spent: see `retry_after`
    ├── Unavailable       UNAVAILABLE          no server answers, or the model is loading, draining or failed
    ├── DeadlineExceeded  DEADLINE_EXCEEDED    no answer within the call's timeout, its retries included
    └── itself            any other status, e.g. INTERNAL

Arguments of a wrong type or value raise TypeError or ValueError before the call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2


@dataclass(frozen=True)
class FieldViolation:
    """A field of the request with a value that is not allowed."""

    field: str  # its path, e.g. inputs[0].text
    description: str


class CallError(Exception):
    """A call that failed."""

    code: grpc.StatusCode
    reason: str  # stable, for programs, e.g. MODEL_NOT_FOUND; empty if the error is not from the server
    domain: str  # the domain of the reason: tuneserve.dev
    violations: Sequence[FieldViolation]
    retry_after: float | None  # seconds that the server asks to wait; None if it doesn't
    request_id: str  # the id in the server's log; empty if no server answered

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        *,
        reason: str = "",
        domain: str = "",
        violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.domain = domain
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.request_id = request_id


class InvalidInput(CallError):
    """Fields of the request have values that are not allowed."""


class NotFound(CallError):
    """No model, version or adapter of that name."""


class WrongState(CallError):
    """The call is valid, but not for this model or its present state."""


class Unauthenticated(CallError):
    """The call has no API key, or an unknown one."""


class NotAllowed(CallError):
    """The API key does not permit this call."""


class Overloaded(CallError):
    """Refused for now: the server is overloaded, or a quota is spent."""


class Unavailable(CallError):
    """No server answers, or the model is loading, is draining or has failed."""


class DeadlineExceeded(CallError):
    """No answer within the timeout."""


_CODES = {code.value[0]: code for code in grpc.StatusCode}
_KINDS: dict[grpc.StatusCode, type[CallError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInput,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: WrongState,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: NotAllowed,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def of(error: Any) -> CallError:
    """Returns the exception for the grpc.RpcError of a call."""
    metadata = dict(error.trailing_metadata() or ())
    status = _status(metadata.get("grpc-status-details-bin", b""))
    return _with_details(error.code(), error.details(), status, metadata.get("x-request-id", ""))


def of_status(status: Any) -> CallError:
    """Returns the exception for a status inside an answer: a google.rpc.Status, or a message with its fields."""
    return _with_details(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, status)


def _with_details(code: grpc.StatusCode, message: str | None, status: Any, request_id: str = "") -> CallError:
    info, retry = _detail(status, error_details_pb2.ErrorInfo), _detail(status, error_details_pb2.RetryInfo)
    violations = _detail(status, error_details_pb2.BadRequest).field_violations
    return _KINDS.get(code, CallError)(
        message or "no reason given",
        code,
        reason=info.reason,
        domain=info.domain,
        violations=[FieldViolation(one.field, one.description) for one in violations],
        retry_after=retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None,
        request_id=_detail(status, error_details_pb2.RequestInfo).request_id or request_id,
    )


def _status(details: bytes) -> Any:
    try:
        return status_pb2.Status.FromString(details)
    except DecodeError:  # from something between us and the server
        return status_pb2.Status()


def _detail(status: Any, kind: Any) -> Any:
    """Returns the first detail of a kind; an empty message if there is none."""
    found = kind()
    for detail in status.details:
        try:
            if detail.Unpack(found):
                break
        except DecodeError:
            continue
    return found
