"""Follows the journal of a server's processes: does what the others have done, and answers them.

Entries of the journal: joined and left, for the processes; load, unload, alias, adapter and failed (also for a
cancelled load), which change something; done and refused, by which a process answers these; and ready, for a version.

A version is served once every process has it ready. If one could not load it, or ended meanwhile, it has failed in all.
"""

import asyncio
import contextvars
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from google.protobuf import json_format

from tuneserve import settings
from tuneserve.errors import StepFailed, UserError
from tuneserve.server.call import context, failures
from tuneserve.server.call.errors import CallError, NotFound, WrongState
from tuneserve.server.call.tenants import ADMINISTRATOR
from tuneserve.server.config import ModelConfig, ServerConfig
from tuneserve.server.metrics import Metrics
from tuneserve.server.models.administration import Operations
from tuneserve.server.models.aliases import Models
from tuneserve.server.models.health import Health
from tuneserve.server.models.model import Model
from tuneserve.server.models.supervisor import Supervisor
from tuneserve.server.processes import history
from tuneserve.server.processes.journal import Entry, Journal
from tuneserve.v1 import model_pb2

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
_NOT_IN_ALL = "was not started: another of the server's processes could not load it, or ended"
Body = Mapping[str, Any]


@dataclass
class Load:
    """A version that is loaded in all processes."""

    model: Model | None = None  # once its loading has begun here
    failure: str | None = None  # why it will not be served; "" if it was cancelled
    ready: set[int] = field(default_factory=set)  # the processes that have it ready
    serves: asyncio.Event = field(default_factory=asyncio.Event)  # set once all have


