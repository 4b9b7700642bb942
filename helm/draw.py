"""Draws the chart's dashboards from the data of a Prometheus, for documentation.

    python helm/draw.py --prometheus 127.0.0.1:9090 --namespace ml --job tuned-tuneserve-metrics --minutes 15 docs

writes docs/dashboard-NAME.png for each file in dashboards/. Of Grafana it knows what these use: time series with a
unit, a legend and several expressions. Rates are over 5 minutes, so ask for some times as many.
"""

import argparse
import hashlib
import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, MaxNLocator, PercentFormatter, StrMethodFormatter

DASHBOARDS = Path(__file__).with_name("dashboards")
# In half of Grafana's grid, which is 24 wide.
_WIDTH, _INCHES = 12, (4.6, 2.1)
_POINTS = 300
_UNITS: dict[str, Formatter] = {
    "bytes": EngFormatter("B"),
    "percentunit": PercentFormatter(1),
    "reqps": StrMethodFormatter("{x:.4g}/s"),
    "s": EngFormatter("s"),
    "short": StrMethodFormatter("{x:.4g}"),
}


class Prometheus:
    """The last minutes of a Prometheus, with values for a dashboard's variables."""

    def __init__(self, address: str, minutes: float, variables: dict[str, str]) -> None:
        self._address = address
        self._variables = variables
        self.minutes = minutes
        self._end = time.time()

    def series(self, target: dict[str, Any]) -> Iterator[tuple[str, list[float], list[float]]]:
        """Yields the legend, the minutes before now and the values of each series of a panel's expression."""
        expression = target["expr"]
        for name, value in self._variables.items():
            expression = expression.replace(f"${name}", value)
        seconds = 60 * self.minutes
        span = {"start": self._end - seconds, "end": self._end, "step": seconds / _POINTS}
        query = urllib.parse.urlencode({"query": expression, **span})
        with urllib.request.urlopen(f"http://{self._address}/api/v1/query_range?{query}", timeout=60) as answer:
            found = json.load(answer)["data"]["result"]
        for labels, values in ((one["metric"], one["values"]) for one in found):
            legend = target["legendFormat"]
            for name in re.findall(r"{{(\w+)}}", legend):
                legend = legend.replace(f"{{{{{name}}}}}", labels.get(name, ""))
            yield legend.strip(), [(at - self._end) / 60 for at, _ in values], [float(value) for _, value in values]


def draw(dashboard: dict[str, Any], data: Prometheus) -> Figure:
    """Returns a picture of all panels."""
    rows = 1 + max(panel["gridPos"]["y"] // panel["gridPos"]["h"] for panel in dashboard["panels"])
    figure = Figure((2 * _INCHES[0], rows * _INCHES[1]), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        _panel(axes[place["y"] // place["h"]][place["x"] // _WIDTH], panel, data)
    return figure


def digest(dashboard: dict[str, Any]) -> str:
    """Returns what the panels and their picture have in common: a picture with another is older."""
    return hashlib.sha256(json.dumps(dashboard["panels"], sort_keys=True).encode()).hexdigest()


def _panel(axes: Axes, panel: dict[str, Any], data: Prometheus) -> None:
    axes.set_title(panel["title"], loc="left", fontsize=9)
    for target in panel["targets"]:
        for legend, minutes, values in data.series(target):
            axes.plot(minutes, values, linewidth=1, label=legend)
    axes.set_xlim(-data.minutes, 0)
    # Above the lines is room for the legend.
    axes.set_ylim(0, 1.4 * (axes.dataLim.y1 if axes.lines and axes.dataLim.y1 > 0 else 1))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:g} min")
    axes.yaxis.set_major_formatter(_UNITS[panel["fieldConfig"]["defaults"]["unit"]])
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.2)
    if axes.lines:
        axes.legend(fontsize=6, loc="upper left", framealpha=0.6)
    else:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", fontsize=8, color="grey")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the dashboards from the data of a Prometheus.")
    parser.add_argument("--prometheus", required=True, metavar="HOST:PORT")
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    matplotlib.use("agg")
    data = Prometheus(asked.prometheus, asked.minutes, {"namespace": asked.namespace, "job": asked.job})
    for path in sorted(DASHBOARDS.glob("*.json")):
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        picture = asked.folder / f"dashboard-{path.stem}.png"
        draw(dashboard, data).savefig(picture, dpi=80, metadata={"Source": digest(dashboard)})
        print(picture)


if __name__ == "__main__":
    main()
