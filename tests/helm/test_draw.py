"""Pictures of the dashboards, from a real Prometheus."""

import asyncio
import contextlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.figure import Figure
from PIL import Image

from .monitoring import prometheus
from .rendering import CHART
from .test_alerts import OURS

SCRIPT = CHART / "draw.py"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in (CHART / "dashboards").glob("*.json")}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_every_panel_is_drawn(
    script: ModuleType, kept: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Figure] = {}

    def noted(dashboard: dict, data: object) -> Figure:
        drawn[dashboard["uid"]] = figure = draw(dashboard, data)
        return figure

    draw = script.draw
    monkeypatch.setattr(script, "draw", noted)
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
        await asyncio.to_thread(script.main)
    for name, dashboard in DASHBOARDS.items():
        axes = {one.get_title(loc="left"): one for one in drawn[dashboard["uid"]].axes}
        assert axes.keys() == {panel["title"] for panel in dashboard["panels"]}
        assert pictured(tmp_path / f"dashboard-{name}.png") == script.digest(dashboard)
    pods = {one.get_title(loc="left"): one for one in drawn["tuneserve-overview"].axes}["Pods"]
    assert [(line.get_label(), line.get_ydata()[-1]) for line in pods.lines] == [("scraped", 1), ("answer", 0)]


def pictured(picture: Path) -> str:
    """The digest of what a picture shows."""
    with Image.open(picture) as opened:
        return opened.text.get("Source", "")


def test_the_pictures_in_the_documentation_show_the_dashboards(script: ModuleType) -> None:
    pictures = {path.stem: path for path in (CHART.parent / "docs").glob("dashboard-*.png")}
    assert pictures.keys() == {f"dashboard-{name}" for name in DASHBOARDS}
    for name, dashboard in DASHBOARDS.items():
        assert pictured(pictures[f"dashboard-{name}"]) == script.digest(dashboard), "draw it again: docs/kubernetes.md"
    assert max(path.stat().st_size for path in pictures.values()) < 150_000
