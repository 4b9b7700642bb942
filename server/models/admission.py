"""Admission and order of calls: the bounded queue in front of one engine.

A call is admitted through `enter`, which rejects it at once when the queue is full or the wait would be too long. Each
of its requests to the engine then waits for its turn: by priority, and within a priority, callers take turns. The
engine is given only as many sequences as it runs in a step, so that requests wait here, where deadlines, priorities and
cancellations take effect. One caller may fill the queue while it is alone; a caller with less than its share is still
admitted. The engine, whose sequences may run for minutes, is never filled by one caller: there is room for the next.

Long prompts are read by the engine in many steps. Only some are read at a time, so that the steps have room for others.

Knows callers, numbers and time; nothing of models or gRPC.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tuneserve.server import turns
from tuneserve.server.call.errors import DeadlinePassed, Overloaded
from tuneserve.server.call.shares import share, subtract
from tuneserve.server.models.fair_queue import FairQueue, Waiter

# Time constant, in seconds, of the average of the engine's speed.
_MEMORY = 5.0
# A call is admitted if its expected wait is at most this share of the longest wait. The expected wait is an estimate,
# and the engine gets slower while many calls are rejected: with too little margin, the calls admitted last would wait
# for nothing.
_SURE = 0.6
# A caller may run so many times as many sequences as are free, and have so many times as many long prompts read: see
# _Slots. From nine sequences on, and from three prompts on, some are left for the next caller.
_AHEAD = 8
_LONG_AHEAD = 2
# Within a priority of ours, the engine takes a caller's first sequence before any caller's second, and so on. It knows
# priorities alone: so many of its own are one of ours.
_RANKS = 1 << 16
TOO_LATE = "the deadline passed while the call waited for the engine"
# The shortest retry delay told to a rejected caller, in milliseconds.
_RETRY_MS = 100


@dataclass(eq=False)
class Entry:
    """A call's place in a queue."""

    priority: int = 0
    deadline: float | None = None  # in the queue's time
    caller: Hashable = field(default_factory=turns.caller)
    calls: int = 1  # that it is for
    # Admitted, and without a request so far: it counts as waiting, because its texts are being tokenized.
    is_coming: bool = False
    waiting_tokens: int = 0


@dataclass(eq=False)
class Turn:
    """A request that the engine may run."""

    caller: Hashable
    sequences: int
    priority: int = 0  # in the engine
    reads: bool = False  # a long prompt, still being read


