"""Administrators' operations on a running server: load and unload versions, move aliases, load adapters.

A serving version is not touched before its replacement has answered a warm-up.
"""

import asyncio
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

from tuneserve import checkpoint, settings
from tuneserve.errors import CheckpointError, StepFailed, UserError
from tuneserve.server import concurrency, config, files
from tuneserve.server.call.errors import Changed, InvalidInput, NotFound, Violations, WrongState
from tuneserve.server.config import ModelConfig, ServerConfig
from tuneserve.server.engine import options as engine_options
from tuneserve.server.metrics import Metrics
from tuneserve.server.models import adapters
from tuneserve.server.models.aliases import NO_ID, Models, Route, is_id, to_proto
from tuneserve.server.models.health import Health
from tuneserve.server.models.loading import Loading
from tuneserve.server.models.model import Model
from tuneserve.server.models.supervisor import Supervisor
from tuneserve.server.text import redaction
from tuneserve.v1 import model_admin_pb2 as pb
from tuneserve.v1 import model_pb2

logger = logging.getLogger(__name__)

# The words that some settings take.
_WORDS = {
    "dtype": get_args(ModelConfig.model_fields["dtype"].annotation),
    "tool_parser": get_args(config.ToolParser),
    "reasoning_parser": get_args(config.ReasoningParser),
}
# Checkpoints and adapters that are read at a time, before they are loaded: they may have gigabytes.
_PREPARING = 2
_WORD = re.compile(r"[a-z0-9_]{1,32}")
# Characters: the system takes no longer ones, and each folder in a path makes the next one slower to look up.
_LONGEST_PATH = 4096


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
        engine_options.check_pooling(model, manifest, where)
        prepared = Model(name, model, manifest, self._metrics, verified)
        for adapter, path in model.adapters.items():
            prepared.adapters.prepare(adapter, self._store.take(path, model.max_adapter_rank))
        return prepared

    async def load(self, request: pb.LoadModelRequest) -> Model:
        """Begins to load a version next to the existing ones. See ModelAdminService.LoadModel."""
        model = await self._new(request)
        await self.loading.begin(model)
        return model

    async def _new(self, request: pb.LoadModelRequest) -> Model:
        """Returns the version that a request asks for, prepared."""
        with Violations() as wrong:
            if not config.is_name(request.model):
                wrong.add("model", f"is not a name: {config.A_NAME}")
            path = await self._below_root(wrong, request.path)
            values = self._settings(wrong, request, path)
            problems = settings.problems(ModelConfig, values, "settings")
            wrong.each(problems, lambda error: ("settings", _public(error, path)))
        try:
            built = self._built(request, settings.build(ModelConfig, values, "settings"))
            return await self._prepared(request.model, built)
        except CheckpointError as error:
            raise InvalidInput("path", _public(error, path)) from error
        except UserError as error:
            raise InvalidInput("settings", _public(error, path)) from error

    def _built(self, request: pb.LoadModelRequest, built: ModelConfig) -> ModelConfig:
        """Returns the settings of a version, as this process takes them."""
        return built

    async def _prepared(self, name: str, model: ModelConfig) -> Model:
        given = name, model, "settings"
        return await asyncio.get_running_loop().run_in_executor(self._preparing, self.prepare, *given)

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
        with Violations() as wrong:
            _check_alias(wrong, alias)
        route = self._route(alias)
        await self.move(alias.name, route, alias.etag, unload_unused)
        return to_proto(alias.name, route)

    async def delete_alias(self, name: str, etag: str, unload_unused: bool) -> None:
        """Deletes an alias. See ModelAdminService.DeleteAlias."""
        if self._models.route(name) is None:
            raise NotFound("alias", name, list(self._models.routes))
        await self.move(name, None, etag, unload_unused)

    async def move(self, name: str, route: Route | None, etag: str = "", unload_unused: bool = False) -> None:
        """Moves an alias, or deletes it. Raises Changed if the alias no longer has that etag."""
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
        with Violations() as wrong:
            if not config.is_name(name):
                wrong.add("adapter", f"is not a name: {config.A_NAME}")
            directory = await self._below_root(wrong, path)
        return await self._take_adapter(model, name, directory)

    async def unload_adapter(self, model: Model, name: str) -> None:
        """Unloads a LoRA adapter. See ModelAdminService.UnloadAdapter."""
        await model.adapters.remove(name)

    async def _take_adapter(self, model: Model, name: str, directory: Path) -> str:
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
        targets = [
            (self._loaded(f"alias.targets[{index}].model", target.model), target.weight)
            for index, target in enumerate(alias.targets)
        ]
        shadow = self._loaded("alias.shadow", alias.shadow) if alias.shadow else None
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

    def _settings(self, wrong: Violations, request: pb.LoadModelRequest, path: Path) -> dict[str, Any]:
        """Returns the settings of the model's latest version, overridden by the request's. Words that are refused are
        left out: an error of the settings' own check would repeat them.
        """
        given = {field.name: value for field, value in request.settings.ListFields()}
        if "redact" in given:
            kinds = enumerate(request.settings.redact.kinds)
            given["redact"] = [
                kind
                for index, kind in kinds
                if _check_word(wrong, f"settings.redact.kinds[{index}]", kind, redaction.KINDS)
            ]
        for key, names in _WORDS.items():
            if given.get(key) and not _check_word(wrong, f"settings.{key}", given[key], names):
                del given[key]
        engine = {field.name: value for field, value in request.settings.engine.ListFields()}
        if not _WORD.fullmatch(engine.get("kv_cache_dtype", "auto")):
            wrong.add("settings.engine.kv_cache_dtype", "is not a type, such as auto or fp8")
            del engine["kv_cache_dtype"]
        latest = self._models.latest(request.model)
        base = latest.config if latest else ModelConfig(path=path)
        # Without adapters: those in the server's file belong to the version in the file.
        values = {**base.model_dump(), **_chosen(given), "engine": {**base.engine, **engine}, "adapters": {}}
        return {**values, "path": str(path)}

    async def _below_root(self, wrong: Violations, path: str) -> Path:
        root = self._config.models_root
        if root is None:
            raise WrongState("the server has no models_root to load from", "NO_MODELS_ROOT")
        wanted = None
        if 0 < len(path) <= _LONGEST_PATH:
            # In a thread: a disk may answer late, or never.
            wanted = await asyncio.get_running_loop().run_in_executor(self._preparing, _below, root, path)
        if wanted is None:
            wrong.add("path", "is not a directory below the server's models_root")
        return wanted or root


