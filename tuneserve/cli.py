"""The command line; its commands are in commands/, call/, predict/ and the benchmarks.

Bad input gives one line, a hint and exit status 2; a failed check on a result gives exit status 1; anything else is a
bug and shows its traceback.
"""

import logging
import os
import sys
from typing import Any

try:
    import click
except ModuleNotFoundError:  # the client is installed alone
    sys.exit("error: the command line is not installed\nhint:  pip install 'tuneserve[server]'")

from tuneserve import __version__
from tuneserve.benchmarks.serving.command import bench_command
from tuneserve.call.command import call_command
from tuneserve.call.documents import index_command
from tuneserve.call.groups import Group
from tuneserve.commands import more, run, ship, train
from tuneserve.errors import StepFailed, UserError
from tuneserve.machine import lifetime, progress
from tuneserve.predict.command import predict_command

# The server spawns its engines as processes with this module as their main module.
lifetime.end_with_parent()


HEADINGS = {
    "Train": ("validate", "finetune", "search", "merge", "soup", "retrain"),
    "Ship": ("evaluate", "compare", "quantize", "verify", "inspect", "fetch"),
    "Run": ("serve", "worker", "call", "index", "predict", "bench", "key"),
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
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package in ("", "tuneserve"):
                raise
            # As in the image that serves.
            extra = {"obstore": "fetch", "lancedb": "answer"}.get(package, "train,quantize")
            click.echo(f"error: the Python package {package} is not installed", err=True)
            click.echo(f"hint:  pip install 'tuneserve[{extra}]', or use the train image", err=True)
            sys.exit(2)


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


for command in (
    train.validate,
    train.finetune,
    train.search,
    train.merge,
    train.soup,
    train.retrain,
    ship.quantize,
    ship.evaluate,
    ship.verify,
    ship.compare,
    ship.inspect,
    ship.fetch,
    run.serve,
    run.worker,
    run.key,
    more.schema,
    more.demo,
    more.samples,
    call_command,
    index_command,
    bench_command,
    predict_command,
):
    cli.add_command(command)


def main() -> None:
    """The console script."""
    # gRPC's core would write lines of its own to standard error, beside our one clear line.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    cli()


if __name__ == "__main__":
    main()
