"""What can go wrong with a call, and the one place where it becomes a gRPC status.

    CallError
    ├── InvalidInput      INVALID_ARGUMENT     BadRequest with each field's path and what is allowed
    ├── NotFound          NOT_FOUND            ResourceInfo; the message lists what exists
    ├── AlreadyLoaded     ALREADY_EXISTS       ResourceInfo
    ├── WrongState        FAILED_PRECONDITION  PreconditionFailure; the message says what has to change first
    │   └── WrongTask                          the message says what the model can do
    ├── Changed           ABORTED              the message says what has changed since the caller read it
    ├── Unauthenticated   UNAUTHENTICATED      no key, or an unknown one
    ├── NotAllowed        PERMISSION_DENIED    the key is known, but may not do this
    ├── Overloaded        RESOURCE_EXHAUSTED   RetryInfo, grpc-retry-pushback-ms; QuotaFailure if a quota is spent
    ├── Full              RESOURCE_EXHAUSTED   what a tenant may keep is full; waiting does not help
    ├── DeadlinePassed    DEADLINE_EXCEEDED    the call never reached the engine
    └── Unavailable       UNAVAILABLE          loading, draining or dead
    anything else         INTERNAL             fixed text: never the exception's text, a path or a prompt

Each has an ErrorInfo, whose reason programs may rely on, and a RequestInfo. Servicers raise these errors and never
name a status code.
"""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

# The domain of the reasons in google.rpc.ErrorInfo.
DOMAIN = "tuneserve.dev"
# Bytes of a text in a status. Statuses are sent as headers, each text twice and escaped; clients accept 8 KiB of them.
_LONGEST = 800
_LONGEST_NAME = 200
# How many violations of a request are named; the others are counted. Names and descriptions share some bytes, of which
# each description gets a few.
MOST_VIOLATIONS = 32
_VIOLATIONS_BYTES = 2300
_SHORTEST = 24

T = TypeVar("T")


class CallError(Exception):
    """A call failed, for a reason that its caller may know."""

    code: int = code_pb2.INTERNAL
    reason: str = "INTERNAL"

    def details(self) -> Sequence[Message]:
        """google.rpc detail messages for the status, except those that every error has."""
        return ()


