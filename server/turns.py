"""Fair turns: callers take turns on the event loop, in threads, and before a call begins."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import Any, Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

# Seconds of work on the event loop, of all calls together, after which waiting calls get their turn.
_TURN = 0.003


class _Work:
    """The work of one call: its caller, and the seconds of the event loop it has used. The call's tasks share it."""

    __slots__ = ("caller", "seconds")

    def __init__(self, caller: Hashable) -> None:
        self.caller = caller
        self.seconds = 0.0


_work: ContextVar[_Work | None] = ContextVar("work", default=None)


def belongs_to(caller: Hashable) -> None:
    """Sets the caller of this task's work, and of the tasks it starts."""
    _work.set(_Work(caller))


def caller() -> Hashable:
    """Returns the caller of this task's work; an empty text if none was set."""
    return _current().caller


def _current() -> _Work:
    work = _work.get()
    if work is None:
        _work.set(work := _Work(""))
    return work


class _Waiting:
    """Waiting work: callers take turns, however much work each of them has waiting. Of one caller's work, what has
    waited longest is next; with `least_worked`, every second time it is what has used the event loop least so far.
    """

    def __init__(self, least_worked: bool = True) -> None:
        self._callers: dict[Hashable, dict[asyncio.Future[None], float]] = {}  # in the order of their turns
        self._by_age = itertools.cycle((not least_worked, True))

    def __bool__(self) -> bool:
        return bool(self._callers)

    @property
    def by_caller(self) -> Mapping[Hashable, Sized]:
        """The waiting work of each caller that has any."""
        return self._callers

    async def turn(self, not_taken: Callable[[], object], work: _Work | None = None) -> None:
        """Waits for a turn. `not_taken` is called if the turn is given after the wait was cancelled."""
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
        """Gives the next one its turn. Returns whether there was one."""
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
    """Turns on one event loop: in each iteration of the loop, one piece of waiting work goes on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._began: float | None = None  # when the work of this iteration began
        self._waiting = _Waiting()

    def is_over(self, now: float) -> bool:
        """Whether the work of this iteration has taken its time."""
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
            # Set here, too, in case the chosen one does no work.
            self._began = time.monotonic()
            self.loop.call_soon(self._came_round)


class Entrance:
    """Starts the work of calls: one in each iteration of the event loop, with callers taking turns. Meanwhile other
    calls are accepted, so that their callers are known; and calls that have begun make progress before more begin.
    """

    def __init__(self) -> None:
        self._is_open = True
        # None of them has worked yet, and finding the minimum among thousands is slow.
        self._waiting = _Waiting(least_worked=False)

    async def enter(self, caller: Hashable = None) -> None:
        """Waits for a turn, if others wait or have just had theirs. Give `caller` if this task's is not set yet."""
        if self._is_open:
            self._is_open = False
            asyncio.get_running_loop().call_soon(self._came_round)
        else:
            await self._waiting.turn(lambda: None, None if caller is None else _Work(caller))

    @property
    def waiting(self) -> Mapping[Hashable, Sized]:
        """The waiting calls of each caller that has any."""
        return self._waiting.by_caller

    def _came_round(self) -> None:
        if self._waiting.next():
            asyncio.get_running_loop().call_soon(self._came_round)
        else:
            self._is_open = True


class Threads:
    """Threads for work of many callers, who take turns, however much work each of them has."""

    def __init__(self, count: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=name)
        # Two pieces of work for each thread: the one that runs, and the next one.
        self._free = 2 * count
        self._waiting = _Waiting()

    async def run(self, work: Callable[..., Out], *arguments: Any) -> Out:
        """Returns the result of `work`. Work that has begun runs to its end even if its caller is cancelled."""
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

    async def run_steps(self, work: Iterator[object]) -> None:
        """Runs a generator of short steps. Whenever they have taken some milliseconds, waiting work goes first. If its
        caller is cancelled, no more of them are run.
        """
        while await self.run(_some, work):
            pass

    def close(self) -> None:
        """Ends the threads. Work that has not begun is cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _done(self) -> None:
        if not self._waiting.next():
            self._free += 1


def _some(work: Iterator[object]) -> bool:
    """Runs a turn's steps. Returns whether there may be more."""
    end = time.monotonic() + _TURN
    return any(time.monotonic() > end for _ in work)


# The turns of the loop that asked last: they are needed with every token, and only in tests a process has several
# loops.
_latest: _Turns | None = None


class in_turns(Generic[In]):
    """Yields the items of work on the event loop. Whenever such work, of this call or of others, has taken some
    milliseconds, waiting work goes first.

    The work on each item should be short. Not a generator, because that would have to be closed.
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
            # At most one turn: the caller may have awaited something else between two items.
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
    """Waits for a turn if the work of this iteration of the event loop has taken its time."""
    turns = _turns()
    if turns.is_over(time.monotonic()):
        await turns.next()


def _turns() -> _Turns:
    global _latest
    turns = _latest
    # get_running_loop is slow: it makes a system call.
    if turns is None or not turns.loop.is_running():
        turns = _latest = _Turns(asyncio.get_running_loop())
    return turns
