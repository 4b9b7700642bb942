"""A result as a table: what there is of it, and what would mislead."""

from dataclasses import replace

from rich.console import Console

from tuneserve.benchmarks.serving.load.calls import Served
from tuneserve.benchmarks.serving.load.report.table import overview, table
from tuneserve.benchmarks.serving.load.result import Result
from tuneserve.benchmarks.serving.load.tally import PERCENTILES

from ...conftest import settings

TIMES = {f"e2el_ms_p{one:g}": 10.0 * place for place, one in enumerate(PERCENTILES, 1)}
FIGURES = {"calls_per_s": 1234.5, "texts_per_s": 2469.0, "goodput_per_s": 900.0, "client_cpu": 0.1, **TIMES}
RESULT = Result(settings("x:1", "sentiment", batch=2), Served("t", "classify"), 10, {}, {}, FIGURES)


def shown(drawn: object) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(drawn)
    return captured.get()


def test_a_table_has_what_was_measured() -> None:
    text = shown(table(RESULT))
    assert "sentiment (t) on x:1" in text
    assert "batches of 2" in text
    assert "1,234.5" in text
    assert all(f"{10.0 * place:.1f} ms" in text for place in range(1, len(PERCENTILES) + 1))
    for absent in ("TTFT", "output tokens/s", "errors", "invalid", "a second"):
        assert absent not in text


def test_errors_and_an_invalid_run_are_told() -> None:
    errors, texts = {"UNAVAILABLE": 3}, {"UNAVAILABLE": "[red]gone"}
    chosen, figures = replace(RESULT.settings, rate=50.0), FIGURES | {"client_cpu": 0.9}
    bad = replace(RESULT, settings=chosen, errors=errors, error_texts=texts, figures=figures)
    text = shown(table(bad))
    assert "errors UNAVAILABLE" in text
    assert "UNAVAILABLE: [red]gone" in text, "a server's text is not markup"
    assert "invalid: the client was the limit" in text
    assert "at 50 a second" in text


def test_runs_are_rows_with_the_share_of_good_calls() -> None:
    def at(rate: float, good: float) -> Result:
        chosen = replace(RESULT.settings, rate=rate, seconds=1.0, goodput={"e2el": 20.0})
        return replace(RESULT, settings=chosen, calls=100, figures=FIGURES | {"goodput_per_s": good})

    valid, limited = at(20, 99), at(80, 50)
    limited = replace(limited, figures=limited.figures | {"client_cpu": 0.9})
    text = shown(overview([valid, limited]))
    lines = [line for line in text.splitlines() if "%" in line]
    assert ["invalid" in line for line in lines] == [False, True]
    assert "Invalid: the client was the limit" in " ".join(text.split())
    assert ["20.0" in lines[0], "99.0%" in lines[0], "80.0" in lines[1], "50.0%" in lines[1]] == [True] * 4
