"""The style of all plots. Each becomes the `data:` URI of an SVG image: no network, and no script in it can run.

Texts in them may come from the data and are not trusted: matplotlib escapes them, and is told not to read formulas in
them.
"""

import base64
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

INK, MUTED, FIRST, SECOND, _GRID = "#24292f", "#6e7781", "#2563c9", "#d9622b", "#e6e8eb"
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small files, and any writing system that the reader has a font for
    "svg.hashsalt": "tuneserve",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}


@contextmanager
def style() -> Iterator[None]:
    """Gives the style to figures that are made in the block."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # matplotlib measures text with its own font, which may lack letters; the reader's font draws them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def panels(
    width: float, height: float, *shape: int, left: float = 0.65, bottom: float = 0.5, **options: Any
) -> tuple[Figure, Any]:
    """Returns a figure and its axes. All sizes are in inches: to fit margins, matplotlib would draw it twice."""
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left / width, bottom / height, 1 - 0.15 / width, 1 - 0.2 / height, wspace=0.25, hspace=0.14)
    return figure, figure.subplots(*shape, **options)


def image(figure: Figure) -> str:
    """Returns a figure as a `data:` URI."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.getvalue()).decode()
