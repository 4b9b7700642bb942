"""Brings the server's models and aliases to what its file says, when that has changed.

A new file takes effect whole or not at all. All its models are checked and loaded beside those that serve; only then do
the aliases move, and the models that left the file are drained and unloaded. An alias that an administrator moved stays
where it is, until the file moves it, too.
"""

import asyncio
import logging
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack

from tuneserve.errors import StepFailed, UserError
from tuneserve.server import concurrency
from tuneserve.server.call import failures
from tuneserve.server.call.errors import CallError
from tuneserve.server.config import ConfigFile, ModelConfig, ServerConfig
from tuneserve.server.files import Stamp, stamp
from tuneserve.server.models.administration import Operations
from tuneserve.server.models.aliases import Models, Route, to_proto
from tuneserve.server.models.model import Model
from tuneserve.v1 import model_pb2

logger = logging.getLogger(__name__)

_FOLDERS = re.compile(r"(?<!\S)/(?:[^\s:/]+/)+")


def routes(config: ServerConfig, versions: Mapping[str, Model]) -> dict[str, Route]:
    """Returns the routes of the models' own names and of `aliases`. Raises UserError."""
    found = {name: Route([(model, 1)]) for name, model in versions.items()}
    for name, alias in config.aliases.items():
        targets = [(versions[target], weight) for target, weight in alias.targets.items()]
        route = found[name] = Route(targets, versions[alias.shadow] if alias.shadow else None)
        if len({model.manifest.task for model in route.models()}) > 1:
            raise UserError(f"aliases.{name}: its models are of different tasks", "one alias stands for one task")
    return found


class Reloading:
    """The file, and the versions that the server has because of it."""

    def __init__(
        self,
        file: ConfigFile,
        config: ServerConfig,
        versions: Mapping[str, Model],
        models: Models,
        operations: Operations,
    ) -> None:
        self._file = file
        self._config = config
        self._versions = versions
        self._models = models
        self._operations = operations
        self._seen: Stamp = ()  # the file may have changed since `config` was read
        self.is_current = True  # whether the last version of the file is in force

    async def reload_if_changed(self) -> None:
        """Takes the file if it has changed. A missing or invalid one changes nothing and is logged once."""
        seen = await concurrency.apart(stamp, self._file.path)
        if seen == self._seen:
            return
        # Set before the file is read, so that a change made meanwhile is seen next time.
        self._seen = seen
        name = self._file.path.name
        try:
            config = await concurrency.apart(self._file.load)
            if config != self._config:
                await self._take(config)
                logger.info("%s reloaded", name)
            self.is_current = True
        except Exception as error:
            # Any error: the next version of the file must still be read. Only our own errors are known to quote nothing
            # private, except folders.
            known = isinstance(error, UserError | StepFailed | CallError)
            reason = _FOLDERS.sub("", str(error)) if known else failures.where(error)
            logger.error("%s not reloaded, the old configuration stays: %s", name, reason)
            self.is_current = False

    async def _take(self, config: ServerConfig) -> None:
        for key in ServerConfig.model_fields:
            if key not in ("models", "aliases") and getattr(config, key) != getattr(self._config, key):
                raise UserError(f"{key}: can't be changed while the server runs; restart it")
        before, left = routes(self._config, self._versions), self._versions
        async with AsyncExitStack() as undo:
            versions = {name: await self._version(name, model, undo) for name, model in config.models.items()}
            moved = _moved(before, routes(config, versions))
            needed = {model.id for route in moved.values() if route for model in route.models()}
            missing = [model for model in versions.values() if not self._is_there(model)]
            for model in missing:
                if model is left.get(model.name) and model.id in needed:
                    raise UserError(
                        f"models.{model.name}: {model.id} was unloaded by an administrator; restart the server"
                    )
            for model in missing:
                if model is not left.get(model.name):
                    undo.push_async_callback(self._discard, model)
                    await self._operations.loading.load(model)
            undo.pop_all()
        self._config, self._versions = config, versions
        for alias, route in moved.items():
            await self._operations.move(alias, route)
        staying = {model.id for model in versions.values()}
        await asyncio.gather(*(self._unload(model) for model in left.values() if model.id not in staying))

    async def _version(self, name: str, config: ModelConfig, undo: AsyncExitStack) -> Model:
        """Returns the version that has a model's content, or a new one, not loaded yet. Raises UserError."""
        if config == self._config.models.get(name):
            return self._versions[name]
        prepared = await concurrency.apart(self._operations.prepare, name, config, f"models.{name}")
        undo.push_async_callback(prepared.close)
        there = self._models.same(prepared)
        if there is None or there.load_failed:
            return prepared
        for key in ModelConfig.model_fields:
            if getattr(there.config, key) != getattr(config, key):
                raise UserError(f"models.{name}.{key}: can't be changed while {there.id} runs; restart the server")
        await prepared.close()
        return there

    def _is_there(self, model: Model) -> bool:
        """Whether it was loaded, and no administrator has unloaded it."""
        return self._models.same(model) is model

    async def _discard(self, model: Model) -> None:
        """Ends a new version, with the alias that it got when it was loaded."""
        route = self._models.route(model.name)
        if route and [one.id for one in route.models()] == [model.id]:
            await self._operations.move(model.name, None)
        await self._unload(model)

    async def _unload(self, model: Model) -> None:
        """Ends a version, unless an administrator did, or uses it in another alias."""
        if not self._is_there(model):
            return
        if model.state == model_pb2.MODEL_STATE_LOADING:
            await self._operations.loading.cancel(model)
        elif self._models.is_used(model):
            logger.warning("model %s: left the file, and stays because an alias points at it", model.id)
        else:
            await self._operations.unload(model.id)


def _moved(before: Mapping[str, Route], now: Mapping[str, Route]) -> dict[str, Route | None]:
    """Returns the aliases that differ, with their new routes."""

    def shown(routes: Mapping[str, Route]) -> dict[str, model_pb2.Alias]:
        return {alias: to_proto(alias, route) for alias, route in routes.items()}

    was, is_ = shown(before), shown(now)
    return {alias: now.get(alias) for alias in was | is_ if was.get(alias) != is_.get(alias)}
