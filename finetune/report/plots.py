"""The plots of a run's report, each as the `data:` URI of an image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tuneserve.page.drawing import FIRST, INK, MUTED, SECOND, image, panels, style

_POINTS = 400  # points of one line: more would not be visible
_SHOWN_LABEL = 28  # characters


def curves(history: Sequence[Mapping[str, float]]) -> str:
    """Plots the loss of each step and of the validation rows, and the learning rate below it."""
    with style():
        figure, (above, below) = panels(7.6, 4.4, 2, 1, sharex=True, height_ratios=(3, 1))
        steps, losses = _series(history, "loss")
        above.plot(*_thinned(steps, losses), color=FIRST, alpha=0.3, linewidth=0.8)
        above.plot(*_thinned(steps, _smooth(losses)), color=FIRST, linewidth=1.8, label="training, smoothed")
        validated, validation = _series(history, "eval_loss")
        if len(validated):
            above.plot(validated, validation, "o-", color=SECOND, markersize=4, label="validation")
            best = int(validation.argmin())
            above.annotate(
                "best", (validated[best], validation[best]), (0, 7), textcoords="offset points", ha="center",
                color=SECOND,
            )  # fmt: skip
        above.set_ylim(bottom=0)
        above.set_ylabel("loss")
        above.legend()
        below.plot(*_thinned(*_series(history, "learning_rate")), color=MUTED)
        below.ticklabel_format(axis="y", scilimits=(0, 0))
        below.set_ylim(bottom=0)
        below.set(xlabel="step", ylabel="learning rate")
        return image(figure)


def confusion(matrix: ArrayLike, labels: Sequence[str]) -> str:
    """Plots a matrix of counts, expected by predicted, colored by the share of its row."""
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [_short(label) for label in labels]
    side, left, bottom = 0.8 + 0.42 * len(labels), 0.5 + _width(names), 0.6 + 0.7 * _width(names)
    with style():
        figure, axes = panels(left + side, bottom + side, left=left, bottom=bottom)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="predicted", ylabel="expected")
        axes.grid(False)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[row, column] > 0.6 else INK
                axes.text(column, row, f"{count}", ha="center", va="center", color=color, fontsize=8)
        return image(figure)


def reliability(confidence: ArrayLike, right: ArrayLike, bins: int = 10) -> str:
    """Plots a reliability diagram: the accuracy of answers by their confidence, and the number of answers below it."""
    sure, hits = np.asarray(confidence, float), np.asarray(right, float)
    place = np.minimum((sure * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    filled = counts > 0
    middle = (np.arange(bins) + 0.5) / bins
    share = np.bincount(place, hits, bins)[filled] / counts[filled]
    with style():
        figure, (above, below) = panels(4.6, 4.8, 2, 1, sharex=True, height_ratios=(3, 1))
        above.bar(middle[filled], share, 0.9 / bins, color=FIRST, label="accuracy")
        means = np.bincount(place, sure, bins)[filled] / counts[filled]
        above.plot(means, means, "_", color=SECOND, markersize=16, markeredgewidth=2, label="confidence")
        above.plot((0, 1), (0, 1), "--", color=MUTED, linewidth=1)
        above.set(ylim=(0, 1.02), xlim=(0, 1), ylabel="share right")
        above.legend(loc="upper left", frameon=True, framealpha=0.8, edgecolor="none")
        below.bar(middle, counts, 0.9 / bins, color=MUTED)
        below.set(xlabel="probability of the answer", ylabel="answers")
        return image(figure)


def scatter(expected: ArrayLike, predicted: ArrayLike) -> str:
    """Plots predicted numbers by expected ones, and the distribution of the errors."""
    gold, guess = np.asarray(expected, float), np.asarray(predicted, float)
    with style():
        figure, (left, right) = panels(7.6, 3.8, 1, 2)
        ends = [min(gold.min(), guess.min()), max(gold.max(), guess.max())]
        left.plot(ends, ends, "--", color=MUTED, linewidth=1)
        left.plot(gold, guess, "o", color=FIRST, markersize=3.5, alpha=0.5, markeredgewidth=0, rasterized=True)
        left.set(xlabel="expected", ylabel="predicted")
        right.hist(guess - gold, bins=30, color=FIRST)
        right.axvline(0, color=MUTED, linewidth=1)
        right.set(xlabel="error: predicted less expected", ylabel="rows")
        return image(figure)


def histogram(values: ArrayLike, name: str, limit: float | None = None) -> str:
    """Plots a histogram of the values; `limit` is drawn as a line, if values reach it."""
    numbers = np.asarray(values, float)
    with style():
        figure, axes = panels(4.6, 2.8)
        axes.hist(numbers, bins=min(40, max(10, len(np.unique(numbers)))), color=FIRST)
        if limit is not None and numbers.max() >= limit:
            axes.axvline(limit, color=SECOND, linewidth=1.2)
        axes.set(xlabel=name, ylabel="rows")
        return image(figure)


def bars(groups: Mapping[str, Mapping[str, float]]) -> str:
    """Plots the share of each label in each group of rows, by the group's name."""
    labels = list(dict.fromkeys(label for shares in groups.values() for label in shares))
    names, height = [_short(label) for label in labels], 0.8 / len(groups)
    with style():
        figure, axes = panels(4.6, 1.2 + 0.34 * len(labels), left=0.2 + _width(names), bottom=0.8)
        for index, (name, shares) in enumerate(groups.items()):
            at = np.arange(len(labels)) + (index - (len(groups) - 1) / 2) * height
            axes.barh(
                at, [100 * shares.get(label, 0) for label in labels], height, label=name, color=(FIRST, SECOND)[index]
            )
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("% of the rows")
        figure.legend(loc="lower center", ncols=len(groups))
        return image(figure)


def _width(names: Sequence[str]) -> float:
    """Returns the approximate width of the longest name, in inches."""
    return 0.076 * max(map(len, names))


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
