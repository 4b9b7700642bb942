"""Speed of training: `tuneserve finetune` compared with the libraries' trainers, used as in their documentation.

    python -m tuneserve.benchmarks.training.beside_trainer    # 15 rounds, over an hour; --rounds 3 for a look

Regime. The demo's models and data: MiniLM (22M) on movie sentences, SmolLM2 (135M) on questions with answers. Both
sides are processes of their own, one after the other, in turns: the same rows, base model, LoRA on every linear layer,
batch size, epochs, learning rate, optimizer, dtype and preloaded libraries; `plain.py` is the other side, and groups
rows by length as ours does. Rates and ratios have the interval of claims.py. Each round has another seed, and every
other round begins with the other side. Tokens are those of the training rows, padding not counted; seconds are those of
training alone, not of loading, measuring and merging. Quality is measured on the same held-out rows, ours on the merged
bf16 checkpoint. The last line of stdout is the result as JSON.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from tuneserve import checkpoint, samples
from tuneserve.benchmarks import processes
from tuneserve.benchmarks.claims import METHOD, MIN_ROUNDS, Claim, Interval, interval, ratios
from tuneserve.benchmarks.machine import machine
from tuneserve.benchmarks.training.plain import Training
from tuneserve.checkpoint import rows
from tuneserve.checkpoint.tasks import TRAINABLE
from tuneserve.errors import StepFailed
from tuneserve.evaluation.quality import headline
from tuneserve.machine.tiers import this_tier

TEST_ROWS = {"sequence-classification": 500, "generation": 50}


@dataclass(frozen=True)
class Sample:
    """One training by one side."""

    tokens_per_s: float
    quality: float
    others_cores: float  # cores that all other programs of the machine used meanwhile


def trainings(scratch: Path, texts: int, chats: int) -> list[Training]:
    """Returns the two trainings, with their data split into files in `scratch`."""
    first: dict[str, Any] = {
        "task": "sequence-classification",
        "base_model": str(samples.sentiment_encoder()),
        "max_length": 64,
        "batch_size": 32,
        "learning_rate": 1e-3,
    }
    second: dict[str, Any] = {
        "task": "generation",
        "base_model": str(samples.chat_model()),
        "max_length": 128,
        "batch_size": 8,
        "learning_rate": 1e-4,
    }
    made = []
    for values, data, count in ((first, samples.sentiment(), texts), (second, samples.questions(), chats)):
        task = values["task"]
        # Ours leaves out training rows whose input is also in the test rows.
        found, held_out = list({rows.input_key(row): row for row in rows.read(data)}.values()), TEST_ROWS[task]
        # Neighbouring rows are about the same film or topic.
        spread = [found[index * 7919 % len(found)] for index in range(count + held_out)]
        files: dict[str, Any] = {name: str(scratch / f"{task}-{name}.jsonl") for name in ("train", "test")}
        rows.write(Path(files["train"]), spread[held_out:])
        rows.write(Path(files["test"]), spread[:held_out])
        output = str(scratch / task)
        bf16 = this_tier().dtype == "bfloat16"
        made.append(Training(**values, **files, output=output, epochs=1, seed=0, bf16=bf16))
    return made


def plain(training: Training) -> tuple[dict[str, float], float]:
    """Trains as in the libraries' documentation; returns tokens, seconds and quality, and the cores others used."""
    output, others = _child([sys.executable, "-m", "tuneserve.benchmarks.training.plain"], json.dumps(asdict(training)))
    return json.loads(output.splitlines()[-1]), others


def ours(training: Training) -> tuple[dict[str, float], float]:
    """Trains with `tuneserve finetune`; returns seconds and quality, and the cores others used."""
    values = asdict(training)
    precision = "bf16" if values.pop("bf16") else "fp32"
    settings = Path(training.output).with_suffix(".yaml")
    # JSON is YAML.
    settings.write_text(json.dumps(values | {"precision": precision}), encoding="utf-8")
    _, others = _child([sys.executable, "-m", "tuneserve.cli", "finetune", "--overwrite", str(settings)])
    steps = checkpoint.read_manifest(Path(training.output)).lineage
    quality = steps[-1].metrics[headline(TRAINABLE[training.task], {}).name]
    return {"seconds": steps[-2].metrics["train_seconds"], "quality": quality}, others


