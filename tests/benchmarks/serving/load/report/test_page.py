"""The page of runs, which needs no network."""

import base64
import re
from pathlib import Path
from xml.etree import ElementTree

from tuneserve.benchmarks.serving.load.calls import Served
from tuneserve.benchmarks.serving.load.report.page import page
from tuneserve.benchmarks.serving.load.result import Result
from tuneserve.benchmarks.serving.load.search import Highest
from tuneserve.benchmarks.serving.load.tally import PERCENTILES

from ...conftest import Server, bench, settings


async def test_the_page_has_the_plots_of_the_runs(served: tuple[Server, str], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    await bench(served[1], "--connections", "1,4", "--rate", "60", "--goodput", "e2el:500", "--html", str(file))
    written = file.read_text()
    assert "//" not in re.sub(r"data:[^\"]+", "", written), "it needs no network"
    for words in (
        "Latency by rate",
        "Throughput by connections",
        "texts/s on 4 connections",
        "sequence-classification",
    ):
        assert words in written
    images = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", written)
    texts = [" ".join(ElementTree.fromstring(base64.b64decode(one)).itertext()) for one in images]
    assert len(images) == 3
    for drawn, words in zip(texts, ("calls due a second", "texts/s", "connections"), strict=True):
        assert words in drawn
    assert "goal" in texts[0]


def test_a_run_that_the_client_limited_is_marked() -> None:
    def result(rate: float, cpu: float) -> Result:
        times = {f"e2el_ms_p{one:g}": 10.0 * one for one in PERCENTILES}
        figures = {"texts_per_s": rate, "calls_per_s": rate, "client_cpu": cpu} | times
        return Result(settings("x:1", "m", rate=rate), Served("t<b>", "classify"), 5, {}, {}, figures)

    assert "invalid" not in page([result(10, 0.1), result(20, 0.2)], Highest(20.0, False))
    marked = page([result(10, 0.1), result(20, 0.99)], Highest(10.0, True))
    assert "Hollow points are invalid" in marked
    assert "10 (invalid)" in marked
    assert ">invalid<" in marked
    assert "t&lt;b&gt;" in marked
    assert "99 of 100 good" in marked
