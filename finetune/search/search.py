"""Hyperparameter search: many runs of one config, each measured on its validation rows; the best one is written.

optuna's TPE chooses the values of each trial from the results of the earlier ones (Bergstra et al. 2011). A trial that
is worse after an epoch than the median of the others at that epoch is pruned. No trial sees the test rows: they are for
the run that `finetune` makes of the result.

    OUTPUT-search/study.db     every trial; an interrupted search continues with them
    OUTPUT-search/best.yaml    the config with the best values in it
"""

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

from tuneserve.checkpoint import rows
from tuneserve.checkpoint.tasks import TRAINABLE, Headline
from tuneserve.errors import StepFailed, UserError
from tuneserve.evaluation import quality
from tuneserve.finetune import pipeline, preparation
from tuneserve.finetune.config import PATHS, FinetuneConfig, changed_settings, parse
from tuneserve.finetune.data import dataset
from tuneserve.finetune.data.dataset import Data
from tuneserve.finetune.eval import evaluation
from tuneserve.finetune.model import base_models
from tuneserve.finetune.search.space import Space, load
from tuneserve.v1 import checkpoint_pb2 as pb

logger = logging.getLogger(__name__)

STARTUP = 5  # trials with random values, none of them pruned
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def search(path: Path, trials: int, overwrite: bool = False) -> Path:
    """Runs until there are `trials` trials, earlier ones included, and returns the path of `best.yaml`.

    The same file gives the same trials, whether the search was interrupted or not. Raises UserError for a bad file, or
    if an earlier search had other settings; StepFailed if no trial was completed.
    """
    values, space = load(path)
    config = parse(values, path.parent, str(path))
    base_models.quiet()
    split = dataset.load(config)
    # Trials have no test rows to measure on, whatever they do.
    split = replace(split, test=[], old=replace(split.old, test=()))
    directory = config.output.with_name(config.output.name + "-search")
    study = _study(directory, config, space, split, overwrite)

    def objective(trial: optuna.Trial) -> float:
        chosen = space.choose(trial, values)
        logger.info("trial %d of %d: %s", len(_finished(study)) + 1, trials, _words(trial.params))
        try:
            return _run(trial, parse(chosen, path.parent, str(path)), split, directory / "training")
        except StepFailed as error:
            # For example a learning rate at which the loss becomes NaN: the search should avoid it.
            logger.warning("trial %d: %s", trial.number, error)
            raise optuna.TrialPruned from None
        finally:
            shutil.rmtree(directory / "training", ignore_errors=True)

    while (done := len(_finished(study))) < trials:
        # Seeded by their number, so that a continued search makes the same trials as an uninterrupted one.
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=config.seed + done)
        study.optimize(objective, n_trials=1)
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise StepFailed("no trial was completed", "the log says why; are the ranges too wide?")
    best = directory / "best.yaml"
    best.write_text(_yaml(space.with_values(values, study.best_params), path.parent, study), encoding="utf-8")
    _show(study, space, best)
    return best


def _study(directory: Path, config: FinetuneConfig, space: Space, split: Data, overwrite: bool) -> optuna.Study:
    """Returns the study of the directory, with the trials of an earlier search of the same settings."""
    if overwrite:
        shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    # optuna's own log lines would repeat ours.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    higher = _headline(config.task, config.problem_type).higher_is_better
    study = optuna.create_study(
        study_name="search",
        storage=f"sqlite:///{directory / 'study.db'}",
        load_if_exists=True,
        direction="maximize" if higher else "minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
    )
    settings = config.public() | {
        "search": space.public(),
        "data_sha256": rows.sha256(chain(split.train, split.validation)),
    }
    settings = json.loads(json.dumps(settings))
    before = study.user_attrs.get("settings", settings)
    if changed := changed_settings(before, settings):
        raise UserError(
            f"{directory}: that search was started with another {changed[0]}",
            "give the settings that it was started with, or start again with --overwrite",
        )
    study.set_user_attr("settings", settings)
    for killed in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(killed.number, state=TrialState.FAIL)
    return study


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=FINISHED)


def _run(trial: optuna.Trial, config: FinetuneConfig, split: Data, state: Path) -> float:
    """Trains, and returns the headline metric on the validation rows. Raises TrialPruned for a bad trial."""
    ready = preparation.prepare(config, split)

    def measure(model: Any) -> float:
        found = evaluation.evaluate(model, ready.tokenizer, ready.target, ready.split.validation, bf16=False)
        return found.metrics[_headline(config.task, config.problem_type).name]

    shutil.rmtree(state, ignore_errors=True)
    model, _ = pipeline.train_model(ready, state, pb.Step(), [Pruning(trial, measure)])
    return measure(model)


def _headline(task: str, problem_type: str) -> Headline:
    """Returns the metric that trials are compared by."""
    special = "pearson" if problem_type == "regression" else "reward_accuracy" if task == "preference" else ""
    return quality.headline(TRAINABLE[task], {special: 0.0})


class Pruning(TrainerCallback):  # type: ignore[misc]
    """Reports each epoch, and raises TrialPruned if the trial is worse than the others' median at that epoch."""

    def __init__(self, trial: optuna.Trial, measure: Callable[[Any], float]) -> None:
        self._trial = trial
        self._measure = measure

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """See TrainerCallback."""
        self._trial.report(self._measure(model), step=math.ceil(state.epoch))
        if self._trial.should_prune():
            raise optuna.TrialPruned


def _yaml(values: Mapping[str, Any], directory: Path, study: optuna.Study) -> str:
    """Returns the values as a config file that is valid in any directory."""
    config, best = parse(values, directory), study.best_trial
    whole = {
        key: str(getattr(config, key)) if key in (*PATHS, "chat_template") else value for key, value in values.items()
    }
    head = f"# Trial {best.number} of {len(_finished(study))}: {best.value:.4f} on the validation rows.\n"
    return head + yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)


def _show(study: optuna.Study, space: Space, best: Path) -> None:
    settings = study.user_attrs["settings"]
    console = Console()
    name = _headline(settings["task"], settings["problem_type"]).name
    table = Table("trial", f"validation {name}", *space.keys, "")
    for trial in _finished(study):
        value = f"{trial.value:.4f}" if trial.value is not None else ""
        ended = "ended early" if trial.state is TrialState.PRUNED else ""
        note = "best" if trial.number == study.best_trial.number else ended
        table.add_row(str(trial.number), value, *(_word(trial.params.get(key, "")) for key in space.keys), note)
    console.print(table)
    whole = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(space.keys) > 1 and len(whole) >= STARTUP:
        shares = optuna.importance.get_param_importances(study)
        console.print("importance: " + ", ".join(f"{key} {share:.0%}" for key, share in shares.items()))
    console.print(f"tuneserve finetune {best}", soft_wrap=True)


def _words(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_word(value)}" for key, value in params.items())


def _word(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