class Follower(Operations):
    """The operations of a process that follows the journal."""

    def __init__(
        self,
        folder: Path,
        settings_: ServerConfig,
        models: Models,
        metrics: Metrics,
        supervisor: Supervisor,
        health: Health,
    ) -> None:
        """`folder` is that of all processes."""
        super().__init__(settings_, models, metrics, supervisor, health)
        self.loading.agreed = self._agreed
        self._count = settings_.processes
        self._journal = Journal(folder)
        self._needed = partial(history.needed, count=self._count, names={*settings_.models, *settings_.aliases})
        self._process = os.getpid()
        self._running = set[int]()  # the processes that follow the journal
        self._answers: dict[str, dict[int, str | None]] = {}  # to its operations: why one was refused, or ""
        self._loads: dict[str, Load] = {}  # by operation, until it is decided
        self._refused: int | None = None  # the process that is to undo what this one could not do
        self._one_at_a_time = asyncio.Lock()
        self._tasks = set[asyncio.Task[None]]()
        # What another process was asked for is done as its administrator.
        self._administrator = contextvars.Context()
        self._administrator.run(context.begin, context.Call("", "", ADMINISTRATOR, {}, metrics))

    async def join(self) -> None:
        """Does what was done before this process started, and joins the others."""
        await asyncio.create_task(self._join(), context=self._administrator)

    async def follow(self) -> None:
        """Does what the others do, until it is cancelled."""
        while True:
            await self._catch_up()
            await asyncio.sleep(POLL_SECONDS)

    async def _catch_up(self) -> None:
        """Takes the entries that are new. Goes on if its caller is cancelled."""
        await asyncio.shield(asyncio.create_task(self._take_all(), context=self._administrator))

    async def _take_all(self) -> None:
        async with self._one_at_a_time:
            try:
                for entry in (new := self._journal.new()):
                    await self._take(entry)
                if new:
                    self._journal.shorten(self._needed)
            except Exception as error:
                self._start_again(failures.where(error))

    async def _take(self, entry: Entry) -> None:
        if entry.kind == "joined":
            self._running.add(entry.process)
        elif entry.kind == "left":
            self._left(entry.process)
        elif entry.kind in ("done", "refused"):
            if entry.process in self._answers.get(entry.operation, {}):
                self._answers[entry.operation][entry.process] = entry.body.get("why", "")
        elif entry.kind == "ready":
            await self._ready(entry)
        elif entry.kind == "failed":
            await self._failed(entry)
        elif entry.process != self._process:
            self._refused = None if entry.process == self._refused else self._refused
            task = asyncio.create_task(self._carry_out(entry))
            if entry.kind in ("load", "unload") or (entry.kind == "adapter" and "directory" not in entry.body):
                # It takes long to read a checkpoint, or waits for running calls: what comes next does not.
                self._keep(task)
                await asyncio.sleep(0)
            else:
                await task

    def _left(self, process: int) -> None:
        self._running.discard(process)
        for answers in self._answers.values():
            answers.pop(process, None)
        if process == self._refused:
            self._start_again("the process that was to undo an operation has ended")

    async def _carry_out(self, entry: Entry) -> None:
        """Does what another process has done, and answers it."""
        changes = {"unload": self._unload_one, "alias": self._set, "adapter": self._change_adapter}
        try:
            if entry.kind == "load":
                await self._load(entry)
            else:
                await changes[entry.kind](entry.body)
        except Exception as error:
            why = str(error) if isinstance(error, CallError) else failures.where(error)
            logger.error("could not do what process %d did (%s): %s", entry.process, entry.kind, why)
            if entry.kind == "load":
                self._journal.append(Entry("failed", self._process, body={"load": entry.operation}))
            elif entry.kind == "alias" or "directory" in entry.body:
                self._refused = entry.process
            else:
                self._start_again(why)
            self._answer(entry, "refused", why=why)
        else:
            self._answer(entry, "done")

    def _answer(self, entry: Entry, kind: str, **body: Any) -> None:
        self._journal.append(Entry(kind, self._process, entry.operation, body))

    async def _load(self, entry: Entry) -> None:
        load = self._loads[entry.operation] = Load()
        model = await self._from(entry.body)
        await self.loading.begin(model)
        load.model = model
        self._keep(asyncio.create_task(self._tell_failure(entry.operation, model)))
        await self._give_up(load)

    async def _unload_one(self, body: Body) -> None:
        with suppress(NotFound):
            await super().unload(body["id"])

    async def _ready(self, entry: Entry) -> None:
        if load := self._loads.get(entry.body["load"]):
            load.ready.add(entry.process)
            if len(load.ready) == self._count and load.model:
                del self._loads[entry.body["load"]]
                load.serves.set()
                # What comes next may be for this version.
                await _loaded(load.model)

    async def _failed(self, entry: Entry) -> None:
        if load := self._loads.pop(entry.body["load"], None):
            load.failure = "" if entry.operation else _NOT_IN_ALL
            await self._give_up(load)
        if entry.operation and entry.process != self._process:
            self._answer(entry, "done")

    async def _give_up(self, load: Load) -> None:
        """Ends the loading of a version that will not be served, if it has begun."""
        if load.failure is None or load.model is None:
            return
        with suppress(WrongState):
            await self.loading.cancel(load.model, load.failure)
        # One that was cancelled after it had failed.
        if not load.failure and self._models.same(load.model) is load.model:
            await self._unload([load.model])

    # What both do.

    async def _tell_failure(self, operation: str, model: Model) -> None:
        await _loaded(model)
        if operation in self._loads:
            self._journal.append(Entry("failed", self._process, body={"load": operation}))

    async def _agreed(self, model: Model) -> None:
        """Waits until all processes have loaded a version."""
        for operation, load in self._loads.items():
            if load.model is model:
                self._journal.append(Entry("ready", self._process, body={"load": operation}))
                await load.serves.wait()
                return

    async def _from(self, body: Body) -> Model:
        model = await self._prepared(body["model"], settings.build(ModelConfig, body["config"], "settings"))
        if model.id != body["id"]:
            raise StepFailed(f"model {body['id']}: its files have changed")
        return model

    async def _set(self, body: Body) -> None:
        alias = json_format.ParseDict(dict(body), model_pb2.Alias())
        await self.move(alias.name, self._route(alias) if alias.targets else None)

    async def _change_adapter(self, body: Body) -> None:
        model, name = self._models.by_id("model", body["model"]), body["adapter"]
        if "directory" not in body:
            if name in model.adapters:
                await model.adapters.remove(name)
        elif await self._take_adapter(model, name, Path(body["directory"])) != body["version"]:
            await model.adapters.remove(name)
            raise StepFailed(f"adapter {name}: its files have changed")

    async def _join(self) -> None:
        entries, changes = list[Entry](), history.Changes()
        while new := self._journal.new():
            entries += new
            changes = history.changes(entries, self._count)
            for load in changes.loading:
                # This process had a part in it before it was started again.
                self._journal.append(Entry("failed", self._process, body={"load": load}))
        there = {model.id: model for model in self._models}
        await self._unload([there[id_] for id_ in changes.unloaded.keys() & there.keys()])
        for entry in changes.loaded.values():
            await self.loading.load(await self._from(entry.body))
        for entry in changes.failed.values():
            # Its files may be gone.
            with suppress(UserError, StepFailed):
                model = await self._from(entry.body)
                self._models.add(model)
                model.failed(_NOT_IN_ALL)
        for entry in (*changes.removed.values(), *changes.adapters.values()):
            await self._change_adapter(entry.body)
        for entry in changes.aliases.values():
            await self._set(entry.body)
        for entry in entries:
            if entry.kind in ("joined", "left"):
                await self._take(entry)
        self._journal.append(Entry("joined", self._process))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)  # the loop keeps only weak references
        task.add_done_callback(self._tasks.discard)

    def _start_again(self, why: str) -> NoReturn:
        """Ends this process, which is no longer like the others: it is started again, and follows the journal."""
        logger.critical("this process is not as the others are, and is started again: %s", why)
        os._exit(1)


async def _loaded(model: Model) -> None:
    """Waits until a version's loading has ended."""
    async for _ in model.watch():
        pass
