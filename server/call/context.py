"""The current call: its caller, what it asks for, and where its time goes.

Code that writes a log line, a metric or a span, or calls the engine, gets the call from here: it is not passed as an
argument.
"""

import itertools
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

from tuneserve.server.call.tenants import Tenant
from tuneserve.server.engine.interface import Ticket
from tuneserve.server.metrics import Metrics

HEADER = "x-request-id"

# Request ids that a caller may choose: the id is echoed, logged, and names the request in the engine.
_ALLOWED = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# A stream may run for days: only this many of its stages are kept one by one, the others only as a sum.
_MAX_STAGES = 64
# The server's own ids: the process, then a counter. The system's random numbers would cost more than all else here.
_PROCESS = secrets.token_hex(4)
_calls = itertools.count(1)
_tickets = itertools.count(1)


class Stage(NamedTuple):
    """A part of a call's time: queue, tokenize or engine. Nanoseconds since the epoch."""

    name: str
    start_ns: int
    end_ns: int


async def _at_once() -> None:
    """Does not wait."""


@dataclass
class Call:
    """One call of our services."""

    request_id: str  # as the caller knows it
    method: str  # "Classify"; empty until the call begins
    tenant: Tenant
    metadata: Mapping[str, str]  # what the caller sent, without binary values
    metrics: Metrics  # where it is counted
    service: str = ""
    kind: str = "unary"  # server_stream, bidi_stream
    caller: Hashable = ""  # the unit of fair sharing: a tenant, or an address
    refused: Exception | None = None  # why the call may not run
    names: Sequence[str] = ()  # in the connection's client certificate, if certificates may name a tenant
    deadline: float | None = None  # on time.monotonic's clock
    asked: str = ""  # the model name as the caller wrote it
    model: str = ""
    version: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 1  # of a stream, that are answered together
    # Takes tokens from the caller's quota.
    charge: Callable[[int], object] = lambda tokens: None
    # Counts one more request of this call against its caller's quota: for streams of requests.
    admit: Callable[[], None] = lambda: None
    # Waits for the turn in which work on this call, or on one request of it, begins.
    enter: Callable[[], Awaitable[None]] = _at_once
    # Counts this many bytes while the request is worked on; raises Overloaded if all requests together hold too many.
    hold: Callable[[int], None] = lambda size: None
    # The same for one request of a stream: yields its `hold`.
    holding: Callable[[], AbstractContextManager[Callable[[int], None]]] = lambda: nullcontext(lambda size: None)
    stages: list[Stage] = field(default_factory=list)  # the first ones
    stage_ns: dict[str, int] = field(default_factory=dict)  # total time by stage name
    # Prompts and outputs, for the log line; kept only if the server's settings say so.
    content: dict[str, list[str]] | None = None
    trace: Mapping[str, str] = field(default_factory=dict)
    # When the call began; a request of a stream begins later than the stream.
    started_ns: int = field(init=False, default_factory=time.time_ns)
    _began_ns: int = field(init=False, default_factory=time.monotonic_ns)

    def begin(self, name: str, kind: str, seconds: float | None) -> None:
        """Begins the call, once gRPC tells its method, /SERVICE/METHOD, and the seconds until its deadline."""
        _, self.service, self.method = name.split("/", 2)
        self.kind, self.deadline = kind, None if seconds is None else time.monotonic() + seconds

    @property
    def began(self) -> float:
        """On time.monotonic's clock, in seconds."""
        return self._began_ns / 1e9

    def now_ns(self) -> int:
        """Nanoseconds since the epoch at the call's start, plus the monotonic time since: if the machine's clock is set
        meanwhile, no stage gets longer or negative.
        """
        return self.started_ns + time.monotonic_ns() - self._began_ns

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures a stage of the call. Stages of the same name add up."""
        start = self.now_ns()
        try:
            yield
        finally:
            end = self.now_ns()
            self.stage_ns[name] = self.stage_ns.get(name, 0) + end - start
            if len(self.stages) < _MAX_STAGES:
                self.stages.append(Stage(name, start, end))

    def count(self, prompt: int = 0, completion: int = 0) -> None:
        """Counts tokens as the engine reads or writes them, so that they are charged however the call ends."""
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        self.charge(prompt + completion)

    def note(self, kind: str, *texts: str) -> None:
        """Keeps prompts or outputs, if the server's settings say so."""
        if self.content is not None:
            self.content.setdefault(kind, []).extend(texts)

    def ticket(
        self,
        priority: int = 0,
        adapter: str = "",
        lost: Callable[[int], object] = lambda tokens: None,
        read: Callable[[], object] | None = None,
    ) -> Ticket:
        """Returns what goes to the engine with one request of this call."""
        return Ticket(
            # Two calls may carry the same id from their callers, and one call may make several requests to the engine.
            request_id=f"{self.request_id}#{next(_tickets)}",
            priority=priority,
            adapter=adapter,
            # Prefix cache per tenant: response times must not reveal other tenants' prompts.
            salt=self.tenant.name,
            trace=self.trace,
            lost=lost,
            read=read,
        )

    def expired(self) -> bool:
        """Whether the caller's deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline


_current: ContextVar[Call] = ContextVar("call")


def current() -> Call:
    """Returns the call that is being answered."""
    return _current.get()


def begin(call: Call) -> None:
    """Makes a call the current one, for this task and those it starts."""
    _current.set(call)


def request_id(metadata: Mapping[str, str]) -> str:
    """Returns the id that the caller sent, or a new one."""
    sent = metadata.get(HEADER, "")
    return sent if _ALLOWED.fullmatch(sent) else f"{_PROCESS}{next(_calls):08x}"
