"""A result as a table for people."""

from rich.table import Table
from rich.text import Text

from tuneserve.benchmarks.serving.load.bench import Result
from tuneserve.machine.tiers import measured_on

# If this program uses more than this share of a core, Python's own speed limits the load.
BUSY = 0.8

RATES = {
    "texts_per_s": "texts/s",
    "output_tokens_per_s": "output tokens/s",
    "calls_per_s": "calls/s",
    "input_tokens_per_s": "input tokens/s",
    "tokens_per_message": "tokens a message",
}
TIMES = {
    "ttft": "time to first token (TTFT)",
    "itl": "inter-token latency, by message (ITL)",
    "tpot": "time per output token (TPOT)",
    "e2el": "end-to-end latency (E2EL)",
}


def table(result: Result) -> Table:
    """Returns a table of rates, times by percentile, and errors."""
    settings = result.settings
    title = f"{settings.model} ({result.task}, {result.quantization or 'not quantized'}) on {settings.server.target}"
    sent = f"batches of {settings.batch}" if "texts_per_s" in result.figures else f"{settings.max_tokens} tokens each"
    caption = f"{result.calls} calls, {settings.connections} connections, {sent}; client on {measured_on()}"
    refusals = "".join(f"\n{code}: {text}" for code, text in result.error_texts.items())
    rows = Table(title=Text(title), caption=Text(caption + refusals))
    rows.add_column()
    for heading in ("", "p50", "p90", "p99"):
        rows.add_column(heading, justify="right")
    for name, words in RATES.items():
        if name in result.figures:
            rows.add_row(words, _number(result.figures[name]))
    for name, words in TIMES.items():
        if f"{name}_ms_p50" in result.figures:
            percentiles = (_number(result.figures[f"{name}_ms_p{p}"], " ms") for p in (50, 90, 99))
            rows.add_row(words, "", *percentiles)
    for code, count in result.errors.items():
        rows.add_row(f"[red]errors {code}[/red]", str(count))
    if (result.figures["client_cpu"] or 0) > BUSY:
        rows.add_row("[yellow]this program was busy: the server may do more[/yellow]")
    return rows


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:,.1f}{unit}"
