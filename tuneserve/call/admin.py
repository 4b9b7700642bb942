"""`tuneserve call admin`: administration of a running server."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click
import yaml

from tuneserve import yamls
from tuneserve.call.channel import CallFailed, connected
from tuneserve.call.common import client_options, print_json, print_table
from tuneserve.call.groups import Group

if TYPE_CHECKING:
    from tuneserve.client.endpoint import Endpoint
    from tuneserve.v1 import model_admin_pb2, model_pb2


@click.group("admin", cls=Group)
def admin_command() -> None:
    """Load and unload models, move aliases, load adapters, while the server runs.

    Needs the server's `admin_listen` port (--target), or a key of role admin (--key). Paths are relative to the
    server's `models_root`, on the server's disk.

    \b
    A new version without downtime:
      tuneserve call admin load sentiment sentiment-v2
      tuneserve call admin alias sentiment sentiment@OLD=90 sentiment@NEW=10
      tuneserve call admin alias sentiment sentiment@NEW --unload-unused
    """


@click.command("models")
@client_options()
def models_command(server: "Endpoint", as_json: bool) -> None:
    """List the models of the server: every version, the names that reach it, and its state."""
    from tuneserve.v1 import model_pb2
    from tuneserve.v1.model_pb2_grpc import ModelServiceStub

    models, aliases = model_pb2.ListModelsResponse(), model_pb2.ListAliasesResponse()
    with connected(server) as channel:
        stub = ModelServiceStub(channel)
        for page in _pages(stub.ListModels, model_pb2.ListModelsRequest(), server):
            models.models.extend(page.models)
        for page in _pages(stub.ListAliases, model_pb2.ListAliasesRequest(), server):
            aliases.aliases.extend(page.aliases)
    if as_json:
        return print_json(models, aliases)
    _print_models(models.models, aliases.aliases)


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
@click.option("--no-wait", is_flag=True, help="Return as soon as loading has begun.")
@client_options(timeout=1800.0)
def load_command(
    model: str, path: str, settings: Sequence[str], no_wait: bool, server: "Endpoint", as_json: bool
) -> None:
    """Load the checkpoint at PATH as a version of MODEL, beside the existing versions.

    Waits until the version answers, or could not be loaded. If this command is stopped, loading continues:
    `cancel-load` ends it. Calls reach the version as MODEL@VERSION until an alias points at it; the first version of a
    new model gets the alias of its name.
    """
    from tuneserve.v1 import model_pb2
    from tuneserve.v1.model_pb2_grpc import ModelServiceStub

    loaded = _done(server, "LoadModel", model=model, path=path, settings=_settings(settings)).model
    if not no_wait:
        with connected(server) as channel:
            watching = model_pb2.WatchModelRequest(model=loaded.id)
            for update in ModelServiceStub(channel).WatchModel(watching, **server.options):
                loaded = update.model
                if loaded.load_step:
                    step = model_pb2.LoadStep.Name(loaded.load_step).removeprefix("LOAD_STEP_").replace("_", " ")
                    click.echo(f"{loaded.id}: {step.lower()}", err=True)
    print_json(loaded) if as_json else _print_models([loaded], [])
    if loaded.failure:
        raise CallFailed(f"{loaded.id}: {loaded.failure}")


@admin_command.command("cancel-load")
@click.argument("version", metavar="MODEL@VERSION")
@client_options(timeout=300.0)
def cancel_load_command(version: str, server: "Endpoint", as_json: bool) -> None:
    """End the loading of a version."""
    response = _done(server, "CancelLoad", model=_version(version))
    print_json(response) if as_json else click.echo(f"{version} is gone")


@admin_command.command("unload")
@click.argument("version", metavar="MODEL@VERSION")
@client_options(timeout=300.0)
def unload_command(version: str, server: "Endpoint", as_json: bool) -> None:
    """Drain a version and unload it. Refused while an alias points at it."""
    response = _done(server, "UnloadModel", model=_version(version))
    print_json(response) if as_json else click.echo(f"{version} is gone")


@admin_command.command("alias")
@click.argument("name")
@click.argument("targets", nargs=-1, metavar="[MODEL@VERSION[=WEIGHT]]...")
@click.option(
    "--shadow",
    metavar="MODEL@VERSION",
    help="A version that gets copies of unary inference calls; answers are compared.",
)
@click.option("--remove", is_flag=True, help="Delete the alias.")
@click.option("--etag", help="Change the alias only if it still has this etag, as `models --json` shows it.")
@click.option("--unload-unused", is_flag=True, help="Unload versions that no alias points at any more.")
@client_options(timeout=300.0)
def alias_command(
    name: str,
    targets: Sequence[str],
    shadow: str | None,
    remove: bool,
    etag: str | None,
    unload_unused: bool,
    server: "Endpoint",
    as_json: bool,
) -> None:
    """Point NAME at a version, or split its calls over several by weight. Applies to all later calls at once."""
    from tuneserve.v1 import model_pb2

    if remove == bool(targets) or (remove and shadow):
        raise click.UsageError("give at least one MODEL@VERSION, or --remove alone")
    if remove:
        deleted = _done(server, "DeleteAlias", name=name, etag=etag or "", unload_unused=unload_unused)
        return print_json(deleted) if as_json else click.echo(f"{name} is removed")
    alias = model_pb2.Alias(
        name=name, targets=map(_target, targets), shadow=_version(shadow) if shadow else "", etag=etag or ""
    )
    response = _done(server, "SetAlias", alias=alias, unload_unused=unload_unused)
    print_json(response) if as_json else click.echo(f"{name} -> {_described(response.alias)}")


@admin_command.command("load-adapter")
@click.argument("model")
@click.argument("adapter", metavar="NAME")
@click.argument("path")
@client_options(timeout=300.0)
def load_adapter_command(model: str, adapter: str, path: str, server: "Endpoint", as_json: bool) -> None:
    """Load the LoRA adapter at PATH onto MODEL as NAME.

    If NAME is in use, other content replaces it for later calls; running calls finish with the old adapter.
    """
    response = _done(server, "LoadAdapter", model=model, adapter=adapter, path=path)
    print_json(response) if as_json else click.echo(f"{adapter} is loaded, version {response.adapter.version}")


@admin_command.command("unload-adapter")
@click.argument("model")
@click.argument("adapter", metavar="NAME")
@client_options(timeout=300.0)
def unload_adapter_command(model: str, adapter: str, server: "Endpoint", as_json: bool) -> None:
    """Unload the adapter NAME from MODEL; calls that use it finish first."""
    response = _done(server, "UnloadAdapter", model=model, adapter=adapter)
    print_json(response) if as_json else click.echo(f"{adapter} is gone")


admin_command.add_command(models_command)


def _done(server: "Endpoint", method: str, **fields: Any) -> Any:
    """Makes one call of ModelAdminService, with a request of these fields; returns the answer."""
    from tuneserve.v1 import model_admin_pb2
    from tuneserve.v1.model_admin_pb2_grpc import ModelAdminServiceStub

    request = getattr(model_admin_pb2, f"{method}Request")(**fields)
    with connected(server) as channel:
        return getattr(ModelAdminServiceStub(channel), method)(request, **server.options)


def _pages(call: Any, request: Any, server: "Endpoint") -> Iterator[Any]:
    while True:
        page = call(request, **server.options)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _version(text: str) -> str:
    model, _, version = text.partition("@")
    if not model or not version or "=" in version:
        raise click.UsageError(f"{text}: expected MODEL@VERSION")
    return text


def _target(text: str) -> "model_pb2.AliasTarget":
    from tuneserve.v1 import model_pb2

    id_, equals, weight = text.partition("=")
    model, _, version = id_.partition("@")
    if not model or not version or (equals and not (weight.isdecimal() and 0 < int(weight) < 1 << 31)):
        raise click.UsageError(f"{text}: expected MODEL@VERSION or MODEL@VERSION=WEIGHT, a weight of 1 or more")
    return model_pb2.AliasTarget(model=id_, weight=int(weight or 1))


def _settings(texts: Sequence[str]) -> "model_admin_pb2.ModelSettings | None":
    from google.protobuf import json_format

    from tuneserve.v1 import model_admin_pb2

    given: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.UsageError(f"--set {text}: expected KEY=VALUE")
        if key in given:
            raise click.UsageError(f"--set {key}: given twice")
        known = model_admin_pb2.ModelSettings.DESCRIPTOR.fields_by_name
        if key not in known:
            raise click.UsageError(f"--set {key}: can't be set while the server runs; allowed: {', '.join(known)}")
        try:
            given[key] = yamls.parse(value)
            # A list, as in the server's file.
            one = {key: {"kinds": given[key]} if key == "redact" else given[key]}
            json_format.ParseDict(one, model_admin_pb2.ModelSettings())
        except yaml.YAMLError:
            raise click.UsageError(f"--set {text}: the value is not YAML") from None
        except json_format.ParseError as error:
            raise click.UsageError(f"--set {text}: {error}") from None
        given.update(one)
    return json_format.ParseDict(given, model_admin_pb2.ModelSettings()) if given else None


def _described(alias: "model_pb2.Alias") -> str:
    total = sum(target.weight for target in alias.targets)
    parts = [
        target.model + (f" {100 * target.weight / total:.3g}%" if len(alias.targets) > 1 else "")
        for target in alias.targets
    ]
    if alias.shadow:
        parts.append(f"shadow {alias.shadow}")
    return ", ".join(parts)


def _print_models(models: "Sequence[model_pb2.Model]", aliases: "Sequence[model_pb2.Alias]") -> None:
    from tuneserve.checkpoint.tasks import TASK_NAMES
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
    """The aliases that reach a version, with its share of their calls if it does not get all of them."""
    names = []
    for alias in aliases:
        total = sum(target.weight for target in alias.targets)
        weight = sum(target.weight for target in alias.targets if target.model == model.id)
        if weight:
            names.append(alias.name if weight == total else f"{alias.name} {100 * weight / total:.3g}%")
        if alias.shadow == model.id:
            names.append(f"{alias.name} shadow")
    return names
