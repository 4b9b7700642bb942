"""The call that is being answered: who asked, what for, and where its time goes.

Whoever writes a log line, a metric or a span, or talks to the engine, finds it here without it being passed along.
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

# What a caller may choose: it is echoed, logged and names the request in the engine.
_ALLOWED = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# A stream may go on for days: so many of its parts are kept one by one, the others only as a sum.
_MAX_STAGES = 64
# Ids of ours: which process, and how many it made. The system's random numbers cost more than all else here.
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
    """One call of ours."""

    request_id: str  # as the caller knows it
    method: str  # "Classify"; empty until it begins
    tenant: Tenant
    metadata: Mapping[str, str]  # what the caller sent, without binary values
    metrics: Metrics  # where it is counted
    service: str = ""
    kind: str = "unary"  # server_stream, bidi_stream
    caller: Hashable = ""  # who shares with others: a tenant, or an address
    refused: Exception | None = None  # why it may not run
    names: Sequence[str] = ()  # of the certificate of its connection, where one may name a tenant
    deadline: float | None = None  # on time.monotonic's clock
    asked: str = ""  # the name that its caller used for a model
    model: str = ""
    version: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    # Takes tokens from the caller's quota.
    charge: Callable[[int], object] = lambda tokens: None
    # Counts one more request of this call against its caller's quota: for streams of requests.
    admit: Callable[[], None] = lambda: None
    # Waits for the turn in which work for this call, or for one request of it, begins.
    enter: Callable[[], Awaitable[None]] = _at_once
    # Counts so many bytes for as long as the request is worked on; raises Overloaded where those of all are too many.
    hold: Callable[[int], None] = lambda size: None
    # The same for one request of a stream: gives its `hold`.
    holding: Callable[[], AbstractContextManager[Callable[[int], None]]] = lambda: nullcontext(lambda size: None)
    stages: list[Stage] = field(default_factory=list)  # the first ones
    stage_ns: dict[str, int] = field(default_factory=dict)  # how long all of each name took
    # Prompts and outputs, for the log line; kept only where the server's settings say so.
    content: dict[str, list[str]] | None = None
    trace: Mapping[str, str] = field(default_factory=dict)
    # When it began; a part of a stream begins later than the whole.
    started_ns: int = field(init=False, default_factory=time.time_ns)
    _began_ns: int = field(init=False, default_factory=time.monotonic_ns)

    def begin(self, name: str, kind: str, deadline: float | None) -> None:
        """It is its turn: gRPC tells what it is only now. `name` is /SERVICE/METHOD."""
        _, self.service, self.method = name.split("/", 2)
        self.kind, self.deadline = kind, deadline

    @property
    def began(self) -> float:
        """On time.monotonic's clock, in seconds."""
        return self._began_ns / 1e9

    def now_ns(self) -> int:
        """Nanoseconds since the epoch as they were when the call began, plus what passed since: if the machine's clock
        is set meanwhile, no part of the call takes longer or less than nothing for it.
        """
        return self.started_ns + time.monotonic_ns() - self._began_ns

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures a part of the call. Parts of one name add up."""
        start = self.now_ns()
        try:
            yield
        finally:
            end = self.now_ns()
            self.stage_ns[name] = self.stage_ns.get(name, 0) + end - start
            if len(self.stages) < _MAX_STAGES:
                self.stages.append(Stage(name, start, end))

    def count(self, prompt: int = 0, completion: int = 0) -> None:
        """Counts tokens that the engine was given or has written: as it happens, so that no end of a call is free."""
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        self.charge(prompt + completion)

    def note(self, kind: str, *texts: str) -> None:
        """Keeps prompts or outputs, where the server's settings say so."""
        if self.content is not None:
            self.content.setdefault(kind, []).extend(texts)

    def ticket(
        self, priority: int = 0, adapter: str = "", lost: Callable[[int], object] = lambda tokens: None
    ) -> Ticket:
        """Returns what goes to the engine with one request of this call."""
        return Ticket(
            # Two calls may carry the same id of a caller's, and one call may ask the engine several times.
            request_id=f"{self.request_id}#{next(_tickets)}",
            priority=max(priority, self.tenant.priority),
            adapter=adapter,
            # How fast an answer comes tells a tenant nothing of others' prompts.
            salt=self.tenant.name,
            trace=self.trace,
            lost=lost,
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
