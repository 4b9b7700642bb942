"""Whose turn it is: callers have theirs one after the other, on the event loop, in threads and before a call begins."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import Any, Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

# Seconds of work on the event loop, of all calls together, after which others have their turn.
_TURN = 0.003


class _Work:
    """Of one call: who it is for, and the seconds that it has taken of the event loop. Its tasks share it."""

    __slots__ = ("caller", "seconds")

    def __init__(self, caller: Hashable) -> None:
        self.caller = caller
        self.seconds = 0.0


_work: ContextVar[_Work | None] = ContextVar("work", default=None)


def belongs_to(caller: Hashable) -> None:
    """Says who the work of this task, and of those it starts, is for."""
    _work.set(_Work(caller))


def caller() -> Hashable:
    """Returns who the work of this task is for; an empty text where nobody said."""
    return _current().caller


def _current() -> _Work:
    work = _work.get()
    if work is None:
        _work.set(work := _Work(""))
    return work


class _Waiting:
    """What waits for its turn: callers have theirs one after the other, however much each has waiting. Of a caller's
    own it is what has waited longest; with `least_worked` that is so every other time, and between what has worked
    least so far.
    """

    def __init__(self, least_worked: bool = True) -> None:
        self._callers: dict[Hashable, dict[asyncio.Future[None], float]] = {}  # in the order of their turns
        self._by_age = itertools.cycle((not least_worked, True))

    def __bool__(self) -> bool:
        return bool(self._callers)

    def is_full(self, caller: Hashable, most: int) -> bool:
        """Whether a caller has a share of so many."""
        own, callers = self._callers.get(caller), len(self._callers)
        return len(own) >= most // callers if own else callers >= most

    async def turn(self, not_taken: Callable[[], object], work: _Work | None = None) -> None:
        """Waits for a turn. `not_taken` is called where it is given one and was cancelled meanwhile."""
        turn, work = asyncio.get_running_loop().create_future(), work or _current()
        caller = work.caller
        self._callers.setdefault(caller, {})[turn] = work.seconds
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                not_taken()
            raise
        finally:
            if own := self._callers.get(caller):
                own.pop(turn, None)
                if not own:
                    del self._callers[caller]

    def next(self) -> bool:
        """Gives one of them its turn. Returns whether any waits."""
        while self._callers:
            caller = next(iter(self._callers))
            own = self._callers.pop(caller)
            choose = next if next(self._by_age) else partial(min, key=own.__getitem__)
            turn = choose(iter(own))
            del own[turn]
            if own:
                self._callers[caller] = own
            if not turn.done():
                turn.set_result(None)
                return True
        return False


class _Turns:
    """Whose turn it is to work on one event loop. One of those that wait goes on each time the loop comes round."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._began: float | None = None  # the work of this time round
        self._waiting = _Waiting()

    def is_over(self, now: float) -> bool:
        """Whether enough was worked this time round."""
        if self._began is None:
            self._begin()
            return False
        return now - self._began > _TURN

    async def next(self) -> None:
        """Waits for a turn."""
        await self._waiting.turn(self._waiting.next)
        self._begin()

    def _begin(self) -> None:
        if self._began is None:
            self.loop.call_soon(self._came_round)
        self._began = time.monotonic()

    def _came_round(self) -> None:
        self._began = None
        if self._waiting and self._waiting.next():
            # Also where the chosen one does nothing.
            self._began = time.monotonic()
            self.loop.call_soon(self._came_round)


class Entrance:
    """Where the work of calls begins: of one each time the loop comes round, and of callers in turns. Others are taken
    in meanwhile, so that it is known whose they are; and what has begun gets on, before there is more of it.
    """

    def __init__(self) -> None:
        self._is_open = True
        # None of them has worked, and there may be thousands to look at.
        self._waiting = _Waiting(least_worked=False)

    async def enter(self, caller: Hashable = None) -> None:
        """Waits for a turn, if others wait or have just had theirs; a caller's, where this task's work has none yet."""
        if self._is_open:
            self._is_open = False
            asyncio.get_running_loop().call_soon(self._came_round)
        else:
            await self._waiting.turn(lambda: None, None if caller is None else _Work(caller))

    def is_full(self, caller: Hashable, most: int) -> bool:
        """Whether of so many that may wait a caller has its share."""
        return self._waiting.is_full(caller, most)

    def _came_round(self) -> None:
        if self._waiting.next():
            asyncio.get_running_loop().call_soon(self._came_round)
        else:
            self._is_open = True


class Threads:
    """Threads for work of many callers, each of whom has its turn, however much others have for them."""

    def __init__(self, count: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=name)
        # For each thread, work that it has, and what it does next.
        self._free = 2 * count
        self._waiting = _Waiting()

    async def run(self, work: Callable[..., Out], *arguments: Any) -> Out:
        """Returns what work returns. What has begun when its caller is cancelled goes on to its end."""
        loop = asyncio.get_running_loop()
        if self._free:
            self._free -= 1
        else:
            await self._waiting.turn(self._done)
        running = self._threads.submit(work, *arguments)

        def done(_: "Future[Any]") -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._done)

        running.add_done_callback(done)
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        """Ends them. What has not begun is cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _done(self) -> None:
        if not self._waiting.next():
            self._free += 1


# Those of the loop that asked last, for they are asked for with every token: a process has one loop, but in tests.
_latest: _Turns | None = None


class in_turns(Generic[In]):
    """Yields the items of work that the event loop does itself; whenever that took some milliseconds, of this call or
    of others, those that wait go first.

    What is done with each item should be short. No generator, which somebody would have to close.
    """

    def __init__(self, items: Iterable[In]) -> None:
        self._items = iter(items)
        self._turns = _turns()
        self._work = _current()
        self._since: float | None = None

    def __aiter__(self) -> AsyncIterator[In]:
        return self

    async def __anext__(self) -> In:
        now = time.monotonic()
        if self._since is not None:
            # No more than a turn: what is done with an item may wait for something.
            self._work.seconds += min(now - self._since, _TURN)
        if self._turns.is_over(now):
            await self._turns.next()
            now = time.monotonic()
        self._since = now
        try:
            return next(self._items)
        except StopIteration:
            raise StopAsyncIteration from None


async def turn() -> None:
    """Waits, where others have worked long enough this time round that those that wait go first."""
    turns = _turns()
    if turns.is_over(time.monotonic()):
        await turns.next()


def _turns() -> _Turns:
    global _latest
    turns = _latest
    # Asking for the loop that runs is a call into the system.
    if turns is None or not turns.loop.is_running():
        turns = _latest = _Turns(asyncio.get_running_loop())
    return turns
