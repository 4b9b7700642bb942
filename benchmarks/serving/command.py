"""`tuneserve bench`: the flags, the table for people, and one line of JSON for programs."""

import json
from pathlib import Path
from typing import Any

import click

from tuneserve.call.common import server_options


@click.command("bench")
@click.option("--model", required=True, help="Name of the model; its task determines the calls.")
@click.option(
    "--connections",
    type=click.IntRange(1, 4096),
    default=8,
    show_default=True,
    help="Connections, each with one call at a time.",
)
@click.option(
    "--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Seconds that are measured."
)
@click.option(
    "--warmup", type=click.FloatRange(0), default=2.0, show_default=True, help="Seconds of warm-up, not counted."
)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Texts of one classification call.")
@click.option(
    "--texts",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with one input a line; a running number is put before each.  [default: built-in ones]",
)
@click.option(
    "--max-tokens", type=click.IntRange(1), default=64, show_default=True, help="Tokens of each generated answer."
)
@click.option("--stream/--unary", default=True, show_default=True, help="GenerateStream or Generate.")
@server_options()
def bench_command(**settings: Any) -> None:
    """Measure a running server in a closed loop.

    Every connection sends its next call when the last one has ended, so at most --connections calls are in the server.
    The figures are those of that many callers, and hide the queueing of calls that arrive independently.

    \b
    tuneserve bench --model sentiment --connections 32 --batch 8
    tuneserve bench --model chat --connections 16 --max-tokens 128

    Prints TTFT, ITL (between messages), TPOT and E2EL, and as the last line one JSON object with every setting and
    figure. Each input begins with a running number, so that no cache can answer. Answers are not checked.
    """
    from rich.console import Console

    from tuneserve.benchmarks.serving.load.bench import run
    from tuneserve.benchmarks.serving.load.calls import Settings
    from tuneserve.benchmarks.serving.load.report import table

    chosen = Settings(**settings)
    waiting = f"{chosen.warmup:g} s of warm-up, then {chosen.seconds:g} s on {chosen.connections} connections"
    with Console(stderr=True).status(waiting):
        result = run(chosen)
    Console().print(table(result))
    click.echo(json.dumps(result.to_json(), separators=(",", ":")))
