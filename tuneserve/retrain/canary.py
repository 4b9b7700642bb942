"""The way of a new checkpoint onto a running server: a share of the calls to a model, then all of them, or none.

The alias tells how far an interrupted run came, and it is moved only from what this run has read (its etag): what
somebody else does with it meanwhile is left alone.
"""

import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from tuneserve import checkpoint
from tuneserve.client import Alias, Client
from tuneserve.errors import StepFailed
from tuneserve.retrain.policy import CanaryConfig

Say = Callable[[str], None]

_CALLS = "tuneserve_version_calls_total"
_FAILED = ("INTERNAL", "UNAVAILABLE", "UNKNOWN")
_POLL_SECONDS = 1.0
_LOAD_SECONDS = 1800.0


class Canary:
    """One new version of a model on a server."""

    def __init__(self, config: CanaryConfig, client: Client, directory: Path, say: Say) -> None:
        self._config = config
        self._client = client
        self._path = directory.resolve().relative_to(config.models_root.resolve()).as_posix()
        self._new = f"{config.model}@{checkpoint.version_of(checkpoint.read_manifest(directory))}"
        self._say = say

    def run(self) -> str:
        """Loads the version, gives it a share of the calls, and promotes it or rolls it back. Returns why it was rolled
        back, or an empty text.

        Raises StepFailed if somebody else changes the alias, and CallError; the alias is whole then: an error, or a
        signal, rolls it back.
        """
        alias = self._alias()
        if [target.model for target in alias.targets] == [self._new]:
            return ""
        old = self._old(alias)
        if failure := self._load():
            return failure
        share = self._config.percent
        try:
            alias = self._move(alias, {old: 100 - share, self._new: share})
            self._say(f"canary: {share} % of {alias.name} to {self._new}, the others to {old}")
            if not (failure := self._watch(alias)):
                self._move(alias, {self._new: 1}, unload_unused=True)
                return ""
        except BaseException:
            self._roll_back(old)
            raise
        self._roll_back(old)
        return failure

    def _alias(self) -> Alias:
        return served(self._config, self._client)

    def _old(self, alias: Alias) -> str:
        others = [target.model for target in alias.targets if target.model != self._new]
        if len(others) != 1:
            shown = ", ".join(others)
            raise StepFailed(
                f"{alias.name} is an alias of several versions: {shown}", "end that canary: point it at one of them"
            )
        return others[0]

    def _load(self) -> str:
        """Returns why the version could not be loaded, or an empty text."""
        states = {model.id: model.state for model in self._client.models()}
        if states.get(self._new) not in ("ready", "loading"):
            loaded = self._client.load_model(self._config.model, self._path, timeout=_LOAD_SECONDS)
            if loaded.id != self._new:
                raise StepFailed(f"the server loaded {loaded.id}, not {self._new}", "is server.models_root the same?")
        for model in self._client.watch_model(self._new, timeout=_LOAD_SECONDS):
            state, failure = model.state, model.failure
        if state == "ready":
            return ""
        self._client.unload_model(self._new)
        return f"could not be loaded: {failure or state}"

    def _watch(self, alias: Alias) -> str:
        """Returns what went wrong with the version's share of the calls, or an empty text."""
        before, needed = self._counts(), self._config.calls
        end = time.monotonic() + self._config.seconds
        while True:
            calls, failed = (now - then for now, then in zip(self._counts(), before, strict=True))
            state = {model.id: model.state for model in self._client.models()}.get(self._new, "gone")
            if state != "ready":
                return f"is {state}"
            if calls and failed > self._config.max_error_share * calls:
                return f"{failed:.0f} of {calls:.0f} calls failed"
            if self._alias().etag != alias.etag:
                raise StepFailed(f"somebody else has moved {alias.name}", "it stays as it is; run this again")
            if needed and calls >= needed:
                return ""
            if time.monotonic() >= end:
                return f"ended {calls:.0f} calls in time; calls is {needed}" if needed else ""
            time.sleep(min(_POLL_SECONDS, max(0.0, end - time.monotonic())))

    def _counts(self) -> tuple[float, float]:
        """Returns the calls of the new version, and those that failed; zeros without metrics."""
        if not self._config.metrics:
            return 0.0, 0.0
        from prometheus_client.parser import text_string_to_metric_families

        try:
            with urllib.request.urlopen(self._config.metrics, timeout=10) as page:
                families = list(text_string_to_metric_families(page.read().decode()))
        except OSError as error:
            raise StepFailed(f"server.metrics: {self._config.metrics}: {error}") from None
        name, _, version = self._new.partition("@")
        found = {
            sample.labels["grpc_code"]: sample.value
            for family in families
            for sample in family.samples
            if sample.name == _CALLS and (sample.labels["model"], sample.labels["version"]) == (name, version)
        }
        return sum(found.values()), sum(found.get(code, 0.0) for code in _FAILED)

    def _roll_back(self, old: str) -> None:
        """Gives all calls to the old version, if they are still split between the two; unloads the new one."""
        alias, share = self._alias(), self._config.percent
        if {target.model: target.weight for target in alias.targets} == {old: 100 - share, self._new: share}:
            self._move(alias, {old: 1}, unload_unused=True)
            self._say(f"all of {alias.name} to {old} again")

    def _move(self, alias: Alias, targets: Mapping[str, int], unload_unused: bool = False) -> Alias:
        return self._client.set_alias(
            alias.name, targets, shadow=alias.shadow, etag=alias.etag, unload_unused=unload_unused
        )


def served(config: CanaryConfig, client: Client) -> Alias:
    """Returns the model's alias. Raises StepFailed if there is none, and CallError."""
    aliases = {alias.name: alias for alias in client.aliases()}
    if config.model not in aliases:
        names = ", ".join(sorted(aliases)) or "none"
        raise StepFailed(f"server.model: {config.target} serves no {config.model}", f"its models: {names}")
    return aliases[config.model]