def _below(root: Path, path: str) -> Path | None:
    """Returns the directory of that path, if it is below the root."""
    try:
        wanted = (root / path).resolve()
        return wanted if wanted.is_relative_to(root.resolve()) and wanted.is_dir() else None
    except (OSError, ValueError):
        return None  # too long, or with a NUL in it


def _check_alias(wrong: Violations, alias: model_pb2.Alias) -> None:
    """Checks an alias, without looking for its versions."""
    if not config.is_name(alias.name):
        wrong.add("alias.name", f"is not a name: {config.A_NAME}")
    if not alias.targets:
        wrong.add("alias.targets", "is empty; at least one is needed")
    ids: dict[str, int] = {}
    for index, target in enumerate(alias.targets):
        _check_target(wrong, f"alias.targets[{index}].model", target.model, ids)
        ids.setdefault(target.model, index)
        if target.weight < 1:
            wrong.add(f"alias.targets[{index}].weight", f"is {target.weight}; allowed: 1 or more")
    if alias.shadow:
        _check_target(wrong, "alias.shadow", alias.shadow, ids)


def _check_target(wrong: Violations, field: str, id_: str, others: Mapping[str, int]) -> None:
    if not is_id(id_):
        wrong.add(field, NO_ID)
    elif id_ in others:
        wrong.add(field, f"is a duplicate of alias.targets[{others[id_]}].model")


def _public(error: UserError, path: Path) -> str:
    """Returns an error's text without the path of the checkpoint or adapter."""
    text = str(error)
    for shown in (str(path), path.name):
        text = text.replace(f"{shown}/", "").removeprefix(f"{shown}: ")
    return text


def _check_word(wrong: Violations, field: str, word: str, allowed: Collection[str]) -> bool:
    """Returns whether a word is allowed."""
    if word not in allowed:
        wrong.add(field, f"is not one of {', '.join(allowed)}")
    return word in allowed


def _chosen(given: dict[str, Any]) -> dict[str, Any]:
    """Turns 0 and "" into None where null in the server's file means: choose from the checkpoint and the machine."""
    chosen = {key for key, field in ModelConfig.model_fields.items() if field.default is None}
    return {key: None if value in (0, "") and key in chosen else value for key, value in given.items()}
