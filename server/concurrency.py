"""Structured concurrency: a bounded number of tasks at a time, none of which outlives its caller. And work in threads
of its own, which may never end by itself.
"""

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
Put: TypeAlias = Callable[[Out], Awaitable[None]]

_LOCK_SECONDS = 0.01


def pieces(items: Sequence[In], size: Callable[[In], int], enough: int) -> Iterator[Sequence[In]]:
    """Splits items, in order, into runs whose sizes add up to `enough`: as much as a thread should take at a time."""
    start = total = 0
    for index, item in enumerate(items):
        total += size(item)
        if total >= enough:
            yield items[start : index + 1]
            start, total = index + 1, 0
    if start < len(items):
        yield items[start:]


async def together(work: Callable[[In], Awaitable[Out]], items: Sequence[In], limit: int) -> list[Out]:
    """Returns the results of `work` for each item, in order. The first failure cancels the others and is raised."""
    found: dict[int, Out] = {}
    left = iter(enumerate(items))

    async def some() -> None:
        # Each task takes the next item: a task per item would be thousands of waiting tasks, all woken at once.
        for index, item in left:
            found[index] = await work(item)

    tasks = [asyncio.create_task(some()) for _ in range(min(limit, len(items)))]
    try:
        await asyncio.gather(*tasks)
        return [found[index] for index in range(len(items))]
    finally:
        await end(tasks)


async def produced(produce: Callable[[Put[Out]], Awaitable[None]]) -> AsyncGenerator[Out, None]:
    """Runs `produce` in a task and yields what it puts, no further ahead than one item. Raises its error; of a task
    group, the first one.
    """
    ready: asyncio.Queue[tuple[Out] | Exception | None] = asyncio.Queue(1)

    async def run() -> None:
        failure: Exception | None = None
        try:
            await produce(lambda item: ready.put((item,)))
        except Exception as error:
            failure = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
        await ready.put(failure)

    tasks = [asyncio.create_task(run())]
    try:
        while (got := await ready.get()) is not None:
            if isinstance(got, Exception):
                raise got
            yield got[0]
    finally:
        await end(tasks)


async def passed_on(source: AsyncGenerator[Out, None], put: Put[Out]) -> None:
    """Puts every item of a generator, and closes it."""
    async with contextlib.aclosing(source):
        async for item in source:
            await put(item)


def merged(sources: Sequence[AsyncGenerator[Out, None]]) -> AsyncGenerator[Out, None]:
    """Yields the items of several generators as they come, each read in a task of its own. The first failure ends the
    others and is raised.
    """

    async def produce(put: Put[Out]) -> None:
        async with asyncio.TaskGroup() as group:
            for source in sources:
                group.create_task(passed_on(source, put))

    return produced(produce)


async def end(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancels tasks, waits until they have ended, and empties the list: an error's traceback may refer to it, and that
    cycle would keep them until the garbage collector runs.
    """
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    tasks.clear()


async def to_the_end(work: Coroutine[Any, Any, Out]) -> Out:
    """Completes work that must not be left half done: a cancellation of the caller takes effect only afterwards."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise


async def apart(work: Callable[..., Out], *arguments: Any) -> Out:
    """Runs blocking work in a thread of its own: unlike asyncio's pool of threads, it never waits for other work. It
    runs to its end even if its caller is cancelled. Raises OSError if the system has no thread left.
    """
    done: Future[Out] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = work(*arguments)
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(result)

    try:
        threading.Thread(target=run, name=getattr(work, "__name__", "apart"), daemon=True).start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, "no thread is left") from error
    return await asyncio.wrap_future(done)


@contextlib.asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """As `disk.locked`, for waiting on the event loop: a thread could get the lock after its caller was cancelled."""
    file = await apart(os.open, path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while not _takes(file):  # noqa: ASYNC110
            await asyncio.sleep(_LOCK_SECONDS)
        yield
    finally:
        os.close(file)


def _takes(file: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


async def within(seconds: float, work: Callable[..., Out], *arguments: Any) -> Out:
    """Runs CPU-bound work in a thread of its own. Raises TimeoutError if it takes more than `seconds` of CPU time.

    If nobody waits for the work any more, its thread ends at the next line of Python that it reaches.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Out] = loop.create_future()
    clocks: list[int] = []  # the thread's CPU clock, once it runs

    def tell(set_: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            set_(value)

    def run() -> None:
        clocks.append(time.pthread_getcpuclockid(threading.get_ident()))
        with contextlib.suppress(SystemExit):
            try:
                outcome: tuple[Callable[[Any], None], Any] = done.set_result, work(*arguments)
            except StopIteration as error:
                # The only exception that a future can't hold.
                outcome = done.set_exception, RuntimeError(repr(error))
            except Exception as error:
                outcome = done.set_exception, error
            # The loop may be closed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(tell, *outcome)

    thread = threading.Thread(target=run, name="bounded work", daemon=True)
    thread.start()
    try:
        while not done.done():
            left = seconds - _used(clocks)
            if left <= 0:
                raise TimeoutError
            await asyncio.wait((done,), timeout=left)
        return done.result()
    finally:
        if not done.done():
            done.cancel()
            # The id of a thread that has ended may belong to another one.
            if thread.is_alive() and thread.ident:
                # Not a subclass of Exception, so that the work does not handle it as a failure of its own.
                ident = ctypes.c_ulong(thread.ident)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))


def _used(clocks: Sequence[int]) -> float:
    """Returns the CPU time of a thread, in seconds; 0 if it has not begun, or has just ended."""
    try:
        return time.clock_gettime(clocks[0])
    except (IndexError, OSError):
        return 0.0
