"""The sections of a run's page: the plots and tables that fit the task.

Texts of held-out rows appear only if the run may keep them (`keep_test_split`).
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf import json_format
from numpy.typing import ArrayLike

from tuneserve.checkpoint import entities
from tuneserve.checkpoint.entities import Span
from tuneserve.checkpoint.rows import Row, dumps
from tuneserve.evaluation import preferences
from tuneserve.finetune.config import PAIRS, FinetuneConfig
from tuneserve.finetune.data.dataset import Data
from tuneserve.finetune.eval.evaluation import Answers
from tuneserve.finetune.report import plots
from tuneserve.page import Section
from tuneserve.v1 import checkpoint_pb2 as pb

SHOWN_LABELS = 30  # in a matrix or a bar plot
LISTED_LABELS = 6  # with this many labels or more, confused pairs are listed, too
SHOWN_ROWS = 30
SHOWN_TEXT = 400  # characters
_OTHERS = "(others)"


@dataclass(frozen=True)
class Finished:
    """A finished run: its inputs, its history, and the answers of its checkpoint."""

    config: FinetuneConfig
    split: Data
    lengths: Sequence[int]  # tokens of each training row, truncated as in training
    history: Sequence[dict[str, float]]  # from `training.Trained`
    manifest: pb.Checkpoint
    answers: Answers  # to the test rows
    samples: Sequence[Row] = ()  # from `writing.samples`

    @property
    def has_one_label(self) -> bool:
        """Whether each row has one of several labels."""
        return self.config.task == "sequence-classification" and self.config.problem_type == "single-label"

    @property
    def confidence(self) -> list[float]:
        """The probability of each answer, where a row has one label."""
        return [max(scores) for scores in self.answers.scores]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, as the lineage has them."""
        return json_format.MessageToDict(self.step.config)

    @property
    def step(self) -> pb.Step:
        """The training step of the lineage."""
        return next(step for step in reversed(self.manifest.lineage) if step.name == "finetune")


def sections(run: Finished) -> list[Section]:
    """Returns the sections of the page, from top to bottom."""
    parts = [_training(run), *_quality(run), *_classes(run)]
    if run.config.keep_test_split:
        parts += [_mistakes(run), *_samples(run)]
    else:
        parts.append(Section("Mistakes", "keep_test_split is false: no texts are shown here."))
    return [*parts, _data(run), *_settings(run)]


def _training(run: Finished) -> Section:
    metrics = run.step.metrics
    note = (
        f"{len(run.lengths):,} rows, {metrics['train_steps']:,.0f} steps in {metrics['train_seconds']:,.0f} seconds, "
        f"{metrics['trained_parameters']:,.0f} trained parameters."
    )
    if run.split.validation:
        note += f" {len(run.split.validation):,} validation rows chose the best epoch, whose weights were kept."
    return Section("Training", note, [plots.curves(run.history)])


def _quality(run: Finished) -> Iterator[Section]:
    answers, test = run.answers, run.split.test
    if run.config.task == "generation":
        note = "Loss of the right answer per token, in nats: the mean of each held-out row."
        yield Section("Loss of the answers", note, [plots.histogram(answers.losses, "loss")])
    elif run.config.task == "preference":
        yield from _rewards(run)
    elif run.config.task in PAIRS:
        note = "Each held-out query, searched for among the passages of all held-out rows: its nDCG at 10."
        if run.config.task == "ranking":
            note = "Each held-out query with its shortlist of held-out passages: the nDCG at 10."
        yield Section("Search", note, [plots.histogram([1 - loss for loss in answers.losses], "nDCG@10")])
    elif run.config.task == "token-classification":
        pairs = Counter(
            pair
            for row, spans in zip(test, answers.predicted, strict=True)
            for pair in _overlapping(entities.spans_of(row), spans)
        )
        note = "Expected entities by the type of the predicted entity that overlaps them; O means no entity."
        yield _confusion(pairs, [name for name, _ in _support(run)] + ["O"], note)
    elif run.config.problem_type == "regression":
        expected = [row["label"] for row in test]
        yield Section("Numbers and errors", figures=[plots.scatter(expected, answers.predicted)])
    elif run.config.problem_type == "multi-label":
        present = [[label in row["labels"] for label in run.split.labels] for row in test]
        yield _reliability(run, np.ravel(answers.scores), np.ravel(present))
    else:
        expected = [row["label"] for row in test]
        labels = [name for name, _ in _support(run)]
        yield _confusion(Counter(zip(expected, answers.predicted, strict=True)), labels, "Held-out rows.")
        right = [gold == guess for gold, guess in zip(expected, answers.predicted, strict=True)]
        yield _reliability(run, run.confidence, right)


