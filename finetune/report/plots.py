"""The plots of a run's report, each as a `data:` URI of an SVG image: no network, and no script in it can run.

Labels come from the data and are not trusted: matplotlib escapes them, and is told not to read formulas in them.
"""

import base64
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

_INK, _MUTED, _GRID, _FIRST, _SECOND = "#24292f", "#6e7781", "#e6e8eb", "#2563c9", "#d9622b"
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small files, and any writing system that the reader has a font for
    "svg.hashsalt": "tuneserve",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
}
_POINTS = 400  # points of one line: more would not be visible
_SHOWN_LABEL = 28  # characters


def curves(history: Sequence[Mapping[str, float]]) -> str:
    """Plots the loss of each step and of the validation rows, and the learning rate below it."""
    with _style():
        figure, (above, below) = _panels(7.6, 4.4, 2, 1, sharex=True, height_ratios=(3, 1))
        steps, losses = _series(history, "loss")
        above.plot(*_thinned(steps, losses), color=_FIRST, alpha=0.3, linewidth=0.8)
        above.plot(*_thinned(steps, _smooth(losses)), color=_FIRST, linewidth=1.8, label="training, smoothed")
        validated, validation = _series(history, "eval_loss")
        if len(validated):
            above.plot(validated, validation, "o-", color=_SECOND, markersize=4, label="validation")
            best = int(validation.argmin())
            above.annotate(
                "best", (validated[best], validation[best]), (0, 7), textcoords="offset points", ha="center",
                color=_SECOND,
            )  # fmt: skip
        above.set_ylim(bottom=0)
        above.set_ylabel("loss")
        above.legend()
        below.plot(*_thinned(*_series(history, "learning_rate")), color=_MUTED)
        below.ticklabel_format(axis="y", scilimits=(0, 0))
        below.set_ylim(bottom=0)
        below.set(xlabel="step", ylabel="learning rate")
        return _image(figure)


def confusion(matrix: ArrayLike, labels: Sequence[str]) -> str:
    """Plots a matrix of counts, expected by predicted, colored by the share of its row."""
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [_short(label) for label in labels]
    side, left, bottom = 0.8 + 0.42 * len(labels), 0.5 + _width(names), 0.6 + 0.7 * _width(names)
    with _style():
        figure, axes = _panels(left + side, bottom + side, left=left, bottom=bottom)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="predicted", ylabel="expected")
        axes.grid(False)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[row, column] > 0.6 else _INK
                axes.text(column, row, f"{count}", ha="center", va="center", color=color, fontsize=8)
        return _image(figure)


