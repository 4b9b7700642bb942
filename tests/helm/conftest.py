"""The chart, loaded once for each file of tests."""

from collections.abc import Iterator

import helm_python
import pytest

from .rendering import CHART


@pytest.fixture(scope="module")
def chart() -> Iterator[helm_python.Chart]:
    with helm_python.Chart.load(CHART) as loaded:
        yield loaded
