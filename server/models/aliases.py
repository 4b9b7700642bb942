"""All models of the server: names, versions, and the aliases that callers use.

A name in a call is an alias; NAME@VERSION reaches one version directly. An alias points at one version or splits its
calls by weight. Moving it is one assignment, so every call goes either to the old target or to the new one.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tuneserve.checkpoint.tasks import TASK_NAMES
from tuneserve.server.call.context import current
from tuneserve.server.call.errors import InvalidInput, NotAllowed, NotFound, WrongState, WrongTask
from tuneserve.server.models.model import Model
from tuneserve.server.models.tasks import TASKS
from tuneserve.v1 import checkpoint_pb2 as pb
from tuneserve.v1 import model_pb2

NO_ID = "is not NAME@VERSION"
_ETAG_DIGITS = 16


@dataclass(frozen=True)
class Route:
    """Where the calls to an alias go."""

    targets: Sequence[tuple[Model, int]]  # with weights
    shadow: Model | None = None

    @property
    def task(self) -> pb.Task:
        """The task, which all its versions share."""
        return self.targets[0][0].manifest.task

    @property
    def serves(self) -> bool:
        """Whether its calls are answered: if some versions do not answer, the others get their calls."""
        return any(model.is_ready for model, _ in self.targets)

    @property
    def is_loading(self) -> bool:
        """Whether one of its versions is still loading, as at the server's start."""
        return any(model.state == model_pb2.MODEL_STATE_LOADING for model, _ in self.targets)

    def choose(self) -> Model:
        """Returns a target at random, by weight; only among those that answer, if any do."""
        targets = [target for target in self.targets if target[0].is_ready] or self.targets
        if len(targets) == 1:
            return targets[0][0]
        return random.choices([model for model, _ in targets], [weight for _, weight in targets])[0]

    def models(self) -> list[Model]:
        """Every version that the route uses, each once."""
        needed = [model for model, _ in self.targets] + ([self.shadow] if self.shadow else [])
        return list({model.id: model for model in needed}.values())


class Models:
    """Versions by name, and routes by alias."""

    def __init__(self) -> None:
        self._versions: dict[str, dict[str, Model]] = {}
        self._routes: dict[str, Route] = {}

    def __iter__(self) -> Iterator[Model]:
        for _, versions in sorted(self._versions.items()):
            yield from (model for _, model in sorted(versions.items()))

    @property
    def routes(self) -> dict[str, Route]:
        """Routes by alias, sorted."""
        return dict(sorted(self._routes.items()))

    def add(self, model: Model) -> None:
        """Adds a version."""
        self._versions.setdefault(model.name, {})[model.version] = model

    def give_alias(self, model: Model) -> None:
        """Creates the alias of the model's name for a version, unless that alias exists."""
        self._routes.setdefault(model.name, Route([(model, 1)]))

    def remove(self, model: Model) -> None:
        """Removes a version that no alias points at."""
        versions = self._versions[model.name]
        del versions[model.version]
        if not versions:
            del self._versions[model.name]

    def set_route(self, alias: str, route: Route | None) -> None:
        """Moves an alias, or removes it."""
        if route is None:
            self._routes.pop(alias, None)
        else:
            self._routes[alias] = route

    def is_used(self, model: Model) -> bool:
        """Whether an alias points at a version."""
        return any(model in route.models() for route in self._routes.values())

    def version(self, name: str, version: str) -> Model:
        """Returns one version. Raises NotFound."""
        versions = self._versions.get(name)
        if versions is None:
            raise NotFound("model", name, [one for one in sorted(self._versions) if current().tenant.may_use(one)])
        if version not in versions:
            raise NotFound("version", f"{name}@{version}", [f"{name}@{known}" for known in sorted(versions)])
        return versions[version]

    def by_id(self, field: str, id_: str) -> Model:
        """Returns one version, NAME@VERSION. Raises InvalidInput naming the field, and NotFound."""
        if not is_id(id_):
            raise InvalidInput(field, NO_ID)
        name, _, version = id_.partition("@")
        return self.version(name, version)

    def same(self, model: Model) -> Model | None:
        """Returns the version with exactly this content under this name, if there is one."""
        return self._versions.get(model.name, {}).get(model.version)

    def latest(self, name: str) -> Model | None:
        """Returns the version of a model that was added last, except those that could not be loaded; None if there is
        none.
        """
        versions = self._versions.get(name, {}).values()
        return next((model for model in reversed(versions) if not model.load_failed), None)

    def route(self, alias: str) -> Route | None:
        """Returns the route of an alias, or None."""
        return self._routes.get(alias)

    def get(self, name: str) -> Model:
        """Returns the version that the current call goes to. Raises NotFound or NotAllowed."""
        call = current()
        # A call stays with one version, however often it looks the name up.
        if call.asked == name and (chosen := self._versions.get(call.model, {}).get(call.version)):
            return chosen
        chosen = self._find(name).choose()
        call.asked = name
        return _noted(chosen)

    def all(self, name: str) -> list[Model]:
        """Returns every version that calls to a name go to, the one with the largest share first. Raises as `get`."""
        targets = sorted(self._find(name).targets, key=lambda target: -target[1])
        _noted(targets[0][0])
        return [model for model, _ in targets]

    def only(self, name: str) -> Model:
        """Returns the one version that a name stands for. Raises WrongState for several, and as `get`."""
        targets = self._find(name).targets
        if len(targets) > 1:
            raise WrongState(
                f"{name} is an alias of several versions; name one: {', '.join(m.id for m, _ in targets)}",
                "SEVERAL_VERSIONS",
                name,
            )
        return _noted(targets[0][0])

    def _find(self, name: str) -> Route:
        call = current()
        base, separator, version = name.partition("@")
        # Before anything else, so that callers can't find out which other names exist.
        if not call.tenant.may_use(base):
            raise NotAllowed("this API key is not for that model")
        if separator:
            return Route([(self.version(base, version), 1)])
        if name not in self._routes:
            raise NotFound("model", name, [alias for alias in self.routes if call.tenant.may_use(alias)])
        return self._routes[name]

    def for_task(self, name: str, *tasks: pb.Task) -> Model:
        """Returns the version as `get` does, for a call that only models of some tasks answer. Checks that it is ready.

        Raises InvalidInput, WrongTask or Unavailable, too.
        """
        if not name:
            raise InvalidInput("model", "is empty; a model's name is needed")
        model = self.get(name)
        if model.manifest.task not in tasks:
            raise WrongTask(name, TASK_NAMES[model.manifest.task], TASKS[model.manifest.task].methods)
        model.check_ready()
        return model

    def aliases(self) -> list[model_pb2.Alias]:
        """Returns the public description of the routes that the current caller may use."""
        return [to_proto(alias, route) for alias, route in self.routes.items() if current().tenant.may_use(alias)]


def is_id(text: str) -> bool:
    """Whether it is NAME@VERSION, by its form."""
    return "@" in text


def _noted(model: Model) -> Model:
    """Records the version in the current call, for its log line and its caller."""
    call = current()
    call.model, call.version = model.name, model.version
    return model


def to_proto(alias: str, route: Route) -> model_pb2.Alias:
    """Returns the public description of a route."""
    described = model_pb2.Alias(
        name=alias,
        targets=[model_pb2.AliasTarget(model=model.id, weight=weight) for model, weight in route.targets],
        shadow=route.shadow.id if route.shadow else "",
    )
    described.etag = hashlib.sha256(described.SerializeToString(deterministic=True)).hexdigest()[:_ETAG_DIGITS]
    return described
