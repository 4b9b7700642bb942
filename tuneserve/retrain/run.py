"""`tuneserve retrain`: enough new feedback → train → compare → canary → promote, or not. Each step is one line of
output, and a step of the checkpoint's lineage.
"""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tuneserve import checkpoint
from tuneserve.checkpoint.rows import Row
from tuneserve.checkpoint.tasks import TASK_NAMES
from tuneserve.client import CallError, Client
from tuneserve.errors import StepFailed, UserError
from tuneserve.finetune import config as finetune_config
from tuneserve.retrain import attempts, canary, feedback, gate
from tuneserve.retrain.attempts import Attempt, Attempts
from tuneserve.retrain.gate import Gain
from tuneserve.retrain.policy import CanaryConfig, RetrainConfig
from tuneserve.v1 import checkpoint_pb2 as pb

# What finetune does unless the policy says otherwise.
_DEFAULTS = {"replay_share": 0.5, "test_size": 0.2}


def retrain(policy: RetrainConfig, directory: Path, dry_run: bool = False) -> None:
    """Does what is due, and continues what was interrupted. `directory`: what paths in `finetune` are relative to.

    Returns if there is nothing to do, if the new checkpoint is not better, and if it was promoted. Raises StepFailed if
    it was rolled back or a step failed, UserError for a bad policy or bad rows.
    """
    if dry_run:
        _Loop(policy, directory).show()
        return
    with attempts.alone(policy.output):
        _Loop(policy, directory).run()