def _rewards(run: Finished) -> Iterator[Section]:
    metrics, beta = run.answers.metrics, run.config.preference_beta
    note = (
        f"The better answer has the higher implicit reward in {metrics['reward_accuracy']:.1%} of pairs. "
        f"By the mean log-probability of a token it wins in {metrics['win_rate']:.1%}, and with the base model in "
        f"{metrics['base_win_rate']:.1%}."
    )
    margins = [-beta * loss for loss in run.answers.losses]
    yield Section("Rewards", note, [plots.histogram(margins, _margin(run))])


def _margin(run: Finished) -> str:
    return "reward of the better answer less that of the other" if _is_paired(run) else "reward, of bad answers negated"


def _is_paired(run: Finished) -> bool:
    return "rejected" in run.split.test[0]


def _reliability(run: Finished, sure: ArrayLike, right: ArrayLike) -> Section:
    metrics = run.answers.metrics
    note = (
        f"Expected calibration error {metrics['calibration_error']:.3f}: the mean distance between confidence and "
        "accuracy. Bars below the line are overconfident answers."
    )
    if "unscaled_calibration_error" in metrics:
        note += (
            f" Without the temperature {run.manifest.temperature:.3f}, fitted on the validation rows, the error would "
            f"be {metrics['unscaled_calibration_error']:.3f}."
        )
    return Section("Reliability", note, [plots.reliability(sure, right)])


def _confusion(pairs: Counter[tuple[str, str]], labels: Sequence[str], note: str) -> Section:
    """`labels` are sorted by their number of rows; if there are many, the rest is shown as one label."""
    shown = list(labels) if len(labels) <= SHOWN_LABELS else [*labels[: SHOWN_LABELS - 1], _OTHERS]
    place = {label: min(index, len(shown) - 1) for index, label in enumerate(labels)}
    matrix = np.zeros((len(shown), len(shown)), int)
    for (gold, guess), count in pairs.items():
        # Words outside of all entities are not counted.
        if (gold, guess) != ("O", "O"):
            matrix[place[gold], place[guess]] += count
    wrong = [(gold, guess, count) for (gold, guess), count in pairs.most_common() if gold != guess][:SHOWN_ROWS]
    # With few labels the matrix is enough.
    table = wrong if len(labels) > LISTED_LABELS else []
    drawn = [plots.confusion(matrix, shown)]
    return Section("Confusion", note, drawn, ("expected", "predicted", "count"), table, (2,))


def _classes(run: Finished) -> Iterator[Section]:
    metrics = run.answers.metrics
    rows = [
        (name, *(f"{metrics[f'{name}/{one}']:.3f}" for one in ("precision", "recall", "f1")), f"{support:.0f}")
        for name, support in _support(run)
    ]
    if rows:
        title = "Entities" if run.config.task == "token-classification" else "Classes"
        yield Section(title, "", (), ("label", "precision", "recall", "F1", "support"), rows, (1, 2, 3, 4))


def _support(run: Finished) -> list[tuple[str, float]]:
    """Returns the measured labels with their numbers of rows or entities, the most frequent first."""
    end = "/support"
    found = [(key.removesuffix(end), value) for key, value in run.answers.metrics.items() if key.endswith(end)]
    return sorted(found, key=lambda one: -one[1])


def _mistakes(run: Finished) -> Section:
    config, test, answers = run.config, run.split.test, run.answers
    if config.task == "generation":
        return _surprises(run)
    if config.task == "preference":
        return _misjudged(run)
    if config.task in PAIRS:
        return _missed(run)
    wrong = [index for index, row in enumerate(test) if _gold(row) != answers.predicted[index]]
    name, badness, note = "loss", answers.losses, f"{len(wrong):,} of {len(test):,} rows are predicted wrong."
    if config.problem_type == "regression":
        name, note = "error", ""
    elif run.has_one_label:
        name, badness = "probability", run.confidence
        note += " The most confident ones:"
    wrong.sort(key=lambda index: -badness[index])
    rows = [
        (_text(test[index]), *_both(test[index], answers.predicted[index]), f"{badness[index]:.3f}")
        for index in wrong[:SHOWN_ROWS]
    ]
    return Section("Worst mistakes", note, (), ("text", "expected", "predicted", name), rows, (3,))


def _surprises(run: Finished) -> Section:
    losses = run.answers.losses
    order = sorted(range(len(losses)), key=lambda index: -losses[index])[:SHOWN_ROWS]
    rows = [(*_exchange(run.split.test[index]), f"{losses[index]:.2f}") for index in order]
    note = "The held-out answers with the highest loss."
    return Section("Highest loss", note, (), ("prompt", "right answer", "loss"), rows, (2,))


def _misjudged(run: Finished) -> Section:
    losses, test, beta = run.answers.losses, run.split.test, run.config.preference_beta
    wrong = sorted((place for place, loss in enumerate(losses) if loss > 0), key=lambda place: -losses[place])
    note, rows = f"{len(wrong):,} of {len(test):,} rows. The worst ones:", []
    for place in wrong[:SHOWN_ROWS]:
        prompt, answer = _exchange(test[place])
        second = _exchange(preferences.rejected(test[place]))[1] if _is_paired(run) else _thumb(test[place])
        rows.append((prompt, answer, second, f"{-beta * losses[place]:.2f}"))
    columns = ("prompt", "better", "preferred by the model") if _is_paired(run) else ("prompt", "answer", "label")
    return Section("Rewarded wrongly", note, (), (*columns, "margin"), rows, (3,))


