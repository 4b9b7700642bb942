"""Administrators' operations on a running server: load and unload versions, move aliases, load adapters.

A serving version is not touched before its replacement has answered a warm-up.
"""

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

from tuneserve import checkpoint, settings
from tuneserve.errors import CheckpointError, StepFailed, UserError
from tuneserve.server import concurrency, config, files
from tuneserve.server.call.errors import Changed, InvalidInput, NotFound, WrongState
from tuneserve.server.config import ModelConfig, ServerConfig
from tuneserve.server.engine import options as engine_options
from tuneserve.server.metrics import Metrics
from tuneserve.server.models import adapters
from tuneserve.server.models.aliases import Models, Route, to_proto
from tuneserve.server.models.health import Health
from tuneserve.server.models.loading import Loading
from tuneserve.server.models.model import Model
from tuneserve.server.models.supervisor import Supervisor
from tuneserve.server.text import redaction
from tuneserve.v1 import model_admin_pb2 as pb
from tuneserve.v1 import model_pb2

logger = logging.getLogger(__name__)

_DTYPES = get_args(ModelConfig.model_fields["dtype"].annotation)
_PARSERS = {"tool_parser": get_args(config.ToolParser), "reasoning_parser": get_args(config.ReasoningParser)}
# Checkpoints and adapters that are read at a time, before they are loaded: they may have gigabytes.
_PREPARING = 2
_WORD = re.compile(r"[a-z0-9_]{1,32}")


