"""Quality of fine-tuning on the sample data: every method and seed on one fixed split.

    python -m tuneserve.benchmarks.training.recipes WORK [--seeds 3] [--only movies-lora]

    movies   all movie sentences that people rated clearly (10,043), MiniLM 22M: accuracy
    tweets   all tweets with entities of ten types (2,394), MiniLM 22M: entity F1

A fifth of the rows is held out, stratified, by a seed of the split alone; the settings below were chosen on a part of
the other four fifths. Each run is `tuneserve finetune` as a user calls it, one after the other, in the folder WORK.
Runs that exist are not repeated, so that an interrupted measurement can be continued. Prints a table, and one line of
JSON at the end.
"""

import json
import random
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click
import yaml
from rich.console import Console
from rich.table import Table

from tuneserve import checkpoint, samples

TEST_SHARE = 0.2
TASKS: Mapping[str, Mapping[str, Any]] = {
    "movies": {"task": "sequence-classification", "max_length": 64, "batch_size": 32, "epochs": 2},
    "tweets": {"task": "token-classification", "max_length": 64, "batch_size": 16, "epochs": 8},
}
HEADLINES = {"movies": "accuracy", "tweets": "entity_f1"}
METHODS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "movies": {
        "full": {"method": "full", "learning_rate": 1e-4},
        "lora": {"method": "lora", "learning_rate": 3e-4, "lora_rank": 32, "lora_alpha": 64, "epochs": 3},
    },
    "tweets": {
        "full": {"method": "full", "learning_rate": 2e-4},
        "lora": {
            "method": "lora",
            "learning_rate": 2e-4,
            "lora_rank": 64,
            "lora_alpha": 256,
            "epochs": 14,
        },
    },
}


def split(task: str, folder: Path) -> tuple[Path, Path]:
    """Splits the sample data of a task into two files, training and test, the same every time, and returns both."""
    given = samples.sentiment() if task == "movies" else samples.tweets_ner()
    train, test = (folder / f"{task}-{part}{given.suffix}" for part in ("train", "test"))
    if not test.exists():
        text = given.read_text(encoding="utf-8")
        # One row a line, or rows of several lines separated by blank lines.
        found = text.splitlines() if task == "movies" else [one for one in re.split(r"\n\s*\n", text) if one.strip()]
        random.Random(0).shuffle(found)
        found.sort(key=_stratum)
        step = round(1 / TEST_SHARE)
        between = "\n" if task == "movies" else "\n\n"
        train.write_text(between.join(row for index, row in enumerate(found) if index % step) + "\n", encoding="utf-8")
        test.write_text(between.join(found[::step]) + "\n", encoding="utf-8")
    return train, test


def _stratum(row: str) -> list[str]:
    """The label of a line of JSON, or the types of the entities in CoNLL columns."""
    if row.startswith("{"):
        return [str(json.loads(row)["label"])]
    return sorted(set(re.findall(r"\tB-(\S+)", row)))


def run(task: str, method: str, seed: int, folder: Path) -> dict[str, float]:
    """Fine-tunes, unless the run exists, and returns the metrics of the merged checkpoint and of its training."""
    output = folder / f"{task}-{method}-{seed}"
    if not output.exists():
        train, test = split(task, folder)
        settings = {
            **TASKS[task],
            **METHODS[task][method],
            "base_model": str(samples.sentiment_encoder()),
            "train": str(train.resolve()),
            "test": str(test.resolve()),
            "output": str(output.resolve()),
            "seed": seed,
        }
        config = folder / f"{output.name}.yaml"
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        command = [sys.executable, "-m", "tuneserve.cli", "finetune", str(config), "--overwrite"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, float] = {}
    for step in checkpoint.read_manifest(output).lineage:
        found |= dict(step.metrics)
    return found


@click.command()
@click.argument("work", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--only", multiple=True, metavar="TASK-METHOD", help="Only these, for example tweets-lora.")
def main(work: Path, seeds: int, only: tuple[str, ...]) -> None:
    """Fine-tunes the sample data with every method and seed, in the folder WORK."""
    work.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, float]]] = {}
    for seed in range(1, seeds + 1):
        for task, methods in METHODS.items():
            for method in methods:
                if not only or f"{task}-{method}" in only:
                    results.setdefault(f"{task}-{method}", []).append(run(task, method, seed, work))
    table = Table("run", "metric", "mean", "deviation", "each", "trained weights", "seconds")
    for name, each in results.items():
        metric = HEADLINES[name.partition("-")[0]]
        values = [one[metric] for one in each]
        table.add_row(
            name,
            metric,
            f"{mean(values):.4f}",
            f"{stdev(values):.4f}" if len(values) > 1 else "",
            " ".join(f"{value:.4f}" for value in values),
            f"{each[0]['trained_parameters']:,.0f}",
            f"{mean(one['train_seconds'] for one in each):.0f}",
        )
    Console().print(table)
    print(
        json.dumps({name: [one[HEADLINES[name.partition("-")[0]]] for one in each] for name, each in results.items()})
    )


if __name__ == "__main__":
    main()
