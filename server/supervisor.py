"""Watches every engine, and starts a dead one again.

A dead engine says so at the next ping. A hung one says nothing: after `watchdog_seconds` its processes are killed,
which makes a dead one of it and ends every call that waits for it. Other models go on meanwhile.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from tuneserve.server import failures
from tuneserve.server.models import EngineFactory, Model

logger = logging.getLogger(__name__)

_PING_SECONDS = 0.5
# Between attempts to start an engine again: doubled each time, from the first to the second.
_BACK_OFF_SECONDS = (1.0, 60.0)


class Supervisor:
    """The tasks that watch, one a model version."""

    def __init__(
        self,
        make_engine: EngineFactory,
        watchdog_seconds: float,
        restarts: bool,
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        """`changed` is called whenever a model goes out of service or comes back."""
        self.given_up = asyncio.Event()
        self._make_engine = make_engine
        self._watchdog_seconds = watchdog_seconds
        self._restarts = restarts
        self._changed = changed
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def watch(self, model: Model) -> None:
        """Begins to watch a model that was loaded."""
        self._tasks[model.id] = asyncio.create_task(self._watch(model))

    async def forget(self, model: Model) -> None:
        """Stops to watch a model, before it is closed."""
        if task := self._tasks.pop(model.id, None):
            task.cancel()
            await asyncio.wait((task,))

    async def stop(self) -> None:
        """Stops to watch any model."""
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _watch(self, model: Model) -> None:
        while True:
            await self._death(model)
            model.failed()
            await self._changed()
            # Also for an engine whose core died alone: its workers would keep the memory.
            await model.end_engine()
            if not self._restarts:
                logger.error("model %s: on_engine_failure is exit: the server ends", model.id)
                self.given_up.set()
                return
            await self._restart(model)
            await self._changed()

    async def _death(self, model: Model) -> None:
        """Returns when the engine is dead or was killed for hanging."""
        while True:
            ping = asyncio.ensure_future(model.engine.ping())
            try:
                done, _ = await asyncio.wait((ping,), timeout=self._watchdog_seconds)
            finally:
                ping.cancel()
            if not done:
                logger.error("model %s: no answer from its engine for %g s: killed", model.id, self._watchdog_seconds)
                return
            if error := ping.exception():
                logger.error("model %s: its engine is dead: %s", model.id, type(error).__name__)
                return
            await asyncio.sleep(_PING_SECONDS)

    async def _restart(self, model: Model) -> None:
        wait, longest = _BACK_OFF_SECONDS
        while True:
            await asyncio.sleep(wait)
            model.metrics.restarts.labels(model.name).inc()
            try:
                await model.load(self._make_engine)
            except Exception as error:
                wait = min(2 * wait, longest)
                what = failures.where(error)
                logger.error("model %s: did not start again, next attempt in %g s: %s", model.id, wait, what)
            else:
                logger.info("model %s: its engine was started again", model.id)
                return