class Operations:
    """Administrators' operations on the server's models."""

    def __init__(
        self,
        settings_: ServerConfig,
        models: Models,
        metrics: Metrics,
        supervisor: Supervisor,
        health: Health,
    ) -> None:
        self._config = settings_
        self._models = models
        self._metrics = metrics
        self._supervisor = supervisor
        self._health = health
        self.loading = Loading(models, supervisor, health)
        self._leaving: set[str] = set()  # versions that are being unloaded
        self._store = adapters.Store()
        self._preparing = ThreadPoolExecutor(_PREPARING, "prepare")

    def prepare(self, name: str, model: ModelConfig, where: str) -> Model:
        """Checks a model's settings, checkpoint and adapters, without loading it. Raises UserError."""
        config.check_directories(model, where)
        redaction.check(model.redact, f"{where}.redact")
        engine_options.check(model.engine, f"{where}.engine")
        verified = files.stamps(model.path)
        manifest = checkpoint.load(model.path, f"model {name}")
        engine_options.check_parsers(model, manifest.task, where)
        prepared = Model(name, model, manifest, self._metrics, verified)
        for adapter, path in model.adapters.items():
            prepared.adapters.prepare(adapter, self._store.take(path, model.max_adapter_rank))
        return prepared

    async def load(self, request: pb.LoadModelRequest) -> Model:
        """Begins to load a version next to the existing ones. See ModelAdminService.LoadModel."""
        if not config.is_name(request.model):
            raise InvalidInput("model", f"is not a name: {config.A_NAME}")
        path = self._below_root(request.path)
        try:
            given = request.model, self._settings(request, path), "settings"
            model = await asyncio.get_running_loop().run_in_executor(self._preparing, self.prepare, *given)
        except CheckpointError as error:
            raise InvalidInput("path", _public(error, path)) from error
        except UserError as error:
            raise InvalidInput("settings", _public(error, path)) from error
        await self.loading.begin(model)
        return model

    async def cancel_load(self, id_: str) -> None:
        """Cancels the loading of a version, NAME@VERSION. See ModelAdminService.CancelLoad."""
        await self.loading.cancel(self._models.by_id("model", id_))

    async def unload(self, id_: str) -> None:
        """Drains a version, NAME@VERSION, and ends it. See ModelAdminService.UnloadModel."""
        model = self._staying("model", id_)
        if self._models.is_used(model):
            raise WrongState(f"an alias points at {model.id}; move it first", "ALIAS_POINTS_AT_IT", model.id)
        if model.state == model_pb2.MODEL_STATE_LOADING:
            raise WrongState(f"{model.id} is being loaded; CancelLoad ends that", "LOADING", model.id)
        await self._unload([model])

    async def set_alias(self, alias: model_pb2.Alias, unload_unused: bool) -> model_pb2.Alias:
        """Moves an alias, and returns it as it is now. See ModelAdminService.SetAlias."""
        if not config.is_name(alias.name):
            raise InvalidInput("alias.name", f"is not a name: {config.A_NAME}")
        if not alias.targets:
            raise InvalidInput("alias.targets", "is empty; at least one is needed")
        route = self._route(alias)
        await self._move(alias.name, alias.etag, route, unload_unused)
        return to_proto(alias.name, route)

    async def delete_alias(self, name: str, etag: str, unload_unused: bool) -> None:
        """Deletes an alias. See ModelAdminService.DeleteAlias."""
        if self._models.route(name) is None:
            raise NotFound("alias", name, list(self._models.routes))
        await self._move(name, etag, None, unload_unused)

    async def _move(self, name: str, etag: str, route: Route | None, unload_unused: bool) -> None:
        # Takes effect at once, even while a model is being loaded: this is how a bad version is rolled back.
        before = self._models.route(name)
        if etag and etag != (to_proto(name, before).etag if before else ""):
            raise Changed(f"alias {name} has changed since it had that etag; read it again")
        self._models.set_route(name, route)
        await self._health.publish()
        logger.info("alias %s: %s", name, "moved" if route else "removed")
        if unload_unused and before:
            staying = (model for model in before.models() if model.id not in self._leaving)
            await self._unload([model for model in staying if not self._models.is_used(model)])

    async def load_adapter(self, model: Model, name: str, path: str) -> str:
        """Loads a LoRA adapter, and returns its version. See ModelAdminService.LoadAdapter."""
        model.check_takes_adapters()
        directory = self._below_root(path)
        taking = self._preparing.submit(self._store.take, directory, model.config.max_adapter_rank)
        try:
            copy = await asyncio.shield(asyncio.wrap_future(taking))
        except asyncio.CancelledError:
            if not taking.cancel():
                taking.add_done_callback(self._given_up)
            raise
        except StepFailed as error:
            raise WrongState(
                "the server's disk for adapters is full: free some space, or set another TMPDIR", "DISK_FULL"
            ) from error
        except UserError as error:
            raise InvalidInput("path", _public(error, directory)) from error
        await model.adapters.add(name, copy)
        return copy.version

    def _given_up(self, taking: "Future[adapters.Copy]") -> None:
        if not taking.cancelled() and taking.exception() is None:
            self._store.release(taking.result())

    def close(self) -> None:
        """Ends the threads, and deletes the copies of adapters."""
        self._preparing.shutdown(wait=False, cancel_futures=True)
        self._store.close()

    async def _unload(self, models: Sequence[Model]) -> None:
        ids = {model.id for model in models}
        self._leaving |= ids
        try:
            # If one of them fails, the others still count as leaving until they are unloaded.
            ended = await asyncio.gather(*map(self._drain_and_end, models), return_exceptions=True)
        finally:
            self._leaving -= ids
        for error in ended:
            if error is not None:
                raise error

    async def _drain_and_end(self, model: Model) -> None:
        if not await model.drain(self._config.drain_seconds):
            logger.warning("model %s: calls still running after %g s", model.id, self._config.drain_seconds)
        await concurrency.to_the_end(self._end(model))

    async def _end(self, model: Model) -> None:
        await self._supervisor.forget(model)
        self._models.remove(model)
        await model.close()
        self._metrics.forget(model.name, model.version)
        logger.info("model %s: unloaded", model.id)

    def _route(self, alias: model_pb2.Alias) -> Route:
        targets: list[tuple[Model, int]] = []
        for index, target in enumerate(alias.targets):
            if target.weight < 1:
                raise InvalidInput(f"alias.targets[{index}].weight", f"is {target.weight}; allowed: 1 or more")
            model = self._loaded(f"alias.targets[{index}].model", target.model)
            _check_is_new(f"alias.targets[{index}].model", model, targets)
            targets.append((model, target.weight))
        shadow = self._loaded("alias.shadow", alias.shadow) if alias.shadow else None
        if shadow:
            _check_is_new("alias.shadow", shadow, targets)
        route = Route(targets, shadow)
        if len({model.manifest.task for model in route.models()}) > 1:
            raise InvalidInput("alias.targets", "are of different tasks; one alias stands for one task")
        return route

    def _loaded(self, field: str, id_: str) -> Model:
        model = self._staying(field, id_)
        if model.state == model_pb2.MODEL_STATE_LOADING or model.load_failed:
            raise WrongState(f"{model.id} was not loaded yet", "NOT_LOADED", model.id)
        return model

    def _staying(self, field: str, id_: str) -> Model:
        model = self._models.by_id(field, id_)
        if model.id in self._leaving:
            raise WrongState(f"{model.id} is being unloaded", "UNLOADING", model.id)
        return model

    def _settings(self, request: pb.LoadModelRequest, path: Path) -> ModelConfig:
        """Returns the settings of the model's latest version, overridden by the request's."""
        given = {field.name: value for field, value in request.settings.ListFields()}
        if "redact" in given:
            given["redact"] = list(request.settings.redact.kinds)
            for index, kind in enumerate(given["redact"]):
                _check_word(f"settings.redact.kinds[{index}]", kind, redaction.KINDS)
        _check_word("settings.dtype", given.get("dtype", "auto"), _DTYPES)
        for key, names in _PARSERS.items():
            if given.get(key):
                _check_word(f"settings.{key}", given[key], names)
        engine = {field.name: value for field, value in request.settings.engine.ListFields()}
        if not _WORD.fullmatch(engine.get("kv_cache_dtype", "auto")):
            raise InvalidInput("settings.engine.kv_cache_dtype", "is not a type, such as auto or fp8")
        latest = self._models.latest(request.model)
        base = latest.config if latest else ModelConfig(path=path)
        # Without adapters: those in the server's file belong to the version in the file.
        values = {**base.model_dump(), **_chosen(given), "engine": {**base.engine, **engine}, "adapters": {}}
        return settings.build(ModelConfig, {**values, "path": str(path)}, "settings")

    def _below_root(self, path: str) -> Path:
        root = self._config.models_root
        if root is None:
            raise WrongState("the server has no models_root to load from", "NO_MODELS_ROOT")
        try:
            wanted = (root / path).resolve()
            is_below = bool(path) and wanted.is_relative_to(root.resolve()) and wanted.is_dir()
        except (OSError, ValueError):
            is_below = False  # too long, or with a NUL in it
        if not is_below:
            raise InvalidInput("path", "is not a directory below the server's models_root")
        return wanted


def _check_is_new(field: str, model: Model, targets: Sequence[tuple[Model, int]]) -> None:
    for index, (other, _) in enumerate(targets):
        if other is model:
            raise InvalidInput(field, f"is a duplicate of alias.targets[{index}].model")


def _public(error: UserError, path: Path) -> str:
    """Returns an error's text without the path of the checkpoint or adapter."""
    text = str(error)
    for shown in (str(path), path.name):
        text = text.replace(f"{shown}/", "").removeprefix(f"{shown}: ")
    return text


def _check_word(field: str, word: str, allowed: Iterable[str]) -> None:
    """Raises InvalidInput. The settings' own check is not used, because its error repeats the word."""
    if word not in allowed:
        raise InvalidInput(field, f"is not one of {', '.join(allowed)}")


def _chosen(given: dict[str, Any]) -> dict[str, Any]:
    """Turns 0 and "" into None where null in the server's file means: choose from the checkpoint and the machine."""
    chosen = {key for key, field in ModelConfig.model_fields.items() if field.default is None}
    return {key: None if value in (0, "") and key in chosen else value for key, value in given.items()}
