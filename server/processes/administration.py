"""Administrators' operations where a server has several processes: all carry one out, or none does.

The process that got the call does its own part first, so what can't be done is refused as by a single process. Then it
adds the operation to the journal (`journal.py`), and waits until the others have done it (`following.py`). If one can't
do it, all undo it. Operations have turns, so all processes do them in the same order. A process that is started again
does what the journal says before it takes calls.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from google.protobuf import json_format

from tuneserve.server import concurrency
from tuneserve.server.call import failures
from tuneserve.server.call.errors import Unavailable, WrongState
from tuneserve.server.config import ModelConfig
from tuneserve.server.models.aliases import Route, to_proto
from tuneserve.server.models.model import Model
from tuneserve.server.processes import sharing
from tuneserve.server.processes.following import POLL_SECONDS, Follower, Load
from tuneserve.server.processes.journal import Entry
from tuneserve.v1 import model_admin_pb2 as pb
from tuneserve.v1 import model_pb2

Out = TypeVar("Out")


class JointOperations(Follower):
    """The operations that one of several processes is asked for."""

    async def load(self, request: pb.LoadModelRequest) -> Model:
        """See Operations.load."""
        # Without a turn, as it may take long to read a checkpoint.
        model = await self._new(request)
        operation = await self._in_turn(lambda: self._begin_loading(model))
        if refusals := await self._refusals(operation):
            # The process that refused it said that it failed, too.
            await self.unload(model.id)
            _check(refusals)
        return model

    async def cancel_load(self, id_: str) -> None:
        """See Operations.cancel_load."""
        await self._in_turn(lambda: self._cancel(id_))

    async def unload(self, id_: str) -> None:
        """See Operations.unload. Goes on if its caller is cancelled."""
        own = partial(super().unload, id_)
        await asyncio.shield(await self._in_turn(lambda: self._take_out(own, "unload", id=id_)))

    async def set_alias(self, alias: model_pb2.Alias, unload_unused: bool) -> model_pb2.Alias:
        """See Operations.set_alias."""
        return await self._move_in_all(alias.name, partial(super().set_alias, alias, False), unload_unused)

    async def delete_alias(self, name: str, etag: str, unload_unused: bool) -> None:
        """See Operations.delete_alias."""
        await self._move_in_all(name, partial(super().delete_alias, name, etag, False), unload_unused)

    async def load_adapter(self, model: Model, name: str, path: str) -> str:
        """See Operations.load_adapter. Other content under a name that is used can't be undone, and is refused."""
        return await self._in_turn(lambda: self._add_adapter(model.id, name, path))

    async def unload_adapter(self, model: Model, name: str) -> None:
        """See Operations.unload_adapter."""
        own = partial(super().unload_adapter, model, name)
        body = {"model": model.id, "adapter": name}
        await asyncio.shield(await self._in_turn(lambda: self._take_out(own, "adapter", **body)))

    def _built(self, request: pb.LoadModelRequest, built: ModelConfig) -> ModelConfig:
        # What comes from a version before it is a part already.
        latest, given = self._models.latest(request.model), {field.name for field, _ in request.settings.ListFields()}
        part = sharing.part(built, self._count)
        return built.model_copy(update={key: value for key, value in part if key in given or not latest})

    async def _begin_loading(self, model: Model) -> str:
        await self.loading.begin(model, self._count)
        config = json.loads(json.dumps(model.config.model_dump(), default=str))
        operation = self._add("load", model=model.name, id=model.id, config=config)
        self._loads[operation] = Load(model)
        self._keep(asyncio.create_task(self._tell_failure(operation, model)))
        return operation

    async def _cancel(self, id_: str) -> None:
        model = self._models.by_id("model", id_)
        load = next((one for one, load in self._loads.items() if load.model is model), None)
        if load is None:
            await super().cancel_load(id_)
            return
        await self._refusals(self._add("failed", load=load))
        await self._catch_up()
        if self._models.same(model) is model:
            raise WrongState(f"{model.id} is not being loaded by LoadModel", "NOT_LOADING", model.id)

    async def _move_in_all(self, name: str, own: Callable[[], Awaitable[Out]], unload_unused: bool) -> Out:
        own_unload = super().unload

        async def move() -> tuple[Out, list[asyncio.Task[None]]]:
            before = self._models.route(name)
            moved = await own()
            if refusals := await self._refusals(self._add("alias", **_described(name, self._models.route(name)))):
                await self.move(name, before)
                await self._refusals(self._add("alias", **_described(name, before)))
                _check(refusals)
            unused = [model for model in before.models() if not self._models.is_used(model)] if before else []
            leaving = [model.id for model in unused if unload_unused and model.id not in self._leaving]
            return moved, [await self._take_out(partial(own_unload, id_), "unload", id=id_) for id_ in leaving]

        moved, unloading = await self._in_turn(move)
        await asyncio.gather(*map(asyncio.shield, unloading))
        return moved

    async def _add_adapter(self, id_: str, name: str, path: str) -> str:
        model = self._staying("model", id_)
        if name in model.adapters:
            raise WrongState(f"{id_} has an adapter {name}: unload it first", "ADAPTER_LOADED", id_)
        version = await super().load_adapter(model, name, path)
        assert self._config.models_root
        directory = str((self._config.models_root / path).resolve())
        body = {"model": id_, "adapter": name}
        if refusals := await self._refusals(self._add("adapter", directory=directory, version=version, **body)):
            await model.adapters.remove(name)
            await self._refusals(self._add("adapter", **body))
            _check(refusals)
        return version

    async def _take_out(
        self, own: Callable[[], Coroutine[Any, Any, None]], kind: str, **body: str
    ) -> asyncio.Task[None]:
        """Begins what waits for running calls, here and in the others. Returns what waits for its end, which needs no
        turn.
        """
        task = asyncio.create_task(own())
        await asyncio.sleep(0)
        # It is refused at once, or goes on.
        if task.done():
            task.result()
        finishing = asyncio.create_task(self._finish(task, self._add(kind, **body)))
        self._keep(finishing)
        return finishing

    async def _finish(self, task: asyncio.Task[None], operation: str) -> None:
        try:
            await task
        except Exception as error:
            # The others go on with it.
            self._start_again(failures.where(error))
        await self._refusals(operation)

    async def _in_turn(self, work: Callable[[], Coroutine[Any, Any, Out]]) -> Out:
        """Does what others must not do at the same time. Once it has begun it goes on if its caller is cancelled."""
        async with self._turn():
            return await concurrency.to_the_end(work())

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """The turn to change what is served, with what was changed before. Raises Unavailable unless all processes
        run.
        """
        async with self._journal.turn():
            await self._catch_up()
            if len(self._running) < self._count:
                raise Unavailable("models can't be changed while one of the server's processes starts; try again")
            yield

    def _add(self, kind: str, **body: Any) -> str:
        """Adds an operation to the journal, for the others."""
        operation = secrets.token_hex(8)
        self._answers[operation] = dict.fromkeys(self._running - {self._process})
        self._journal.append(Entry(kind, self._process, operation, body))
        return operation

    async def _refusals(self, operation: str) -> Sequence[str]:
        """Waits until the others have carried out an operation, or ended. Returns why it was refused, if it was."""
        while None in self._answers[operation].values():
            await self._catch_up()
            await asyncio.sleep(POLL_SECONDS)
        return [text for text in self._answers.pop(operation).values() if text]


def _described(name: str, route: Route | None) -> dict[str, Any]:
    alias = to_proto(name, route) if route else model_pb2.Alias(name=name)
    described: dict[str, Any] = json_format.MessageToDict(alias)
    return described


def _check(refusals: Sequence[str]) -> None:
    """Raises WrongState if another process has refused an operation."""
    if refusals:
        raise WrongState(f"another of the server's processes can't do it, so none did: {refusals[0]}", "NOT_IN_ALL")
