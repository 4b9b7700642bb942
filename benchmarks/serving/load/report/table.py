"""A result as a table for people."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from tuneserve.benchmarks.serving.load.result import Result
from tuneserve.benchmarks.serving.load.tally import PERCENTILES
from tuneserve.machine.tiers import measured_on

# Why a run is invalid.
CLIENT_LIMITED = "the client was the limit, the server may do more; try more --processes"
RATES = {
    "texts_per_s": "texts/s",
    "output_tokens_per_s": "output tokens/s",
    "calls_per_s": "calls/s",
    "input_tokens_per_s": "input tokens/s",
    "tokens_per_message": "tokens a message",
    "goodput_per_s": "good calls/s (goodput)",
}
TIMES = {
    "ttft": "time to first token (TTFT)",
    "itl": "inter-token latency, by message (ITL)",
    "tpot": "time per output token (TPOT)",
    "e2el": "end-to-end latency (E2EL)",
}


def table(result: Result) -> Table:
    """Returns a table of rates, times by percentile, and errors."""
    settings, served = result.settings, result.served
    quantization = f", {served.quantization}" if served.quantization else ""
    title = f"{settings.model} ({served.task}{quantization}) on {settings.server.target}"
    arriving = f" at {settings.rate:g} a second" if settings.rate is not None else ""
    caption = f"{result.calls} calls{arriving}, {settings.connections} connections, {sent_in(result)}"
    caption += f"; client on {measured_on()}"
    refusals = "".join(f"\n{code}: {text}" for code, text in result.error_texts.items())
    rows = Table(title=Text(title), caption=Text(caption + refusals))
    rows.add_column()
    for heading in ("", *(f"p{one:g}" for one in PERCENTILES)):
        rows.add_column(heading, justify="right")
    for name, words in RATES.items():
        if name in result.figures:
            rows.add_row(words, _number(result.figures[name]))
    for name, words in TIMES.items():
        if f"{name}_ms_p50" in result.figures:
            percentiles = (_number(result.figures[f"{name}_ms_p{p:g}"], " ms") for p in PERCENTILES)
            rows.add_row(words, "", *percentiles)
    for code, count in result.errors.items():
        rows.add_row(f"[red]errors {code}[/red]", str(count))
    if result.invalid:
        rows.add_row(f"[yellow]invalid: {CLIENT_LIMITED}[/yellow]")
    return rows


def overview(results: Sequence[Result]) -> Table:
    """Returns a table with a row for each run."""
    rows = Table(title=Text(results[0].settings.model), box=None, padding=(0, 0, 0, 2), pad_edge=False)
    headings, cells = runs(results)
    for heading in headings:
        rows.add_column(heading, justify="right")
    for result, row in zip(results, cells, strict=True):
        rows.add_row(*row, style="yellow" if result.invalid else "")
    rows.caption = "Times in milliseconds: p50 / p99."
    if any(result.invalid for result in results):
        rows.caption += f" [yellow]Invalid: {CLIENT_LIMITED}.[/yellow]"
    return rows


def runs(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Returns headings, and the figures of each run: times are p50 / p99 in milliseconds. The last column marks."""
    first = results[0]
    times = [name for name in TIMES if f"{name}_ms_p50" in first.figures and name != "itl"]
    goals = ["good"] if first.settings.goodput else []
    headings = ["conn.", "calls/s due", RATES[first.throughput], *goals, *map(str.upper, times), "errors", ""]
    rows = [
        [
            str(one.settings.connections),
            _number(one.offered) if one.settings.is_open else "",
            _number(one.figures[one.throughput]),
            *([f"{one.good_share:.1%}"] if goals else []),
            *(" / ".join(_short(one.figures[f"{name}_ms_p{at}"]) for at in (50, 99)) for name in times),
            str(sum(one.errors.values()) or ""),
            "invalid" if one.invalid else "",
        ]
        for one in results
    ]
    return headings, rows


def sent_in(result: Result) -> str:
    """Says what a call sent."""
    if result.settings.trace:
        return f"lengths of {result.settings.trace.name}"
    if result.served.generates:
        return f"{result.settings.max_tokens} tokens each"
    return f"batches of {result.settings.batch}"


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:,.1f}{unit}"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
