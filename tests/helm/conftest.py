"""The chart, loaded once for each file of tests, and promtool."""

from collections.abc import Callable, Iterator
from pathlib import Path

import helm_python
import pytest

from .debian import program
from .rendering import CHART


@pytest.fixture(scope="module")
def chart() -> Iterator[helm_python.Chart]:
    with helm_python.Chart.load(CHART) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def promtool(kept: Callable[..., Path]) -> Path:
    return program("promtool", "prometheus", kept)
