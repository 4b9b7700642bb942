"""Watches every engine, while it is being loaded and after that, and restarts a dead one.

A dead engine is noticed at the next ping. A busy engine answers only between steps, and a step may take longer than
`watchdog_seconds` on a slow machine: the engine counts as alive while its processes use CPU time. An engine that
neither answers nor computes for `watchdog_seconds` hangs: its processes are killed, which ends every call that waits
for it, and it is then treated as dead. An engine that computes one step without end is killed after ten times as long.
Other models keep running meanwhile.

Loading and the warm-up are watched in the same way, with more patience, and may take `load_seconds` in all. While the
event loop itself is blocked, nothing is known of any engine, because its answers are not read.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tuneserve.errors import CheckpointError, StepFailed
from tuneserve.server import concurrency
from tuneserve.server.call import failures
from tuneserve.server.engine.making import EngineFactory
from tuneserve.server.models.model import Model

logger = logging.getLogger(__name__)

_PING_SECONDS = 0.5
# While an answer is late: how often the CPU time is checked in `watchdog_seconds`.
_LOOKS = 10
# A check that is late by this factor does not count: the event loop was blocked, and answers may be there unread.
_HELD = 2
# A process that uses less than this share of one core does not compute. A blocked engine uses 0.02, because its gloo
# threads poll for messages. An engine that computes uses all cores; on a busy machine the time that it waits for one
# counts, too.
_COMPUTES = 0.1
# The longest step, in `watchdog_seconds`.
_LONGEST_STEP = 10
# While it loads, an engine may be silent for this many times `watchdog_seconds`: no call waits for it, and its
# processes sometimes wait for the server's own process, which prepares every model.
_PATIENCE = 4
# The wait between attempts to restart an engine: doubled each time, from the first value up to the second.
_BACK_OFF_SECONDS = (1.0, 60.0)


class Supervisor:
    """The watching tasks, one for each model version."""

    def __init__(
        self,
        make_engine: EngineFactory,
        watchdog_seconds: float,
        load_seconds: float,
        restarts: bool,
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        """`changed` is called whenever a model goes out of service or comes back."""
        self.given_up = asyncio.Event()
        self._make_engine = make_engine
        self._watchdog_seconds = watchdog_seconds
        self._load_seconds = load_seconds
        self._restarts = restarts
        self._changed = changed
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def load(self, model: Model) -> None:
        """Loads or reloads a model. Raises StepFailed if that hangs or takes too long; the loading is ended then."""
        loading = asyncio.create_task(model.load(self._make_engine))
        try:
            if what := await self._overdue(model, loading, _PATIENCE * self._watchdog_seconds, self._load_seconds):
                logger.error("model %s: its engine %s while it was loaded", model.id, what)
                raise StepFailed(f"model {model.id}: its engine {what} while it was loaded")
        finally:
            # If loading is not done, cancelling it ends the engine first.
            await concurrency.end([loading])
        loading.result()

    def watch(self, model: Model) -> None:
        """Starts to watch a loaded model."""
        self._tasks[model.id] = asyncio.create_task(self._watch(model))

    async def forget(self, model: Model) -> None:
        """Stops watching a model, before it is closed."""
        if task := self._tasks.pop(model.id, None):
            await concurrency.end([task])

    async def stop(self) -> None:
        """Stops watching all models."""
        tasks, self._tasks = list(self._tasks.values()), {}
        await concurrency.end(tasks)

    async def _watch(self, model: Model) -> None:
        while True:
            what = await self._failure(model)
            model.failed(f"{what} and {'is being restarted' if self._restarts else 'the server ends'}")
            logger.error("model %s: its engine %s", model.id, model.failure)
            await self._changed()
            # Needed, too, if only the engine's core process died: its workers would keep their memory.
            await model.runner.end_engine()
            if not self._restarts:
                self.given_up.set()
                return
            await self._restart(model)
            await self._changed()

    async def _failure(self, model: Model) -> str:
        """Returns why the engine failed, once it is dead or has to be killed."""
        while True:
            ping = asyncio.ensure_future(model.engine.ping())
            try:
                slow = f"computes one step for over {self._watchdog_seconds:g} s"
                seconds = self._watchdog_seconds
                if what := await self._overdue(model, ping, seconds, _LONGEST_STEP * seconds, slow):
                    return what
            finally:
                ping.cancel()
            if ping.exception():
                return "died"
            await asyncio.sleep(_PING_SECONDS)

    async def _overdue(
        self, model: Model, work: "asyncio.Future[Any]", seconds: float, most: float, slow: str = ""
    ) -> str:
        """Waits for the work. Returns "" when it is done, or the reason to give up: no sign of life for `seconds`, or
        not done after `most` seconds. `slow` is logged once if the engine still computes after `seconds`.
        """
        used = deque[tuple[float, Mapping[int, float]]](maxlen=_LOOKS)
        pause, looks = seconds / _LOOKS, 0
        while looks * pause < most:
            asked = time.monotonic()
            await asyncio.wait((work,), timeout=pause)
            if work.done():
                return ""
            if time.monotonic() - asked > _HELD * pause:
                continue
            looks += 1
            used.append((time.monotonic(), model.runner.cpu_seconds()))
            (began, before), (ended, after) = used[0], used[-1]
            # Without processes, as before the first one starts, nothing can be told. A new process is a sign of life.
            if looks < _LOOKS or not after or after.keys() - before.keys():
                continue
            busiest = max(spent - before[process] for process, spent in after.items())
            if busiest < _COMPUTES * (ended - began):
                return f"gave no sign of life for {seconds:g} s"
            if slow and looks == _LOOKS:
                logger.warning("model %s: its engine %s", model.id, slow)
        return f"computed {'one step ' if slow else ''}for over {most:g} s"

    async def _restart(self, model: Model) -> None:
        wait, longest = _BACK_OFF_SECONDS
        while True:
            await asyncio.sleep(wait)
            try:
                await self.load(model)
            except Exception as error:
                wait = min(2 * wait, longest)
                changed = isinstance(error, CheckpointError)
                what = "its files are not those that were loaded" if changed else failures.where(error)
                logger.error("model %s: did not start again, next attempt in %g s: %s", model.id, wait, what)
            else:
                model.serve()
                logger.info("model %s: its engine was started again", model.id)
                return
