"""The results of one or several runs as a page of HTML: latency by rate, and throughput by connections."""

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.ticker import LogLocator, NullLocator

from tuneserve.benchmarks.serving.load.report.table import CLIENT_LIMITED, RATES, TIMES, runs, sent_in
from tuneserve.benchmarks.serving.load.result import Result
from tuneserve.benchmarks.serving.load.search import Highest
from tuneserve.benchmarks.serving.load.tally import PERCENTILES
from tuneserve.machine.tiers import measured_on
from tuneserve.page import Section, render
from tuneserve.page.drawing import FIRST, MUTED, SECOND, image, panels, style

# The color and opacity of each percentile.
_LINES = dict(zip(PERCENTILES, ((FIRST, 0.35), (FIRST, 0.6), (FIRST, 1.0), (SECOND, 1.0)), strict=True))


def page(results: Sequence[Result], max_rate: Highest | None) -> str:
    """Returns the page of runs with one model, in the order in which `sweep` returns them.

    `max_rate` is the highest good rate, None if it was not looked for.
    """
    settings, served = results[0].settings, results[0].served
    closed = [one for one in results if not one.settings.is_open]
    opened = [one for one in results if one.settings.is_open]
    summary = f"{served.task}{f', {served.quantization}' if served.quantization else ''}; {sent_in(results[0])}, "
    summary += f"{settings.seconds:g} s a run; server {settings.server.target}, client on {measured_on()}"
    return render(settings.model, summary, list(_tiles(closed, max_rate)), list(_sections(closed, opened)))


def _tiles(closed: Sequence[Result], max_rate: Highest | None) -> Iterator[tuple[str, str]]:
    if max_rate:
        yield "calls/s with 99 of 100 good", f"{max_rate.rate:,.4g}{' (invalid)' if max_rate.invalid else ''}"
    if valid := [one for one in closed if not one.invalid]:
        best = max(valid, key=lambda one: one.figures[one.throughput] or 0)
        value = best.figures[best.throughput] or 0
        yield f"{RATES[best.throughput]} on {best.settings.connections} connections", f"{value:,.1f}"


def _sections(closed: Sequence[Result], opened: Sequence[Result]) -> Iterator[Section]:
    if opened:
        note = "Open loop: calls arrive independently, and times count from when each was due."
        yield Section("Latency by rate", note + _hollow(opened), _latencies(opened, "calls due a second"))
    if closed:
        note = "Closed loop: each connection sends its next call when the last one has ended."
        drawn = [_throughput(closed), *_latencies(closed, "connections")]
        yield Section("Throughput by connections", note + _hollow(closed), drawn)
    everything = [*closed, *opened]
    headings, rows = runs(everything)
    note = "Times in milliseconds: p50 / p99."
    yield Section("Runs", note, columns=headings, rows=rows, numbers=range(len(headings) - 1))
    first = everything[0]
    varied = {"connections", "rate", "processes", "self_timed", "calls", "errors", "error_texts", "invalid"}
    given = [(name, str(value)) for name, value in first.to_json().items() if name not in varied | first.figures.keys()]
    yield Section("Settings", columns=("key", "value"), rows=given)


def _latencies(results: Sequence[Result], x: str) -> list[str]:
    """Plots the percentiles of each time that the results have, by rate or by connections."""
    places = [one.offered if one.settings.is_open else one.settings.connections for one in results]
    return [_latency(results, places, x, name) for name in TIMES if f"{name}_ms_p50" in results[0].figures]


def _latency(results: Sequence[Result], places: Sequence[float], x: str, name: str) -> str:
    with style():
        figure, axes = panels(4.8, 3.4)
        for percentile, (color, opacity) in reversed(_LINES.items()):
            values = [one.figures[f"{name}_ms_p{percentile:g}"] for one in results]
            _line(axes, results, places, values, color=color, alpha=opacity, label=f"p{percentile:g}")
        if goal := results[0].settings.goodput.get(name):
            axes.axhline(goal, color=MUTED, linestyle="--", linewidth=1, label="goal")
        _logarithmic(axes, "y", 10)
        if x == "connections":
            _logarithmic(axes, "x", 2)
        else:
            axes.set_xlim(left=0)
        axes.set(xlabel=x, ylabel=f"{name.upper()}, ms")
        axes.legend()
        return image(figure)


def _throughput(results: Sequence[Result]) -> str:
    name = results[0].throughput
    with style():
        figure, axes = panels(4.8, 3.4)
        places = [one.settings.connections for one in results]
        _line(axes, results, places, [one.figures[name] for one in results], color=FIRST)
        _logarithmic(axes, "x", 2)
        axes.set_ylim(bottom=0)
        axes.set(xlabel="connections", ylabel=RATES[name])
        return image(figure)


def _line(axes: Any, results: Sequence[Result], places: Sequence[float], values: Sequence[Any], **look: Any) -> None:
    """Draws a line; points of runs that the client limited are hollow."""
    axes.plot(places, values, **look)
    for one, place, value in zip(results, places, values, strict=True):
        fill = "white" if one.invalid else look["color"]
        axes.plot(place, value, "o", markersize=5, markerfacecolor=fill, markeredgecolor=look["color"])


def _logarithmic(axes: Any, which: str, base: int) -> None:
    getattr(axes, f"set_{which}scale")("log", base=base)
    axis = getattr(axes, f"{which}axis")
    # Powers alone would be too few, and the default labels are formulas.
    axis.set_major_locator(LogLocator(base, subs=(1.0, 2.0, 5.0) if base == 10 else (1.0,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def _hollow(results: Sequence[Result]) -> str:
    return f" Hollow points are invalid: {CLIENT_LIMITED}." if any(one.invalid for one in results) else ""
