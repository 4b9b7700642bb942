"""Loads versions while the server runs: in the background, one at a time, until each is ready, failed or cancelled."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from tuneserve.errors import CheckpointError, StepFailed
from tuneserve.server import concurrency
from tuneserve.server.call import failures
from tuneserve.server.call.errors import AlreadyLoaded, WrongState
from tuneserve.server.engine.interface import EngineFailed
from tuneserve.server.models import memory
from tuneserve.server.models.aliases import Models
from tuneserve.server.models.health import Health
from tuneserve.server.models.model import Model
from tuneserve.server.models.supervisor import Supervisor
from tuneserve.v1 import model_pb2 as pb

logger = logging.getLogger(__name__)


async def _at_once(model: Model) -> None:
    """Does not wait."""


class Loading:
    """The versions that are being loaded."""

    def __init__(self, models: Models, supervisor: Supervisor, health: Health) -> None:
        self._models = models
        self._supervisor = supervisor
        self._health = health
        self._turn = asyncio.Lock()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        # Waits until a loaded version may be put into service.
        self.agreed: Callable[[Model], Awaitable[None]] = _at_once

    async def start(self, model: Model, turn: AbstractAsyncContextManager[None] | None = None) -> None:
        """Loads a prepared model, in its turn if it has one, starts to watch it and puts it into service. Closes the
        model if loading fails.
        """
        try:
            async with turn or nullcontext():
                await self._supervisor.load(model)
            # Not in its turn: other processes may load versions in another order.
            await self.agreed(model)
        except BaseException:
            await model.close()
            raise
        self._supervisor.watch(model)
        # Before clients that watch the version are told that it is ready.
        self._models.give_alias(model)
        model.serve()

    async def begin(self, model: Model, copies: int = 1) -> None:
        """Adds a prepared version, and begins to load it. Raises AlreadyLoaded, and WrongState if memory is short for
        that many copies.
        """
        await concurrency.apart(memory.check, model.config, model.manifest, copies)
        if there := self._models.same(model):
            if not there.load_failed:
                raise AlreadyLoaded(model.id)
            self._models.remove(there)
        self._models.add(model)
        model.show(pb.MODEL_STATE_LOADING, pb.LOAD_STEP_WAITING)
        task = self._tasks[model.id] = asyncio.create_task(self._load(model))
        task.add_done_callback(lambda task: self._ended(model, task))

    async def load(self, model: Model) -> None:
        """Adds a prepared version, and loads it. Raises StepFailed if it does not answer then, and as `begin`."""
        await self.begin(model)
        await asyncio.wait((self._tasks[model.id],))
        if not model.is_ready:
            raise StepFailed(f"model {model.id}: its engine {model.failure}")

    async def cancel(self, model: Model, failure: str = "") -> None:
        """Cancels the loading of a version and removes the version; with a failure, it stays FAILED. Raises
        WrongState.
        """
        if (task := self._tasks.get(model.id)) is None:
            raise WrongState(f"{model.id} is not being loaded by LoadModel", "NOT_LOADING", model.id)
        model.failure = failure
        await concurrency.end([task])

    async def stop(self) -> None:
        """Cancels the loading of all versions."""
        await concurrency.end(list(self._tasks.values()))

    async def _load(self, model: Model) -> None:
        try:
            await self.start(model, self._with_memory(model))
            await self._health.publish()
            logger.info("model %s: loaded", model.id)
        except WrongState as error:
            self._failed(model, f"was not started: {error}", error)
        except CheckpointError as error:
            self._failed(model, "was not started: its files have changed, or can't be read", error)
        except (StepFailed, EngineFailed) as error:
            self._failed(model, "did not start; the server's log says why", error)
        except Exception as error:
            self._failed(model, "was not started because of an internal error; the server's log says where", error)

    @asynccontextmanager
    async def _with_memory(self, model: Model) -> AsyncIterator[None]:
        async with self._turn:
            # Versions loaded before it may have taken the free memory.
            await concurrency.apart(memory.check, model.config, model.manifest)
            yield

    def _failed(self, model: Model, what: str, error: Exception) -> None:
        model.failed(what)
        logger.error("model %s: its engine %s: %s", model.id, what, failures.where(error))

    def _ended(self, model: Model, task: asyncio.Task[None]) -> None:
        del self._tasks[model.id]
        # Also if the task was cancelled before it began.
        if task.cancelled() and model.failure:
            model.failed(model.failure)
        elif task.cancelled():
            self._models.remove(model)
            model.failure = "was stopped: loading was cancelled"
            model.show(pb.MODEL_STATE_FAILED)
            logger.info("model %s: its loading was cancelled", model.id)