def reliability(confidence: ArrayLike, right: ArrayLike, bins: int = 10) -> str:
    """Plots a reliability diagram: the accuracy of answers by their confidence, and the number of answers below it."""
    sure, hits = np.asarray(confidence, float), np.asarray(right, float)
    place = np.minimum((sure * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    filled = counts > 0
    middle = (np.arange(bins) + 0.5) / bins
    share = np.bincount(place, hits, bins)[filled] / counts[filled]
    with _style():
        figure, (above, below) = _panels(4.6, 4.8, 2, 1, sharex=True, height_ratios=(3, 1))
        above.bar(middle[filled], share, 0.9 / bins, color=_FIRST, label="accuracy")
        means = np.bincount(place, sure, bins)[filled] / counts[filled]
        above.plot(means, means, "_", color=_SECOND, markersize=16, markeredgewidth=2, label="confidence")
        above.plot((0, 1), (0, 1), "--", color=_MUTED, linewidth=1)
        above.set(ylim=(0, 1.02), xlim=(0, 1), ylabel="share right")
        above.legend(loc="upper left", frameon=True, framealpha=0.8, edgecolor="none")
        below.bar(middle, counts, 0.9 / bins, color=_MUTED)
        below.set(xlabel="probability of the answer", ylabel="answers")
        return _image(figure)


def scatter(expected: ArrayLike, predicted: ArrayLike) -> str:
    """Plots predicted numbers by expected ones, and the distribution of the errors."""
    gold, guess = np.asarray(expected, float), np.asarray(predicted, float)
    with _style():
        figure, (left, right) = _panels(7.6, 3.8, 1, 2)
        ends = [min(gold.min(), guess.min()), max(gold.max(), guess.max())]
        left.plot(ends, ends, "--", color=_MUTED, linewidth=1)
        left.plot(gold, guess, "o", color=_FIRST, markersize=3.5, alpha=0.5, markeredgewidth=0, rasterized=True)
        left.set(xlabel="expected", ylabel="predicted")
        right.hist(guess - gold, bins=30, color=_FIRST)
        right.axvline(0, color=_MUTED, linewidth=1)
        right.set(xlabel="error: predicted less expected", ylabel="rows")
        return _image(figure)


def histogram(values: ArrayLike, name: str, limit: float | None = None) -> str:
    """Plots a histogram of the values; `limit` is drawn as a line, if values reach it."""
    numbers = np.asarray(values, float)
    with _style():
        figure, axes = _panels(4.6, 2.8)
        axes.hist(numbers, bins=min(40, max(10, len(np.unique(numbers)))), color=_FIRST)
        if limit is not None and numbers.max() >= limit:
            axes.axvline(limit, color=_SECOND, linewidth=1.2)
        axes.set(xlabel=name, ylabel="rows")
        return _image(figure)


def bars(groups: Mapping[str, Mapping[str, float]]) -> str:
    """Plots the share of each label in each group of rows, by the group's name."""
    labels = list(dict.fromkeys(label for shares in groups.values() for label in shares))
    names, height = [_short(label) for label in labels], 0.8 / len(groups)
    with _style():
        figure, axes = _panels(4.6, 1.2 + 0.34 * len(labels), left=0.2 + _width(names), bottom=0.8)
        for index, (name, shares) in enumerate(groups.items()):
            at = np.arange(len(labels)) + (index - (len(groups) - 1) / 2) * height
            axes.barh(
                at, [100 * shares.get(label, 0) for label in labels], height, label=name, color=(_FIRST, _SECOND)[index]
            )
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("% of the rows")
        figure.legend(loc="lower center", ncols=len(groups))
        return _image(figure)


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # matplotlib measures text with its own font, which may lack letters; the reader's font draws them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def _panels(
    width: float, height: float, *shape: int, left: float = 0.65, bottom: float = 0.5, **options: Any
) -> tuple[Figure, Any]:
    """Returns a figure and its axes. All sizes are in inches: to fit margins, matplotlib would draw it twice."""
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left / width, bottom / height, 1 - 0.15 / width, 1 - 0.2 / height, wspace=0.25, hspace=0.14)
    return figure, figure.subplots(*shape, **options)


def _width(names: Sequence[str]) -> float:
    """Returns the approximate width of the longest name, in inches."""
    return 0.076 * max(map(len, names))


def _image(figure: Figure) -> str:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.getvalue()).decode()


def _series(history: Sequence[Mapping[str, float]], name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    found = [(one["step"], one[name]) for one in history if name in one]
    return np.array([step for step, _ in found]), np.array([value for _, value in found], float)


def _smooth(values: NDArray[Any]) -> NDArray[Any]:
    """Returns a running mean over a twentieth of the values."""
    width = max(1, len(values) // 20)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(0, ends - width)
    return np.asarray((sums[ends] - sums[begins]) / (ends - begins))


def _thinned(steps: NDArray[Any], values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns means of neighbouring points, so that a line of any length has few points."""
    parts = min(_POINTS, len(steps)) or 1
    return tuple(np.array([part.mean() for part in np.array_split(one, parts) if len(part)]) for one in (steps, values))  # type: ignore[return-value]


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_LABEL else text[: _SHOWN_LABEL - 1] + "…"
