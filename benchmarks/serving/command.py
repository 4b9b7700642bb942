"""`tuneserve bench`: the flags, the table for people, and one line of JSON for programs."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from tuneserve.call.common import server_options
from tuneserve.call.groups import Grouped
from tuneserve.errors import UserError

_GOALS = ("e2el", "ttft", "tpot")
_HEADINGS = {
    "Load": ("connections", "processes", "rates", "burstiness", "max_rate", "seconds", "warmup", "seed"),
    "Calls": ("model", "call", "batch", "texts", "prefix_len", "turns", "max_tokens", "stream", "trace", "self_timed"),
    "Results": ("goals", "html", "compare"),
    "Server": ("api", "target", "timeout", "key", "tls", "ca", "certificate", "certificate_key"),
}


def _several(one: Any) -> Callable[[click.Context, click.Parameter, str], list[Any]]:
    """Reads values with commas between."""
    return lambda context, parameter, given: [
        one.convert(part, parameter, context) for part in given.split(",") if part
    ]


@click.command("bench", cls=Grouped, headings=_HEADINGS)
@click.option("--model", help="Name of the model.  [required]")
@click.option(
    "--api",
    type=click.Choice(("grpc", "oip", "openai")),
    default="grpc",
    show_default=True,
    help="The server's API: ours, the Open Inference Protocol over gRPC, or OpenAI's over HTTP, with vLLM's additions.",
)
@click.option(
    "--call",
    type=click.Choice(("classify", "tokens", "rank", "embed", "chat", "generate")),
    help="What is called, named as by `tuneserve call`.  [default: what the model is for; of openai, generate]",
)
@click.option(
    "--connections",
    metavar="N,…",
    callback=_several(click.IntRange(1, 4096)),
    default="8",
    show_default=True,
    help="Connections, each with one call at a time if there is no --rate. 1,8,64: a closed loop with each.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Client processes that share the connections; more if runs are invalid: the client was the limit.",
)
@click.option(
    "--rate",
    "--request-rate",
    "rates",
    metavar="RATE,…",
    callback=_several(click.FloatRange(0, min_open=True)),
    default="",
    help="Calls a second that arrive independently. 10,20,40: a run at each, on the most connections.",
)
@click.option(
    "--burstiness",
    type=click.FloatRange(0, 1000, min_open=True),
    default=1.0,
    show_default=True,
    help="How even these arrivals are: 1 is a Poisson process, less comes in bursts, more is more even.",
)
@click.option(
    "--goodput",
    "goals",
    multiple=True,
    metavar="NAME:MS",
    help="Longest e2el, ttft or tpot of a good call, in ms; can be repeated. Goodput is good calls a second.",
)
@click.option(
    "--max-rate", is_flag=True, help="Find the highest --rate at which 99 of 100 calls are good; needs --goodput."
)
@click.option(
    "--compare",
    nargs=2,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="A B",
    help="Compare what two runs printed, kept in files; calls no server.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Write a page with latency by rate and throughput by connections.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the arrivals.")
@click.option(
    "--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Seconds that are measured."
)
@click.option(
    "--warmup", type=click.FloatRange(0), default=2.0, show_default=True, help="Seconds of warm-up, not counted."
)
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Texts of one call; with rank, candidates."
)
@click.option(
    "--texts",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with one input a line; a running number is put before each.  [default: built-in ones]",
)
@click.option(
    "--prefix-len",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Words of about one token before each input, the same for all: a prefix that caches can share.",
)
@click.option(
    "--turns",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Turns of each chat, with the messages before; --rate is that of chats.",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Replay a trace: Mooncake's JSONL, or Azure's LLM inference CSV. Gives lengths and, unless there is a --rate, "
    "arrivals.",
)
@click.option(
    "--self-timed/--no-self-timed", default=True, help="Arrivals of the trace, or a closed loop.  [default: self-timed]"
)
@click.option(
    "--max-tokens",
    "--output-len",
    "max_tokens",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Tokens of each generated answer.",
)
@click.option("--stream/--unary", default=True, show_default=True, help="Tokens as they come, or whole answers.")
@server_options()
def bench_command(
    connections: list[int],
    rates: list[float],
    max_rate: bool,
    goals: Sequence[str],
    compare: tuple[Path, Path] | None,
    html: Path | None,
    **settings: Any,
) -> None:
    """Measure a running server.

    Without --rate it is a closed loop: every connection sends its next call when the last one has ended, so at most
    --connections calls are in the server, and their figures hide the queueing of calls that arrive independently. With
    --rate, calls are sent when they are due, whatever the server's speed, and times count from then.

    \b
    tuneserve bench --model sentiment --connections 32 --batch 8
    tuneserve bench --model reranker --call rank --batch 20
    tuneserve bench --model sentiment --rate 100 --goodput e2el:50
    tuneserve bench --model sentiment --connections 1,8,64,512 --processes 4 --html sentiment.html
    tuneserve bench --model sentiment --rate 20,40,80,160 --html sentiment.html
    tuneserve bench --model chat --turns 4 --prefix-len 500 --max-tokens 32
    tuneserve bench --model chat --trace mooncake_trace.jsonl --seconds 600
    tuneserve bench --model chat --goodput ttft:500 --goodput tpot:50 --max-rate
    tuneserve bench --api openai --target localhost:8000 --model m --call chat --rate 2
    tuneserve bench --compare before.txt after.txt

    Prints TTFT, ITL (between messages), TPOT and E2EL, and as the last line one JSON object with every setting and
    figure. Each input begins with a running number, so that no cache can answer. Answers are not checked.
    """
    from rich.console import Console

    from tuneserve.benchmarks.serving.load.report import table
    from tuneserve.benchmarks.serving.load.report.compare import comparisons, read
    from tuneserve.benchmarks.serving.load.settings import Settings
    from tuneserve.benchmarks.serving.load.sweep import sweep

    if compare:
        Console().print(*comparisons(*map(read, compare)))
        return
    _check(settings, connections, rates, max_rate, goals)
    if html:
        try:
            from tuneserve.benchmarks.serving.load.report.page import page
        except ModuleNotFoundError as error:
            raise UserError(f"--html needs {error.name}", "pip install 'tuneserve[train]'") from None
    settings["self_timed"] &= settings["trace"] is not None and not rates and not max_rate
    chosen = Settings(**settings, goodput=_goals(goals))
    each = f"{chosen.warmup:g} s of warm-up, then {chosen.seconds:g} s"

    def show(number: int, rate: float | None) -> None:
        status.update(f"{number} connections{f', {rate:.4g} calls a second' if rate else ''}: {each}")

    with Console(stderr=True).status("connecting") as status:
        results, best = sweep(chosen, connections, rates, max_rate, show)
    single = len(connections) == 1 >= len(rates) and not max_rate
    if results:
        Console().print(table.table(results[0]) if single else table.overview(results))
    if best:
        rate = f"highest rate with 99 of 100 calls good: {best.rate:.4g} a second" if best.rate else "no rate was good"
        click.echo(f"{rate}; invalid: {table.CLIENT_LIMITED}" if best.invalid else rate)
    if html and results:
        html.write_text(page(results, best), encoding="utf-8")
    flat = [result.to_json() for result in results]
    several = ({"max_rate": best.rate, "invalid": best.invalid} if best else {}) | {"results": flat}
    click.echo(json.dumps(flat[0] if single else several, separators=(",", ":")))


def _check(
    settings: dict[str, Any], connections: list[int], rates: list[float], max_rate: bool, goals: Sequence[str]
) -> None:
    """Refuses options that do not go together."""
    if not settings["model"]:
        raise click.UsageError("Missing option '--model'.")
    if not connections:
        raise click.UsageError("--connections has no number")
    if settings["trace"] and settings["texts"]:
        raise click.UsageError("--trace and --texts exclude each other")
    if settings["burstiness"] != 1 and not rates and not max_rate:
        raise click.UsageError("--burstiness needs --rate or --max-rate: a closed loop has no arrivals")
    if max_rate and not goals:
        raise click.UsageError("--max-rate needs --goodput: what makes a call good")
    if max_rate and rates:
        raise click.UsageError("--max-rate and --rate exclude each other")


def _goals(given: Sequence[str]) -> dict[str, float]:
    """Reads --goodput."""
    found = {}
    for one in given:
        name, _, most = one.partition(":")
        try:
            found[name] = float(most)
        except ValueError:
            found[name] = math.nan
        if name not in _GOALS or not 0 < found[name] < math.inf:
            raise click.UsageError(f"--goodput {one!r} is not e2el, ttft or tpot, a colon and milliseconds")
    return found