class _Loop:
    def __init__(self, policy: RetrainConfig, directory: Path) -> None:
        self._policy, self._directory = policy, directory
        self._attempts = Attempts(policy.output)
        self._current = self._attempts.current or policy.checkpoint
        self._manifest = checkpoint.read_manifest(self._current)
        if self._manifest.task not in TASK_NAMES:
            raise UserError(f"{self._current}: is for no task that is known", "give a checkpoint of tuneserve finetune")
        self._settings = self._given()
        # Told now, not once there are enough rows.
        config = self._config(policy.feedback, policy.output)
        for key, file in (("replay", config.replay), ("test", config.test)):
            if file and Path(file).is_absolute() and not Path(file).is_file():
                raise UserError(f"finetune.{key}: {file}: no such file", "a file, or the id of a data set on the hub")

    def show(self) -> None:
        """Prints what would be done."""
        new, untried = self._new()
        if attempt := self._attempts.unfinished:
            print(f"would continue attempt {attempt.name} on {len(attempt.rows())} rows")
        elif untried < self._policy.min_rows:
            print(f"would wait: {self._too_few(untried)}")
            return
        else:
            print(f"would train on {len(new)} new rows, from {self._current}")
        server = self._policy.server
        print(f"would compare with {self._current}")
        if not server:
            print(f"would leave a better checkpoint in {self._policy.output / 'current'}")
            return
        print(f"would give a better one {server.percent} % of {server.model} at {server.target}, {server.seconds:g} s")

    def run(self) -> None:
        """Does it."""
        if current := self._attempts.current:
            self._attempts.link(current)
            self._remove(self._attempts.learned())
        attempt = self._attempts.unfinished
        # Once compared, it may have calls of a server.
        if attempt and "compared" not in attempt.known and attempt.known["settings"] != self._settings:
            print(f"{attempt.name} begins again: the policy has changed")
            attempt.forget()
            self._attempts = Attempts(self._policy.output)
            attempt = None
        if not attempt:
            new, untried = self._new()
            if untried < self._policy.min_rows:
                print(f"waiting: {self._too_few(untried)}")
                return
            attempt = self._attempts.begin(new, source=str(self._current), settings=self._settings)
            print(f"{attempt.name} begins: {len(new)} new rows, from {self._current}")
        self._train(attempt)
        metric, old, new_rows = self._compare(attempt)
        if wrong := gate.verdict(self._policy, old, new_rows):
            attempt.note(outcome=attempts.REFUSED)
            print(f"{attempt.name} is not better: {wrong}")
            return
        print(f"{attempt.name} is better")
        self._promote(attempt, {metric: old.after})

    def _given(self) -> dict[str, Any]:
        given = {key: value for key, value in self._policy.finetune.items() if value is not None}
        defaults = {key: value for key, value in _DEFAULTS.items() if not (key == "test_size" and "test" in given)}
        own = {"task": TASK_NAMES[self._manifest.task], "continue_from": str(self._current.resolve())}
        if self._manifest.task == pb.TASK_SEQUENCE_CLASSIFICATION:
            [own["problem_type"]] = [
                name for name, value in checkpoint.PROBLEM_TYPES.items() if value == self._manifest.problem_type
            ]
        return {**defaults, **given, **own}

    def _config(self, train: Path, output: Path) -> finetune_config.FinetuneConfig:
        own = {"train": str(train.resolve()), "output": str(output.resolve())}
        return finetune_config.parse({**self._settings, **own}, self._directory, "finetune")

    def _new(self) -> tuple[list[dict[str, Any]], int]:
        """Returns the rows that the current checkpoint has not learned, and how many of them were never tried."""
        new = feedback.without(feedback.read(self._policy.feedback), self._attempts.learned())
        return new, len(feedback.without(new, self._attempts.tried()))

    def _too_few(self, untried: int) -> str:
        found = "" if feedback.files(self._policy.feedback) else f"; no file is {self._policy.feedback}"
        return f"{untried} new rows, min_rows is {self._policy.min_rows}{found}"

    def _train(self, attempt: Attempt) -> None:
        if attempt.checkpoint.exists():
            return
        if self._policy.server:
            # Before hours of work for a server that does not know the model.
            with _connected(self._policy.server) as client:
                canary.served(self._policy.server, client)
        from tuneserve.finetune.pipeline import finetune

        finetune(self._config(attempt.rows_file, attempt.checkpoint), resume=True)
        print(f"{attempt.name} is trained: {attempt.checkpoint}")

    def _compare(self, attempt: Attempt) -> tuple[str, Gain, Gain]:
        if "compared" not in attempt.known:
            metric, *gains = gate.compare(Path(attempt.known["source"]), attempt.checkpoint)
            figures = {
                f"{part}_{metric}_{key}": value
                for part, one in zip(("old", "new"), gains, strict=True)
                for key, value in asdict(one).items()
            }
            _note(attempt, "compare", {metric: gains[0].after, **figures})
            attempt.note(compared={"metric": metric, "old": asdict(gains[0]), "new": asdict(gains[1])})
        found = attempt.known["compared"]
        old, new = Gain(**found["old"]), Gain(**found["new"])
        print(f"{attempt.name} compared: {found['metric']} of old rows {old}, of new rows {new}")
        return found["metric"], old, new

    def _promote(self, attempt: Attempt, metrics: Mapping[str, float]) -> None:
        if server := self._policy.server:
            with _interruptible(), _connected(server) as client:
                say = lambda line: print(f"{attempt.name} {line}", flush=True)  # noqa: E731
                failure = canary.Canary(server, client, attempt.checkpoint, say).run()
            if failure:
                _note(attempt, "roll back", metrics)
                attempt.note(outcome=attempts.ROLLED_BACK, why=failure)
                raise StepFailed(f"{attempt.name} was rolled back: the new version {failure}", "the old one answers")
        _note(attempt, "promote", metrics)
        self._attempts.promote(attempt)
        print(f"{attempt.name} is promoted: {self._policy.output / 'current'}")
        self._remove(attempt.rows())

    def _remove(self, learned: Sequence[Row]) -> None:
        """Makes room for more feedback. A run that is killed before leaves it to the next one."""
        if self._policy.remove_learned and (count := feedback.remove(self._policy.feedback, learned)):
            print(f"removed {count} rows that were learned from {self._policy.feedback}")


@contextmanager
def _connected(server: CanaryConfig) -> Iterator[Client]:
    """Yields a client. A server's refusal inside the block becomes StepFailed."""
    try:
        with Client(server.target, tls=server.tls, ca=server.ca) as client:
            yield client
    except CallError as error:
        told = f"server.target: {server.target}: {error.code.name}: {error}"
        raise StepFailed(told, "run it again: it goes on where it was") from None


def _note(attempt: Attempt, step: str, metrics: Mapping[str, float]) -> None:
    """Adds a step to the checkpoint's lineage, once. Its version stays the same: that is of its files."""
    manifest = checkpoint.read_manifest(attempt.checkpoint)
    if manifest.lineage[-1].name == step:
        return
    entry = checkpoint.step(step, Path(attempt.known["source"]).name, {}, ())
    entry.metrics.update(metrics)
    manifest.lineage.append(entry)
    writing = attempt.output / f".{attempt.name}.manifest"
    writing.write_text(checkpoint.to_json(manifest) + "\n", encoding="utf-8")
    os.replace(writing, attempt.checkpoint / checkpoint.MANIFEST)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM raises during the block, as Ctrl-C does, so that what was begun on the server is undone."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
