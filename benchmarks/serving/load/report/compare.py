"""Two results of `tuneserve bench` beside each other, from what it printed."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from tuneserve.benchmarks.serving.load.report.table import CLIENT_LIMITED
from tuneserve.errors import UserError

# What differs between any two runs, or is a result itself.
_RESULTS = {"calls", "errors", "error_texts", "invalid", "version"}


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the results of the runs in a file: its last line. Raises UserError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        last = json.loads(lines[-1])
        results: list[dict[str, Any]] = last.get("results", [last])
        if all("invalid" in result for result in results):
            return results
    except (OSError, ValueError, IndexError, AttributeError, TypeError):
        pass
    raise UserError(f"{path}: its last line is no result of tuneserve bench", "keep what it prints: … > A.json")


def comparisons(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[Table]:
    """Returns a table for each two runs with the same connections and rate; two single runs are always compared.

    Raises UserError if there are none.
    """
    if len(first) == len(second) == 1:
        return [_compared(first[0], second[0])]
    others = {(one["connections"], one["rate"]): one for one in second}
    tables = []
    for one in first:
        if other := others.get((one["connections"], one["rate"])):
            tables.append(_compared(one, other))
            rate = f", {one['rate']:g} calls a second" if one["rate"] else ""
            tables[-1].title = f"{one['connections']} connections{rate}"
    if not tables:
        raise UserError("the files have no runs with the same connections and rate")
    return tables


def _compared(first: dict[str, Any], second: dict[str, Any]) -> Table:
    """Returns a table of the figures that both have, and how many times the second is of the first."""
    rows = Table(caption=f"One run each: run them in turns, several times. {_differences(first, second)}".strip())
    for heading in ("", "A", "B", "B ÷ A"):
        rows.add_column(heading, justify="right" if heading else "left")
    for name in filter(_is_figure, first):
        one, other = first[name], second.get(name)
        if one is not None and other is not None:
            rows.add_row(name, f"{one:,.4g}", f"{other:,.4g}", f"{other / one:.3f}" if one else "-")
    for name, result in (("A", first), ("B", second)):
        if result["invalid"]:
            rows.add_row(f"[yellow]{name} is invalid: {CLIENT_LIMITED}[/yellow]")
        if errors := sum(result["errors"].values()):
            rows.add_row(f"[red]{name}: {errors} errors[/red]")
    return rows


def _differences(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Says which settings are not the same."""
    settings = [name for name in first if name not in _RESULTS and not _is_figure(name)]
    found = [f"{name}: {first[name]} and {second.get(name)}" for name in settings if first[name] != second.get(name)]
    return f"Not the same: {'; '.join(found)}." if found else ""


def _is_figure(name: str) -> bool:
    return "_per_" in name or "_ms_" in name or name == "client_cpu"
