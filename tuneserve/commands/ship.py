"""From a trained checkpoint to one that is served: measure, compare, quantize, verify and inspect."""

from pathlib import Path

import click

from tuneserve.commands.options import CheckpointPath, FilePath, overwrite_option
from tuneserve.machine.runtime import preload


@click.command()
@click.argument("checkpoint", type=CheckpointPath)
@click.argument("output", type=CheckpointPath)
@click.option(
    "--scheme", required=True, help="w8a8, w8a16, w4a16, fp8, nf4, int8, or auto: the fastest that meets --max-drop."
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    default=0.01,
    show_default=True,
    help="Write no checkpoint that may, with 95 % confidence, lose more than this share (0.01: a point of accuracy or"
    " correlation, 1 % more perplexity, an error larger by 1 % of the labels' standard deviation).",
)
@click.option("--point-estimate", is_flag=True, help="Compare the measured drop itself with --max-drop: for few rows.")
@click.option("--method", help="Try only this method: rtn, smoothquant, gptq, smoothquant-gptq or awq.")
@click.option(
    "--calibration",
    type=FilePath,
    help="Training rows to calibrate with (JSON Lines). Default: those that finetune kept in the checkpoint.",
)
@click.option("--kv-cache", type=click.Choice(["fp8"]), help="Also store the KV cache in fp8; generation only.")
@click.option(
    "--reduce-range",
    is_flag=True,
    help="Keep w8a8 weights within ±64, for exact products on CPUs without VNNI, too. Always done on such a CPU.",
)
@click.option("--data", type=FilePath, help="Rows to measure on (JSON Lines). Default: the checkpoint's held-out rows.")
@overwrite_option
def quantize(
    checkpoint: Path,
    output: Path,
    scheme: str,
    max_drop: float,
    point_estimate: bool,
    method: str | None,
    calibration: Path | None,
    kv_cache: str | None,
    reduce_range: bool,
    data: Path | None,
    overwrite: bool,
) -> None:
    """Write CHECKPOINT with 8-bit or 4-bit weights to OUTPUT, with the quality measured before and after.

    Both are measured through the server and vLLM, on the same held-out rows. If the first attempt does not pass, the
    scheme's other methods are tried on separate rows; then the blocks that lose most quality are left unquantized, up
    to half of them. The attempt chosen there is measured on the held-out rows, too.
    """
    preload()
    from tuneserve.checkpoint import rows
    from tuneserve.quantize.run import quantize as run

    run(
        checkpoint,
        output,
        scheme,
        max_drop=max_drop,
        data=rows.read(data) if data else None,
        overwrite=overwrite,
        method=method,
        calibration_file=calibration,
        fp8_cache=kv_cache == "fp8",
        reduce_range=reduce_range,
        point_estimate=point_estimate,
    )


@click.command()
@click.argument("checkpoint", type=CheckpointPath)
@click.option("--data", type=FilePath, help="Rows to measure on (JSON Lines). Default: the checkpoint's held-out rows.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the table.")
def evaluate(checkpoint: Path, data: Path | None, as_json: bool) -> None:
    """Measure quality and throughput of CHECKPOINT on held-out rows, through the server and vLLM."""
    from tuneserve.checkpoint import rows, seen
    from tuneserve.evaluation.evaluate import measure, show

    show(measure(checkpoint, seen.unseen(rows.read(data), [checkpoint]) if data else None), as_json=as_json)


@click.command()
@click.argument("checkpoint", type=CheckpointPath)
@click.option(
    "--data", type=FilePath, help="Rows to compare on (JSON Lines). Default: held-out rows, or a few sentences."
)
def verify(checkpoint: Path, data: Path | None) -> None:
    """Check that CHECKPOINT answers in the server as in transformers: labels, scores and token ids.

    Works for checkpoints that tuneserve did not make, too.
    """
    from tuneserve.checkpoint import rows
    from tuneserve.evaluation.verify import verify as run

    run(checkpoint, rows.read(data) if data else None)


@click.command()
@click.argument("first", type=CheckpointPath)
@click.argument("second", type=CheckpointPath)
@click.option("--data", type=FilePath, help="Rows to compare on (JSON Lines). Default: the held-out rows of FIRST.")
def compare(first: Path, second: Path, data: Path | None) -> None:
    """Test whether SECOND is worse or better than FIRST by more than chance, on the same rows.

    Measures through the server and vLLM, and tests the difference of the headline metric, row by row: accuracy with
    McNemar's exact test; entity F1, perplexity and correlation with a paired permutation test.
    """
    from tuneserve.checkpoint import rows
    from tuneserve.evaluation.evaluate import compare as run
    from tuneserve.evaluation.evaluate import show_comparison

    show_comparison(*run(first, second, rows.read(data) if data else None))


@click.command()
@click.argument("source")
@click.argument("output", type=CheckpointPath)
@click.option("--if-missing", is_flag=True, help="Only verify an OUTPUT that exists.")
@overwrite_option
def fetch(source: str, output: Path, if_missing: bool, overwrite: bool) -> None:
    """Copy the checkpoint at SOURCE to the directory OUTPUT, and verify every file: whole or not at all.

    \b
    tuneserve fetch s3://bucket/models/sentiment sentiment    # also gs://, az://, https://
    tuneserve fetch org/name@revision chat                    # on the hub

    Credentials come from the environment: AWS_…, GOOGLE_…, AZURE_…, HF_TOKEN, or the machine's own role.
    """
    from tuneserve import checkpoint
    from tuneserve import fetch as fetching

    if if_missing and output.exists():
        checkpoint.load(output)
    else:
        fetching.fetch(source, output, overwrite)


@click.command()
@click.argument("checkpoint", type=CheckpointPath)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as it is stored.")
@click.option("--verify", is_flag=True, help="Hash every file and compare.")
def inspect(checkpoint: Path, as_json: bool, verify: bool) -> None:
    """Print what CHECKPOINT is, how it was made, and its measured quality."""
    from tuneserve.inspect import show

    show(checkpoint, as_json=as_json, verify=verify)
