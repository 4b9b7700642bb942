"""The calls about the served models. Those that change them are for administrators: on the server's `admin_listen`, or
with a key of role admin. Each of these is sent only once (endpoint.py). Paths are relative to the server's
`models_root`, on the server's disk.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

from tuneserve.client import answers, results
from tuneserve.client.call import Call
from tuneserve.v1 import model_admin_pb2 as pb
from tuneserve.v1 import model_pb2
from tuneserve.v1.model_admin_pb2_grpc import ModelAdminServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub


class ModelSettings(TypedDict, total=False):
    """Settings of a version, as in the server's file. Bounds are in protos/tuneserve/v1/model_admin.proto."""

    dtype: str  # of the weights: auto, bfloat16, float16 or float32
    max_length: int  # tokens of one input, or of prompt and completion together
    max_num_seqs: int  # sequences in one step of the engine
    max_inputs: int  # texts of one call
    max_explained_words: int  # of one text
    max_queue: int  # calls waiting or running
    max_queue_tokens: int  # of the calls that wait
    max_wait_seconds: float  # a call that would wait longer is refused
    redact: Sequence[str]  # kinds of personal data to mask
    max_adapters: int  # LoRA adapters in one step of the engine
    max_adapter_rank: int
    gpu_memory_utilization: float  # on GPUs: share of the memory
    kv_cache_gib: float  # on CPUs
    engine: Mapping[str, Any]  # options of vLLM's engine, by vLLM's names
    tool_parser: str
    reasoning_parser: str


def list_models(page_token: str, timeout: float | None) -> Call[tuple[list[results.Model], str]]:
    """One page of all models."""
    request = model_pb2.ListModelsRequest(page_token=page_token)
    return Call(ModelServiceStub, "ListModels", request, answers.models, timeout)


def list_aliases(page_token: str, timeout: float | None) -> Call[tuple[list[results.Alias], str]]:
    """One page of all aliases."""
    request = model_pb2.ListAliasesRequest(page_token=page_token)
    return Call(ModelServiceStub, "ListAliases", request, answers.aliases, timeout)


def watch_model(model: str, *, timeout: float | None = None) -> Call[results.Model]:
    """Follows the loading of a version: yields its state at once, and again at each change.

        for model in client.watch_model(loaded.id):
            print(model.state, model.load_step)

    The loop ends with the first state that is not loading. Leaving it early ends the call, not the loading. `model`:
    NAME@VERSION, or a name that stands for one version. `timeout`: seconds for the whole call; no limit if None.
    Iterating raises CallError.
    """
    request = model_pb2.WatchModelRequest(model=model)
    return Call(ModelServiceStub, "WatchModel", request, answers.model, timeout, is_endless=True)


def load_model(
    model: str, path: str, *, timeout: float | None = None, **settings: Unpack[ModelSettings]
) -> Call[results.Model]:
    """Begins to load a checkpoint as a version of a model, and returns that version, which is loading.

    `watch_model` follows the loading, `cancel_load` ends it. `path`: the checkpoint's directory. The other arguments
    are those of `ModelSettings` (models.py); settings that are left out are those of the model's latest
    version. Calls reach the version by its `id` until an alias points at it; the first version of a model gets the
    alias of the model's name. Raises CallError.
    """
    request = pb.LoadModelRequest(model=model, path=path, settings=_settings(settings))
    return Call(ModelAdminServiceStub, "LoadModel", request, answers.model, timeout)


def cancel_load(version: str, *, timeout: float | None = None) -> Call[None]:
    """Ends the loading of a version, NAME@VERSION, and removes it. Raises CallError."""
    return Call(ModelAdminServiceStub, "CancelLoad", pb.CancelLoadRequest(model=version), answers.nothing, timeout)


def unload_model(version: str, *, timeout: float | None = None) -> Call[None]:
    """Drains a version, NAME@VERSION, and unloads it.

    Raises CallError: WrongState while an alias points at it. After DeadlineExceeded, the version answers again as
    before.
    """
    return Call(ModelAdminServiceStub, "UnloadModel", pb.UnloadModelRequest(model=version), answers.nothing, timeout)


def load_adapter(model: str, adapter: str, path: str, *, timeout: float | None = None) -> Call[results.Adapter]:
    """Loads the LoRA adapter in a directory onto a version, under the name that calls give as `adapter`.

    If the name is in use, other content replaces the adapter for later calls. Raises CallError.
    """
    request = pb.LoadAdapterRequest(model=model, adapter=adapter, path=path)
    return Call(ModelAdminServiceStub, "LoadAdapter", request, answers.adapter, timeout)


def unload_adapter(model: str, adapter: str, *, timeout: float | None = None) -> Call[None]:
    """Unloads an adapter; running calls finish with it. Raises CallError."""
    request = pb.UnloadAdapterRequest(model=model, adapter=adapter)
    return Call(ModelAdminServiceStub, "UnloadAdapter", request, answers.nothing, timeout)


def set_alias(
    name: str,
    targets: str | Mapping[str, int],
    *,
    shadow: str = "",
    etag: str = "",
    unload_unused: bool = False,
    timeout: float | None = None,
) -> Call[results.Alias]:
    """Points an alias at a version, NAME@VERSION, or splits its calls over several by weight, at once.

    `shadow`: a version that gets copies of the alias's calls. `etag`: change the alias only if it still has this etag.
    `unload_unused`: drain and unload versions that no alias points at any more. Raises CallError; its `code` is ABORTED
    if the etag differs.
    """
    weights = {targets: 1} if isinstance(targets, str) else targets
    pointed = [model_pb2.AliasTarget(model=model, weight=weight) for model, weight in weights.items()]
    alias = model_pb2.Alias(name=name, targets=pointed, shadow=shadow, etag=etag)
    request = pb.SetAliasRequest(alias=alias, unload_unused=unload_unused)
    return Call(ModelAdminServiceStub, "SetAlias", request, answers.alias, timeout)


def delete_alias(name: str, *, etag: str = "", unload_unused: bool = False, timeout: float | None = None) -> Call[None]:
    """Deletes an alias, at once. `etag` and `unload_unused` are those of `set_alias`. Raises CallError."""
    request = pb.DeleteAliasRequest(name=name, etag=etag, unload_unused=unload_unused)
    return Call(ModelAdminServiceStub, "DeleteAlias", request, answers.nothing, timeout)


def _settings(given: Mapping[str, Any]) -> pb.ModelSettings | None:
    """Returns the message, or None without settings. Raises TypeError for an unknown setting."""
    if unknown := given.keys() - ModelSettings.__annotations__.keys():
        raise TypeError(f"unexpected keyword argument: {', '.join(sorted(unknown))}")
    values = {key: value for key, value in given.items() if value is not None}
    if "redact" in values:
        values["redact"] = pb.Redaction(kinds=values["redact"])
    return pb.ModelSettings(**values) if values else None
