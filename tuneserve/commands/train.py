"""Train a model: check, train, search, merge and average."""

from pathlib import Path

import click

from tuneserve.commands.options import CheckpointPath, FilePath, overwrite_option
from tuneserve.machine.runtime import preload


@click.command()
@click.argument("config", type=FilePath)
def validate(config: Path) -> None:
    """Check a training CONFIG and its data, without training.

    Prints the number of rows, the share of each label, the lengths in tokens and how many rows would be truncated.
    Every bad row is listed with its file, line and reason.
    """
    from tuneserve.finetune.report.tables import validate as run

    run(config)


@click.command()
@click.argument("config", type=FilePath)
@overwrite_option
@click.option("--resume", is_flag=True, help="Continue an interrupted run from its last saved state.")
def finetune(config: Path, overwrite: bool, resume: bool) -> None:
    """Train a model as the YAML file CONFIG says; the result is a merged checkpoint.

    Trains, measures on held-out rows that training never saw, merges the adapter in float32, compares the merged
    model with the adapter on real inputs, and writes the checkpoint, whole or not at all.

    OUTPUT-report has report.html (loss curves, confusion matrix, calibration, each class, the worst mistakes), the same
    numbers in metrics.json, and TensorBoard's files. To watch a run: tensorboard --logdir OUTPUT-training
    """
    preload()
    from tuneserve.finetune.config import load
    from tuneserve.finetune.pipeline import finetune as run

    run(load(config), overwrite=overwrite, resume=resume)


@click.command()
@click.argument("config", type=FilePath)
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True, help="Runs in all.")
@click.option("--overwrite", is_flag=True, help="Start again instead of continuing an earlier search.")
def search(config: Path, trials: int, overwrite: bool) -> None:
    """Search for the best settings of the YAML file CONFIG; the result is a config for finetune.

    \b
    search:                                             # a key of CONFIG
      learning_rate: {low: 1e-5, high: 1e-3, log: true}
      epochs: [2, 4]

    optuna's TPE chooses the values of each trial from the results so far. A trial is measured on the validation rows
    after each epoch, and is ended early if it is worse than the median. The test rows are never used. Trials are kept
    in OUTPUT-search, so that an interrupted search can continue; OUTPUT-search/best.yaml has the best values.
    """
    preload()
    from tuneserve.finetune.search.search import search as run

    run(config, trials, overwrite=overwrite)


@click.command()
@click.argument("adapter", type=CheckpointPath)
@click.argument("output", type=CheckpointPath)
@overwrite_option
def merge(adapter: Path, output: Path, overwrite: bool) -> None:
    """Merge a LoRA ADAPTER that finetune kept into a checkpoint at OUTPUT, and verify it."""
    preload()
    from tuneserve.finetune.export.merging import merge as run

    run(adapter, output, overwrite=overwrite)


@click.command()
@click.argument("runs", type=CheckpointPath, nargs=-1, required=True)
@click.argument("output", type=CheckpointPath)
@overwrite_option
def soup(runs: tuple[Path, ...], output: Path, overwrite: bool) -> None:
    """Average the weights of several RUNS into one checkpoint at OUTPUT, and measure it on their held-out rows.

    The RUNS have the same base model and the same `test` file, and differ in seed or settings.
    """
    preload()
    from tuneserve.finetune.soup import soup as run

    run(runs, output, overwrite=overwrite)


@click.command()
@click.argument("policy", type=FilePath)
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
def retrain(policy: Path, dry_run: bool) -> None:
    """Train a model again from feedback, as the YAML file POLICY says, if there is enough; ship it if it is better.

    \b
    feedback: kept/*/sentiment/labels.jsonl       # what FeedbackService wrote
    checkpoint: checkpoints/sentiment             # to begin with
    output: checkpoints/loop                      # OUTPUT/current leads to the best one
    server: {model: sentiment, models_root: checkpoints, percent: 10, seconds: 3600}

    Compares the new checkpoint with the old one on held-out rows, old and new. A better one gets a share of the
    server's calls, then all of them; without `server` it ends there. A run that was interrupted is continued.

    Exit status: 0 if it was promoted, is not better, or there is too little feedback; 1 if it was rolled back or a step
    failed; 2 for a bad policy or bad rows.
    """
    preload()
    from tuneserve.retrain.policy import load
    from tuneserve.retrain.run import retrain as run

    run(load(policy), policy.absolute().parent, dry_run)