def _child(command: Sequence[str], given: str = "") -> tuple[str, float]:
    """Returns a program's output, and the cores that other programs used while it ran."""
    machine, own, started = processes.machine_cpu(), _children(), time.monotonic()
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        raise StepFailed(f"{' '.join(command[2:4])} failed", "\n".join(done.stderr.splitlines()[-15:]))
    others = processes.machine_cpu() - machine - (_children() - own)
    return done.stdout, max(0.0, others / (time.monotonic() - started))


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(training: Training, rounds: int, console: Console) -> dict[str, list[Sample]]:
    """Runs both sides `rounds` times in turns."""
    found: dict[str, list[Sample]] = {"plain": [], "ours": []}
    for number in range(rounds):
        seeded = replace(training, seed=number)
        results: dict[str, tuple[dict[str, float], float]] = {}
        for name in ("plain", "ours") if number % 2 == 0 else ("ours", "plain"):
            results[name] = (plain if name == "plain" else ours)(seeded)
        tokens = results["plain"][0]["tokens"]
        for name, (result, others) in results.items():
            sample = Sample(tokens / result["seconds"], result["quality"], others)
            found[name].append(sample)
            console.print(f"{training.task}, round {number + 1}: {name} {sample.tokens_per_s:.0f} tokens/s")
    return found


def summary(found: dict[str, list[Sample]]) -> dict[str, Any]:
    """Returns rates with their intervals, and the ratio of ours to plain round by round."""
    result: dict[str, Any] = {
        name: {
            "tokens_per_s": asdict(interval([sample.tokens_per_s for sample in some])),
            "quality": round(mean(sample.quality for sample in some), 4),
            "others_cores": round(median(sample.others_cores for sample in some), 2),
        }
        for name, some in found.items()
    }
    rates = {name: [sample.tokens_per_s for sample in some] for name, some in found.items()}
    [ratio] = ratios([Claim("ours, to plain", "ours", "plain")], rates)
    return result | {"ratio": asdict(ratio.interval)}


def table(results: dict[str, dict[str, Any]]) -> Table:
    """Returns the summaries as a table for people."""
    title = f"training on {machine()['tier']}; {METHOD[0].lower()}{METHOD[1:]}"
    made = Table("training", "side", "tokens/s", "quality", "to plain", "others' cores", title=title)
    for task, result in results.items():
        for side in ("plain", "ours"):
            made.add_row(
                task,
                side,
                Interval(**result[side]["tokens_per_s"]).text(0),
                f"{headline(TRAINABLE[task], {}).name} {result[side]['quality']:.4g}",
                Interval(**result["ratio"]).text(2) if side == "ours" else "",
                f"{result[side]['others_cores']:.2f}",
            )
    return made


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=MIN_ROUNDS, show_default=True)
@click.option("--texts", type=click.IntRange(0), default=2000, show_default=True, help="Rows to train a classifier on.")
@click.option("--chats", type=click.IntRange(0), default=200, show_default=True, help="Rows to train a chat model on.")
def main(rounds: int, texts: int, chats: int) -> None:
    """Compare `tuneserve finetune` with transformers' and TRL's own training; 0 rows leave one model out."""
    console = Console(stderr=True)
    results = {}
    with tempfile.TemporaryDirectory(prefix="tuneserve-bench-") as folder:
        try:
            for training, count in zip(trainings(Path(folder), texts, chats), (texts, chats), strict=True):
                if count:
                    results[training.task] = summary(measure(training, rounds, console))
        except StepFailed as error:
            raise click.ClickException(f"{error}\n{error.hint}") from None
    Console().print(table(results))
    said = {"machine": machine(), "method": METHOD, "rounds": rounds}
    click.echo(json.dumps(said | results, separators=(",", ":")))


if __name__ == "__main__":
    main()