class Admission:
    """The queue of one engine."""

    def __init__(
        self,
        name: str,
        *,
        slots: int,
        max_calls: int,
        max_tokens: int,
        max_wait: float,
        long_prompts: int = 1,
        rejected: Callable[[str], object] = lambda reason: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`slots` sequences run at a time, and of `long_prompts` of them the prompt is being read. At most `max_calls`
        calls are admitted, `max_tokens` tokens wait, and no call waits for longer than `max_wait` seconds. `rejected`
        is called with the reason of each rejection.

        When several callers share the queue, a caller with less than its share is admitted beyond these limits: up to
        twice as many calls, and the tokens of its share, or of one call.
        """
        self.calls = 0
        self.waiting_sequences = 0
        self.waiting_tokens = 0
        self.empty = asyncio.Event()
        self.empty.set()
        self._name = name
        self._sequences = _Slots(slots, _AHEAD)
        self._long = _Slots(long_prompts, _LONG_AHEAD)
        self._max_calls = max_calls
        self._max_tokens = max_tokens
        self._max_wait = max_wait
        self._rejected = rejected
        self._clock = clock
        self._calls_of: Counter[Hashable] = Counter()
        self._tokens_of: Counter[Hashable] = Counter()  # waiting tokens
        # Counts for `expected_wait`, by priority and caller: waiting sequences, and admitted calls before their first
        # request.
        self._ahead: dict[int, Counter[Hashable]] = {}
        self._speed = _Speed()

    @property
    def running(self) -> int:
        """The number of sequences that the engine was given."""
        return self._sequences.used

    @property
    def waiting(self) -> int:
        """The number of waiting requests to the engine."""
        return len(self._sequences.waiting) + len(self._long.waiting)

    @contextmanager
    def enter(self, entry: Entry) -> Iterator[None]:
        """Holds a call's place in the queue, or those of several. Raises Overloaded at once if there is no room."""
        more = self._calls_of[entry.caller] + entry.calls > share(self._calls_of, entry.caller, self._max_calls)
        if self.calls + entry.calls > self._max_calls * (1 if more else 2):
            what = f"{self._max_calls} calls waiting or running, which is its limit"
            raise self._overloaded(entry, "QUEUE_FULL", what)
        expected = self.expected_wait(entry.priority)
        if expected > _SURE * self._max_wait:
            what = f"a queue of about {expected:.1f} s; the longest allowed wait is {self._max_wait:g} s"
            raise self._overloaded(entry, "QUEUE_WAIT", what, expected - self._max_wait)
        entry.is_coming = True
        self._count_ahead(entry, entry.calls)
        self.calls += entry.calls
        self._calls_of[entry.caller] += entry.calls
        self.empty.clear()
        try:
            yield
        finally:
            self._arrived(entry)
            self.calls -= entry.calls
            subtract(self._calls_of, entry.caller, entry.calls)
            if not self.calls:
                self.empty.set()

    async def wait(self, entry: Entry, sequences: int, tokens: int, is_long: bool = False) -> Turn:
        """Waits until the engine has room for a request of a call; `release` must follow, and, of a long prompt, `read`
        when it has been read. Raises Overloaded if too many tokens wait already or the wait is too long, and
        DeadlinePassed.
        """
        self._arrived(entry)
        turn, until = Turn(entry.caller, sequences), self._clock() + self._max_wait
        try:
            if is_long:
                await self._take(self._long, entry, 1, tokens, until)
                turn.reads = True
            await self._take(self._sequences, entry, sequences, 0 if is_long else tokens, until)
        except BaseException:
            self.read(turn)
            raise
        rank = self._sequences.used_by[entry.caller] - sequences
        turn.priority = entry.priority * _RANKS + min(rank, _RANKS - 1)
        return turn

    def read(self, turn: Turn) -> None:
        """A turn's prompt has been read. May be called again, and for any prompt."""
        if turn.reads:
            turn.reads = False
            self._free(self._long, turn.caller, 1)

    def release(self, turn: Turn) -> None:
        """The engine has finished a request: the next requests get their turns."""
        if self.waiting_sequences:
            self._speed.done(turn.sequences, self._clock())
        self.read(turn)
        self._free(self._sequences, turn.caller, turn.sequences)

    def expected_wait(self, priority: int = 0) -> float:
        """Seconds that a call of this priority would wait at the engine's recent speed; 0 when unknown."""
        if not self._speed.per_second:
            return 0.0
        own = self._ahead.get(priority, Counter())[turns.caller()]
        ahead = sum(counts.total() for one, counts in self._ahead.items() if one < priority)
        # Within its own priority, every other caller gets at most as many turns before it.
        ahead += sum(min(count, own + 1) for count in self._ahead.get(priority, Counter()).values())
        # Free slots are used first.
        return max(0, ahead - self._sequences.room(turns.caller())) / self._speed.per_second

    def _arrived(self, entry: Entry) -> None:
        if entry.is_coming:
            entry.is_coming = False
            self._count_ahead(entry, -entry.calls)

    async def _take(self, slots: "_Slots", entry: Entry, count: int, tokens: int, until: float) -> None:
        """Waits for slots, and takes them."""
        # Whoever waits while there is room may have no more, so nobody is overtaken.
        if slots.room(entry.caller):
            slots.take(entry.caller, count)
            return
        caller = entry.caller
        more = self._tokens_of[caller] + tokens > share(self._tokens_of, caller, self._max_tokens)
        others = self._tokens_of[caller] and not entry.waiting_tokens
        if tokens and more and others and self.waiting_tokens + tokens > self._max_tokens:
            raise self._overloaded(entry, "QUEUE_TOKENS", f"{self.waiting_tokens} tokens waiting, near its limit")
        if not self.waiting_sequences:
            self._speed.saturated(self._clock())
        granted = asyncio.get_running_loop().create_future()
        waiter = Waiter(caller, entry.priority, count, tokens, granted)
        slots.waiting.add(waiter)
        self._count_ahead(waiter, count)
        self._tokens_of[caller] += tokens
        entry.waiting_tokens += tokens
        self.waiting_sequences += count
        self.waiting_tokens += tokens
        left = math.inf if entry.deadline is None else max(0.0, entry.deadline - self._clock())
        longest = max(0.0, until - self._clock())
        try:
            async with asyncio.timeout(min(longest, left)):
                await granted
        except BaseException as error:
            if granted.done() and not granted.cancelled():
                # Its turn came in the moment in which it gave up.
                self._free(slots, caller, count)
            elif slots.waiting.remove(waiter):
                self._forget(waiter)
            if isinstance(error, TimeoutError) and left < longest:
                raise DeadlinePassed(TOO_LATE) from None
            if isinstance(error, TimeoutError):
                raise self._overloaded(entry, "QUEUE_WAIT", f"kept the call waiting for {self._max_wait:g} s") from None
            raise
        finally:
            entry.waiting_tokens -= tokens

    def _free(self, slots: "_Slots", caller: Hashable, count: int) -> None:
        slots.free(caller, count)
        while waiter := slots.next():
            self._forget(waiter)
            # A cancelled waiter may still be queued: its task has not run since it was cancelled.
            if not waiter.granted.cancelled():
                slots.take(waiter.caller, waiter.sequences)
                waiter.granted.set_result(None)

    def _forget(self, waiter: Waiter) -> None:
        """Counts a waiter no more: its turn came, or it gave up."""
        self._count_ahead(waiter, -waiter.sequences)
        subtract(self._tokens_of, waiter.caller, waiter.tokens)
        self.waiting_sequences -= waiter.sequences
        self.waiting_tokens -= waiter.tokens

    def _count_ahead(self, one: Entry | Waiter, more: int) -> None:
        counts = self._ahead.setdefault(one.priority, Counter())
        subtract(counts, one.caller, -more)
        if not counts:
            del self._ahead[one.priority]

    def _overloaded(self, entry: Entry, reason: str, what: str, seconds: float = 0.0) -> Overloaded:
        # Several calls that find no room together are tried again one by one, and counted then.
        for _ in range(entry.calls if reason == "QUEUE_WAIT" or entry.calls == 1 else 0):
            self._rejected(reason)
        retry = max(_RETRY_MS, math.ceil(1000 * min(seconds, self._max_wait)))
        return Overloaded(f"model {self._name!r} has {what}", reason, retry)


class _Slots:
    """Slots of one kind in an engine, and who waits for them: sequences, or long prompts that it reads.

    A caller is given more while it uses less than `ahead` times as many as are free.

    So with 8, a caller that is alone uses eight of nine, and two use eight of seventeen each: the dynamic thresholds of
    Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches" (1998).
    """

    def __init__(self, size: int, ahead: int) -> None:
        self.size = size
        self.used = 0
        self.used_by: Counter[Hashable] = Counter()
        self.waiting = FairQueue()
        self._ahead = ahead

    def room(self, caller: Hashable) -> int:
        """Returns how many more slots a caller may use now."""
        left = self._ahead * (self.size - self.used) - self.used_by[caller]
        return max(0, -(-left // (self._ahead + 1)))

    def take(self, caller: Hashable, count: int) -> None:
        """Uses slots: more than there are, if a request needs more."""
        self.used += count
        self.used_by[caller] += count

    def free(self, caller: Hashable, count: int) -> None:
        """Uses slots no more."""
        self.used -= count
        subtract(self.used_by, caller, count)

    def next(self) -> Waiter | None:
        """Removes and returns the next waiter that may have slots; None if there is none."""
        return self.waiting.next(self.room) if self.used < self.size else None


class _Speed:
    """Sequences that the engine finishes per second, measured only while more are waiting."""

    def __init__(self) -> None:
        self._count = 0.0
        self._seconds = 0.0
        self._last = 0.0

    @property
    def per_second(self) -> float:
        """The rate; 0 while there is too little data."""
        return self._count / self._seconds if self._seconds > 0 and self._count >= 1 else 0.0

    def saturated(self, now: float) -> None:
        """A queue begins to form. Older measurements count less, the longer ago the last queue ended."""
        self._fade(now - self._last)
        self._last = now

    def done(self, sequences: int, now: float) -> None:
        """Counts sequences that finished while others waited."""
        passed = now - self._last
        self._fade(passed)
        self._count += sequences
        self._seconds += passed
        self._last = now

    def _fade(self, seconds: float) -> None:
        fade = math.exp(-seconds / _MEMORY)
        self._count *= fade
        self._seconds *= fade
