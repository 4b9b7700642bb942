"""`tuneserve predict`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tuneserve.predict.source import Shard


@click.command("predict")
@click.argument("checkpoint", type=click.Path(path_type=Path, file_okay=False))
@click.argument("rows", type=click.Path(path_type=Path, allow_dash=True))
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option(
    "--column", "columns", multiple=True, metavar="NAME=COLUMN", help="Read NAME (e.g. text) from the file's COLUMN."
)
@click.option("--resume", is_flag=True, help="Continue an interrupted run; no row is answered twice.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--shard", metavar="I/N", default="0/1", help="Only every N-th row, from row I (0 to N-1) on.")
@click.option(
    "--truncation",
    type=click.Choice(["end", "reject", "windows"]),
    default="end",
    show_default=True,
    help="What happens to texts that are too long: truncated, rejected, or read in overlapping windows.",
)
@click.option("--scores", is_flag=True, help="Classification: also the score of every label.")
@click.option("--prompt", metavar="NAME", help="Embedding: the checkpoint's prompt to put before each text.")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Generation: tokens at most."
)
@click.option(
    "--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="Generation: 0 is greedy."
)
def predict_command(
    checkpoint: Path, rows: Path, output: Path, columns: tuple[str, ...], resume: bool, overwrite: bool, **options: Any
) -> None:
    """Answer every row of a file with CHECKPOINT, and write the rows with their answers to OUTPUT.

    \b
    tuneserve predict sentiment reviews.parquet answered.parquet --column text=review
    tuneserve predict ner texts/ entities.jsonl --resume
    echo '{"text": "A lovely film."}' | tuneserve predict sentiment - -

    ROWS is a file (jsonl, json, csv, tsv, parquet), a folder of such files, or - for JSON Lines on standard input. A
    row has text, and text_pair for pairs; or query and candidates, to be ranked; or prompt, or messages, for
    generation. OUTPUT (jsonl, csv, tsv, parquet, or -) has the same rows in the same order, with more columns:
    predicted_label and predicted_score, predicted_labels, predicted_value, predicted_entities, predicted_ranking,
    predicted_embedding or predicted_text. A row that can't be answered has predicted_error, the reason.

    OUTPUT is written whole or not at all. Until then the answers are in OUTPUT.parts, for --resume.
    """
    from tuneserve.predict.run import Job, predict
    from tuneserve.predict.source import Source
    from tuneserve.predict.tasks import Options

    job = Job(
        checkpoint,
        Source.at(rows, _shard(options["shard"])),
        dict(map(_named, columns)),
        Options(
            options["truncation"], options["scores"], options["max_tokens"], options["temperature"], options["prompt"]
        ),
    )
    counts = predict(job, output, resume=resume, overwrite=overwrite)
    if counts.rows:
        click.echo(f"{output}: {counts.rows} rows answered, {counts.errors} of them with an error", err=True)


def _named(column: str) -> tuple[str, str]:
    name, equals, there = column.partition("=")
    if not (name and equals and there):
        raise click.UsageError(f"--column {column}: give NAME=COLUMN, for example text=review")
    return name, there


def _shard(text: str) -> "Shard":
    from tuneserve.predict.source import Shard

    index, _, of = text.partition("/")
    if not (index.isdecimal() and of.isdecimal() and int(index) < int(of)):
        raise click.UsageError(f"--shard {text}: give I/N with I from 0 to N-1, for example 0/4")
    return Shard(int(index), int(of))
