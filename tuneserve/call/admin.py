"""`tuneserve call admin`: what an administrator does to a running server."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import yaml

from tuneserve import yamls
from tuneserve.call.common import client_options, print_json, print_table
from tuneserve.client import Server, connected

if TYPE_CHECKING:
    from tuneserve.v1 import model_pb2


@click.group("admin")
def admin_command() -> None:
    """Load and unload models, move aliases, load adapters, while the server runs.

    For the server's `admin_listen` port (--target), or for any with a key of role admin (--key). Paths are below the
    server's `models_root`, on its own disk.

    \b
    A new version without downtime:
      tuneserve call admin load sentiment sentiment-v2
      tuneserve call admin alias sentiment sentiment@OLD=90 sentiment@NEW=10
      tuneserve call admin alias sentiment sentiment@NEW --unload-unused
    """


@click.command("models")
@client_options()
def models_command(server: Server, as_json: bool) -> None:
    """List the models of the server: every version, the names that reach it, and what it does."""
    from tuneserve.v1 import model_pb2
    from tuneserve.v1.model_pb2_grpc import ModelServiceStub

    with connected(server) as channel:
        response = ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest(), **server.options)
    if as_json:
        return print_json(response)
    _print_models(response.models, response.aliases)


@admin_command.command("load")
@click.argument("model")
@click.argument("path")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting as in the server's file, e.g. max_length=512; once for each. Default: the latest version's.",
)
@client_options(timeout=900.0)
def load_command(model: str, path: str, settings: Sequence[str], server: Server, as_json: bool) -> None:
    """Load the checkpoint at PATH as a version of MODEL, beside the versions there are.

    Answers when the version was warmed up. Calls reach it as MODEL@VERSION until an alias points at it; the first
    version of a new model gets the alias of its name.
    """
    from google.protobuf import json_format, struct_pb2

    from tuneserve.v1 import model_pb2
    from tuneserve.v1.model_pb2_grpc import ModelServiceStub

    given = json_format.ParseDict(_settings(settings), struct_pb2.Struct()) if settings else None
    request = model_pb2.LoadModelRequest(model=model, path=path, settings=given)
    with connected(server) as channel:
        response = ModelServiceStub(channel).LoadModel(request, **server.options)
    print_json(response) if as_json else _print_models([response.model], [])


@admin_command.command("unload")
@click.argument("version", metavar="MODEL@VERSION")
@client_options(timeout=300.0)
def unload_command(version: str, server: Server, as_json: bool) -> None:
    """Let a version end its calls, and unload it. Refused while an alias points at it."""
    from tuneserve.v1 import model_pb2
    from tuneserve.v1.model_pb2_grpc import ModelServiceStub

    target = _target(version)
    request = model_pb2.UnloadModelRequest(model=target.model, version=target.version)
    with connected(server) as channel:
        response = ModelServiceStub(channel).UnloadModel(request, **server.options)
    print_json(response) if as_json else click.echo(f"{version} is gone")


@admin_command.command("alias")
@click.argument("name")
@click.argument("targets", nargs=-1, metavar="[MODEL@VERSION[=WEIGHT]]...")
@click.option("--shadow", metavar="MODEL@VERSION", help="Gets copies of unary inference calls; answers are compared.")
@click.option("--remove", is_flag=True, help="Take the alias away.")
@click.option("--unload-unused", is_flag=True, help="Unload versions that no alias points at any more.")
@client_options(timeout=300.0)
def alias_command(
    name: str,
    targets: Sequence[str],
    shadow: str | None,
    remove: bool,
    unload_unused: bool,
    server: Server,
    as_json: bool,
) -> None:
    """Point NAME at a version, or split its calls over several by weight. At once, for all later calls."""
    from tuneserve.v1 import model_pb2
    from tuneserve.v1.model_pb2_grpc import ModelServiceStub

    if remove == bool(targets) or (remove and shadow):
        raise click.UsageError("give at least one MODEL@VERSION, or --remove alone")
    alias = model_pb2.Alias(
        name=name,
        targets=[_target(target, weighted=True) for target in targets],
        shadow=_target(shadow) if shadow else None,
    )
    request = model_pb2.SetAliasRequest(alias=alias, unload_unused=unload_unused)
    with connected(server) as channel:
        response = ModelServiceStub(channel).SetAlias(request, **server.options)
    if as_json:
        return print_json(response)
    click.echo(f"{name} is removed" if remove else f"{name} -> {_described(response.alias)}")


@admin_command.command("load-adapter")
@click.argument("model")
@click.argument("adapter", metavar="NAME")
@click.argument("path")
@client_options(timeout=300.0)
def load_adapter_command(model: str, adapter: str, path: str, server: Server, as_json: bool) -> None:
    """Load the LoRA adapter at PATH onto MODEL as NAME.

    Other content under a NAME in use replaces it for later calls; running ones end with what they began with.
    """
    from tuneserve.v1 import model_pb2
    from tuneserve.v1.model_pb2_grpc import ModelServiceStub

    request = model_pb2.LoadAdapterRequest(model=model, adapter=adapter, path=path)
    with connected(server) as channel:
        response = ModelServiceStub(channel).LoadAdapter(request, **server.options)
    print_json(response) if as_json else click.echo(f"{adapter} is loaded, version {response.adapter.version}")


@admin_command.command("unload-adapter")
@click.argument("model")
@click.argument("adapter", metavar="NAME")
@client_options(timeout=300.0)
def unload_adapter_command(model: str, adapter: str, server: Server, as_json: bool) -> None:
    """Take the adapter NAME away from MODEL; calls that run with it end first."""
    from tuneserve.v1 import model_pb2
    from tuneserve.v1.model_pb2_grpc import ModelServiceStub

    request = model_pb2.UnloadAdapterRequest(model=model, adapter=adapter)
    with connected(server) as channel:
        response = ModelServiceStub(channel).UnloadAdapter(request, **server.options)
    print_json(response) if as_json else click.echo(f"{adapter} is gone")


admin_command.add_command(models_command)


def _target(text: str, weighted: bool = False) -> "model_pb2.AliasTarget":
    from tuneserve.v1 import model_pb2

    rest, equals, weight = text.partition("=")
    model, _, version = rest.partition("@")
    if not model or not version or (equals and not (weighted and weight.isdecimal() and 0 < int(weight) < 1 << 32)):
        expected = "MODEL@VERSION or MODEL@VERSION=WEIGHT, a weight of 1 or more" if weighted else "MODEL@VERSION"
        raise click.UsageError(f"{text}: expected {expected}")
    return model_pb2.AliasTarget(model=model, version=version, weight=int(weight or 1) if weighted else 0)


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.UsageError(f"--set {text}: expected KEY=VALUE")
        if key in given:
            raise click.UsageError(f"--set {key}: given twice")
        try:
            given[key] = yamls.parse(value)
        except yaml.YAMLError:
            raise click.UsageError(f"--set {text}: the value is not YAML") from None
    return given


def _described(alias: "model_pb2.Alias") -> str:
    total = sum(target.weight for target in alias.targets)
    parts = [
        f"{target.model}@{target.version}" + (f" {100 * target.weight / total:.3g}%" if len(alias.targets) > 1 else "")
        for target in alias.targets
    ]
    if alias.HasField("shadow"):
        parts.append(f"shadow {alias.shadow.model}@{alias.shadow.version}")
    return ", ".join(parts)


def _print_models(models: "Sequence[model_pb2.Model]", aliases: "Sequence[model_pb2.Alias]") -> None:
    from tuneserve.checkpoint import TASK_NAMES
    from tuneserve.v1 import model_pb2

    print_table(
        ["model", "version", "names", "task", "state", "weights", "adapters", "labels"],
        [
            [
                model.name,
                model.version,
                ", ".join(_names(model, aliases)) or "-",
                TASK_NAMES.get(model.task, "?"),
                model_pb2.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower(),
                model.quantization or "not quantized",
                ", ".join(adapter.name for adapter in model.adapters) or "-",
                ", ".join(model.labels) or "-",
            ]
            for model in models
        ],
    )


def _names(model: "model_pb2.Model", aliases: "Sequence[model_pb2.Alias]") -> list[str]:
    """The aliases that reach a version, with its share of their calls where it is not all of them."""
    names = []
    for alias in aliases:
        total = sum(target.weight for target in alias.targets)
        weight = sum(target.weight for target in alias.targets if _is(target, model))
        if weight:
            names.append(alias.name if weight == total else f"{alias.name} {100 * weight / total:.3g}%")
        if _is(alias.shadow, model):
            names.append(f"{alias.name} shadow")
    return names


def _is(target: "model_pb2.AliasTarget", model: "model_pb2.Model") -> bool:
    return (target.model, target.version) == (model.name, model.version)