def _thumb(row: Row) -> str:
    return "good" if row["label"] else "bad"


def _missed(run: Finished) -> Section:
    test, answers = run.split.test, run.answers
    order = sorted(
        (place for place, loss in enumerate(answers.losses) if loss), key=lambda place: -answers.losses[place]
    )
    texts = [(test[place]["query"], test[place]["positive"], answers.predicted[place]) for place in order[:SHOWN_ROWS]]
    rows = [
        (*map(_shortened, some), f"{1 - answers.losses[place]:.2f}") for some, place in zip(texts, order, strict=False)
    ]
    note = f"{len(order):,} of {len(test):,} queries find another passage before theirs. The worst ones:"
    return Section("Missed passages", note, (), ("query", "right passage", "found first", "nDCG@10"), rows, (3,))


def _samples(run: Finished) -> Iterator[Section]:
    rows = [tuple(map(_shortened, (one["prompt"], one["expected"], one["answer"]))) for one in run.samples]
    if rows:
        note = "The model's greedy answers to the first held-out prompts."
        yield Section("Sample answers", note, (), ("prompt", "right answer", "answered"), rows)


def _data(run: Finished) -> Section:
    split, lengths, longest = run.split, run.lengths, run.settings["max_length"]
    truncated = sum(length >= longest for length in lengths)
    shown = [plots.histogram(lengths, "tokens", longest)]
    shares = {"training": split.label_distribution(), "held out": split.label_distribution(split.test)}
    if run.config.problem_type == "regression":
        shown.append(plots.histogram(array("d", (row["label"] for row in split.train)), "number"))
    elif shares["training"]:
        most = sorted(shares["training"], key=lambda label: -shares["training"][label])[:SHOWN_LABELS]
        shown.append(plots.bars({name: {label: of[label] for label in most} for name, of in shares.items()}))
    note = (
        f"{len(split.train):,} rows to train on, {len(split.test):,} held out. "
        f"{truncated:,} of the {len(lengths):,} training rows have max_length tokens, or were truncated to that."
    )
    return Section("Data", note, shown)


def _settings(run: Finished) -> Iterator[Section]:
    entry = run.step
    rows = [(key, _plain(value)) for key, value in sorted(run.settings.items())]
    yield Section("Settings", "", (), ("key", "value"), rows)
    made = [*sorted(entry.packages.items()), ("seed", entry.seed), ("SHA-256 of the training rows", entry.data_sha256)]
    made.append(("SHA-256 of the held-out rows", run.manifest.test_split.sha256))
    yield Section("Made with", "", (), ("what", "which"), made)


def _plain(value: Any) -> str:
    # All numbers of a Struct are floats.
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else dumps(value)


def _overlapping(expected: Sequence[Span], predicted: Sequence[Span]) -> Iterator[tuple[str, str]]:
    """Yields pairs of types of overlapping entities, with O for an entity that overlaps none."""
    for first, second, swapped in ((expected, predicted, False), (predicted, expected, True)):
        for kind, start, end in first:
            found = [other for other, begin, stop in second if begin < end and start < stop]
            if not found:
                yield ("O", kind) if swapped else (kind, "O")
            elif not swapped:
                yield from ((kind, other) for other in found)


def _gold(row: Row) -> Any:
    if "entities" in row:
        return entities.spans_of(row)
    return next(row[key] for key in ("labels", "label") if key in row)


def _text(row: Row) -> str:
    return _shortened("\n".join(row[key] for key in ("text", "text_pair") if key in row))


def _both(row: Row, predicted: Any) -> tuple[str, str]:
    """Returns the expected answer and the model's, as text for people."""
    answers = (_gold(row), predicted)
    if "entities" in row:
        return tuple(_entities(row["text"], spans) for spans in answers)  # type: ignore[return-value]
    if "labels" in row:
        return tuple(", ".join(labels) or "(none)" for labels in answers)  # type: ignore[return-value]
    return tuple(f"{one:.3g}" if isinstance(one, float) else one for one in answers)  # type: ignore[return-value]


def _entities(text: str, spans: Iterable[Span]) -> str:
    return "\n".join(f"{kind}: {text[start:end]}" for kind, start, end in spans) or "(none)"


def _exchange(row: Row) -> tuple[str, str]:
    """Returns the last prompt of a row for generation, and its answer."""
    if "prompt" in row:
        return _shortened(row["prompt"]), _shortened(row["completion"])
    question, answer = row["messages"][-2:]
    return _shortened(question["content"]), _shortened(answer["content"] or dumps(answer))


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_TEXT else text[: SHOWN_TEXT - 1] + "…"
