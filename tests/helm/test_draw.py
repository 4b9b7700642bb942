"""Pictures of the dashboards, from a real Prometheus."""

import asyncio
import contextlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from .monitoring import prometheus
from .rendering import CHART
from .test_alerts import OURS

SCRIPT = CHART / "draw.py"


async def test_every_panel_is_drawn(kept: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("draw", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    drawn: dict[str, Figure] = {}

    def noted(dashboard: dict, data: object) -> Figure:
        drawn[dashboard["uid"]] = figure = draw(dashboard, data)
        return figure

    draw = module.draw
    monkeypatch.setattr(module, "draw", noted)
    # Nothing listens there: the only series are those of the pods that are scraped.
    async with prometheus(kept, tmp_path, "127.0.0.1:1", []) as running:
        async with asyncio.timeout(120):
            while True:
                with contextlib.suppress(OSError):
                    if await asyncio.to_thread(running.finds, "up"):
                        break
                await asyncio.sleep(0.1)
        flags = ["--prometheus", running.address, "--namespace", OURS["namespace"], "--job", OURS["job"]]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags, "--minutes=0.2", str(tmp_path)])
        await asyncio.to_thread(module.main)
    for path in (CHART / "dashboards").glob("*.json"):
        dashboard = json.loads(path.read_text())
        axes = {one.get_title(loc="left"): one for one in drawn[dashboard["uid"]].axes}
        assert axes.keys() == {panel["title"] for panel in dashboard["panels"]}
        assert (tmp_path / f"dashboard-{path.stem}.png").read_bytes().startswith(b"\x89PNG")
    pods = {one.get_title(loc="left"): one for one in drawn["tuneserve-overview"].axes}["Pods"]
    assert [(line.get_label(), line.get_ydata()[-1]) for line in pods.lines] == [("scraped", 1), ("answer", 0)]


def test_the_pictures_in_the_documentation_are_small() -> None:
    pictures = {path.stem: path.stat().st_size for path in (CHART.parent / "docs").glob("dashboard-*.png")}
    assert pictures.keys() == {f"dashboard-{path.stem}" for path in (CHART / "dashboards").glob("*.json")}
    assert max(pictures.values()) < 150_000