class InvalidInput(CallError):
    """Fields of the request have values that are not allowed."""

    code = code_pb2.INVALID_ARGUMENT
    reason = "INVALID_FIELD"

    def __init__(self, field: str, description: str, *more: tuple[str, str], left_out: int = 0) -> None:
        """`more` are other fields with their descriptions. `left_out` counts further violations."""
        self.field = field
        self.description = description
        self.violations: Sequence[tuple[str, str]] = ((field, description), *more)
        self.left_out = left_out
        texts = [f"{field}: {description}" for field, description in self.violations]
        super().__init__("; ".join(texts + [f"and {left_out} more"] * (left_out > 0)))

    def renamed(self, name: Callable[[str], str]) -> "InvalidInput":
        """Returns the same error with other names of its fields."""
        first, *more = [(name(field), description) for field, description in self.violations]
        return InvalidInput(*first, *more, left_out=self.left_out)

    def details(self) -> Sequence[Message]:
        bad, room = error_details_pb2.BadRequest(), _VIOLATIONS_BYTES
        for field, _ in self.violations[:MOST_VIOLATIONS]:
            name = _shortened(field, _LONGEST_NAME)
            size = len(name.encode())
            if size + _SHORTEST * (len(bad.field_violations) + 1) > room:
                break
            bad.field_violations.add(field=name)
            room -= size
        shown = len(bad.field_violations)
        for index, one in enumerate(bad.field_violations):
            # Bytes that short descriptions leave are for the later ones.
            one.description = _shortened(self.violations[index][1], min(_LONGEST, room // (shown - index)))
            room -= len(one.description.encode())
        if others := len(self.violations) - shown + self.left_out:
            bad.field_violations.add(field="request", description=f"has {others} more violations")
        return (bad,)


class Violations:
    """Collects what is wrong with a request: `with Violations() as wrong:` raises all of it at the end of the block, as
    one InvalidInput. An InvalidInput that is raised inside, because a field is too large to go on, ends the block and
    is added; any other CallError gives way to the violations before it.
    """

    __slots__ = ("_count", "_found")

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []
        self._count = 0

    def add(self, field: str, description: str) -> None:
        """Adds a violation."""
        self._count += 1
        if self._count <= MOST_VIOLATIONS:
            self._found.append((field, description))

    def each(self, items: Sequence[T], violation: Callable[[T], tuple[str, str]]) -> None:
        """Adds a violation, as field and description, for each item; of many items, it makes only the first ones."""
        for item in items[:MOST_VIOLATIONS]:
            self.add(*violation(item))
        self._count += len(items[MOST_VIOLATIONS:])

    def include(self, error: InvalidInput) -> None:
        """Adds the violations of an error."""
        self.each(error.violations, lambda one: one)
        self._count += error.left_out

    def __enter__(self) -> "Violations":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._found:
            return
        if isinstance(error, InvalidInput):
            self.include(error)
        elif error is not None and not isinstance(error, CallError):
            return
        first, *more = self._found
        raise InvalidInput(*first, *more, left_out=self._count - len(self._found)) from None


class NotFound(CallError):
    """No model, version, alias or adapter of that name."""

    code = code_pb2.NOT_FOUND

    def __init__(self, kind: str, name: str, known: Sequence[str]) -> None:
        self.kind = kind
        self.reason = f"{kind.upper()}_NOT_FOUND"
        self.name = _shortened(name, _LONGEST_NAME)
        super().__init__(f"{kind} {self.name!r} is not served here; served: {', '.join(known) or 'none'}")

    def details(self) -> Sequence[Message]:
        return (error_details_pb2.ResourceInfo(resource_type=self.kind, resource_name=self.name),)


class AlreadyLoaded(CallError):
    """Exactly this content is served under this name already."""

    code = code_pb2.ALREADY_EXISTS
    reason = "ALREADY_LOADED"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is loaded already")
        self.name = name

    def details(self) -> Sequence[Message]:
        return (error_details_pb2.ResourceInfo(resource_type="model", resource_name=self.name),)


class WrongState(CallError):
    """The call is valid, but not in the present state or with these settings."""

    code = code_pb2.FAILED_PRECONDITION

    def __init__(self, description: str, reason: str, subject: str = "server") -> None:
        """`subject` is what has to change: a model, an alias, or the server."""
        super().__init__(description)
        self.reason = reason
        self.subject = subject

    def details(self) -> Sequence[Message]:
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=self.reason,
            subject=_shortened(self.subject, _LONGEST_NAME),
            description=_shortened(str(self), _LONGEST),
        )
        return (error_details_pb2.PreconditionFailure(violations=[violation]),)


class WrongTask(WrongState):
    """The model exists but does something else."""

    def __init__(self, name: str, task: str, methods: str) -> None:
        super().__init__(f"model {name!r} does {task}: it answers {methods}", "WRONG_TASK", name)


class Changed(CallError):
    """What the caller read has changed since: its etag is not the current one."""

    code = code_pb2.ABORTED
    reason = "CHANGED"


class Unauthenticated(CallError):
    """No API key, or one that is not known."""

    code = code_pb2.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class NotAllowed(CallError):
    """The API key is known, but may not do this."""

    code = code_pb2.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class Overloaded(CallError):
    """Rejected for now. `reason` says why: QUEUE_FULL, QUEUE_TOKENS, QUEUE_WAIT, REQUEST_QUOTA, TOKEN_QUOTA, CALLS (too
    many calls run), REQUESTS (the requests that run hold too many bytes) or UNREAD (too many bytes were not read).
    """

    code = code_pb2.RESOURCE_EXHAUSTED

    def __init__(self, description: str, reason: str, retry_ms: int) -> None:
        super().__init__(description)
        self.reason = reason
        self.retry_ms = retry_ms

    def details(self) -> Sequence[Message]:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(self.retry_ms)
        retry = error_details_pb2.RetryInfo(retry_delay=delay)
        if not self.reason.endswith("_QUOTA"):
            return (retry,)
        violation = error_details_pb2.QuotaFailure.Violation(subject=self.reason, description=str(self))
        return retry, error_details_pb2.QuotaFailure(violations=[violation])


class Full(CallError):
    """No room for what the caller wants to keep, until somebody makes some."""

    code = code_pb2.RESOURCE_EXHAUSTED
    reason = "FEEDBACK_FULL"


class DeadlinePassed(CallError):
    """The caller's deadline passed while the call waited."""

    code = code_pb2.DEADLINE_EXCEEDED
    reason = "DEADLINE_PASSED"


class Unavailable(CallError):
    """The model is loading, is draining or has failed."""

    code = code_pb2.UNAVAILABLE
    reason = "UNAVAILABLE"


def to_status(error: BaseException, request_id: str) -> status_pb2.Status:
    """Returns the status for the caller. Only the text of our own errors is passed on."""
    if not isinstance(error, CallError):
        error = CallError("internal error; the server's log has more under this request id")
    status = status_pb2.Status(code=error.code, message=f"{_shortened(str(error), _LONGEST)} (request {request_id})")
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for detail in (*error.details(), info, error_details_pb2.RequestInfo(request_id=request_id)):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _shortened(text: str, limit: int) -> str:
    """Returns at most `limit` bytes of a text, which may come from the caller."""
    data = text.encode()
    return text if len(data) <= limit else data[:limit].decode(errors="ignore") + "…"
