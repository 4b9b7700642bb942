"""Prints a checkpoint's description: a table of its steps for people, the manifest's JSON for programs."""

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tuneserve import checkpoint
from tuneserve.checkpoint.tasks import TASK_NAMES
from tuneserve.evaluation import quality
from tuneserve.v1 import checkpoint_pb2 as pb

if TYPE_CHECKING:
    from rich.console import Console


def show(directory: Path, as_json: bool = False, verify: bool = False) -> None:
    """Prints a checkpoint. `verify` hashes every file first. Raises CheckpointError."""
    if verify:
        manifest = checkpoint.load(directory)
    elif (directory / checkpoint.MANIFEST).exists():
        manifest = checkpoint.read_manifest(directory)
    else:
        checkpoint.refuse_unsafe(directory)
        manifest = checkpoint.describe(directory)
    if as_json:
        click.echo(checkpoint.to_json(manifest))
    else:
        show_manifest(directory, manifest)


def show_manifest(directory: Path, manifest: pb.Checkpoint, console: "Console | None" = None) -> None:
    """Prints a manifest as a few lines, and the metrics of its steps side by side."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()

    length = "trained at" if checkpoint.trained_length(manifest) else "longest input"
    facts = {
        "task": TASK_NAMES.get(manifest.task, "unknown"),
        "architecture": manifest.architecture,
        "labels": ", ".join(manifest.labels),
        "pooling": manifest.pooling,
        "prompts": ", ".join(f"{name} {text!r}" for name, text in sorted(manifest.prompts.items())),
        "weights": f"{checkpoint.size_of(manifest) / 1e6:.1f} MB, {manifest.quantization or manifest.dtype}",
        "temperature": f"{manifest.temperature:.3f}" if manifest.HasField("temperature") else "",
        length: f"{manifest.max_length} tokens",
        "version": checkpoint.version_of(manifest),
        "held-out rows": str(manifest.test_split.rows) if manifest.test_split.rows else "",
        "made by": " -> ".join(step.name for step in manifest.lineage),
    }
    console.print(f"[bold]{directory}[/bold]")
    for name, fact in facts.items():
        if fact:
            console.print(f"  {name:<15}{fact}", highlight=False, markup=False)
    steps = [step for step in manifest.lineage if step.metrics]
    if not steps:
        return
    names = list(dict.fromkeys(chain.from_iterable(sorted(step.metrics) for step in steps)))
    headline = quality.headline(manifest.task, steps[-1].metrics).name
    names.sort(key=lambda name: (name != headline, "/" in name))
    table = Table("metric", *(step.name for step in steps))
    if any(step.measured_on for step in steps):
        table.add_row("measured on", *(step.measured_on for step in steps))
    for name in names:
        table.add_row(name, *(_figure(step.metrics[name]) if name in step.metrics else "" for step in steps))
    console.print(table)


def _figure(value: float) -> str:
    """Formats counts in full, and measured values with four decimal places."""
    return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
