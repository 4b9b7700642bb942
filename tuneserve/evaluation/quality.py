"""The quality metrics of each task, computed in the same way after training, after quantization and on demand.

Every function takes expected and predicted values and returns metrics by name; shares are 0 to 1. scikit-learn computes
the metrics of classes. Nothing here knows where predictions come from.
"""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import compress

from tuneserve.checkpoint import spacing
from tuneserve.checkpoint.entities import Span
from tuneserve.checkpoint.rows import Row
from tuneserve.checkpoint.tasks import TASKS, Headline
from tuneserve.v1 import checkpoint_pb2 as pb

RowSums = list[list[float]]

# Where a model was measured by one of these, it is the headline metric.
_SPECIAL = (Headline("pearson", higher_is_better=True), Headline("reward_accuracy", higher_is_better=True))
_BINS = 10
_SPACELESS = spacing.SPACELESS.pattern
_WORD = re.compile(rf"(?!\s){_SPACELESS}|(?:(?!{_SPACELESS})\S)+")


def headline(task: pb.Task, metrics: Mapping[str, float]) -> Headline:
    """Returns which of a model's metrics a quality gate compares."""
    return next((one for one in _SPECIAL if one.name in metrics), TASKS[task].headline)


def drop(task: pb.Task, before: dict[str, float], after: dict[str, float]) -> float:
    """Returns how much worse `after` is, as a share: 0.01 is one point of accuracy, F1 or nDCG, or 1 % of perplexity.

    Negative when it is better.
    """
    chosen = headline(task, before)
    if chosen.higher_is_better:
        return before[chosen.name] - after[chosen.name]
    return after[chosen.name] / before[chosen.name] - 1


def sequence_classification(
    expected: Sequence[str], predicted: Sequence[str], labels: Sequence[str]
) -> dict[str, float]:
    """Accuracy, macro-F1, and precision, recall, F1 and support per label, for texts with one label."""
    return _classification(expected, predicted, list(labels), list(labels))


def calibration_error(confidence: Sequence[float], right: Sequence[float]) -> float:
    """Expected calibration error: the distance between the probability of the predicted labels and how often they are
    right; for multi-label, between the probability of each label and how often it is present.

    The mean over ten bins of confidence, weighted by rows (Guo et al. 2017); 0 for a perfectly calibrated model.
    """
    import numpy as np

    sure, hits = np.asarray(confidence, float), np.asarray(right, float)
    bins = np.minimum((sure * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, hits - sure, _BINS)
    return float(np.abs(gaps).sum() / max(1, len(sure)))


def multi_label(
    expected: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], labels: Sequence[str]
) -> dict[str, float]:
    """The same for texts with several labels; `accuracy` is the share of texts with exactly the right set."""

    def rows(sets: Sequence[Sequence[str]]) -> list[list[int]]:
        return [[int(label in chosen) for label in labels] for chosen in sets]

    return _classification(rows(expected), rows(predicted), list(labels))


def regression(expected: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """Pearson's and Spearman's correlation, and the mean absolute and root mean square error, for numbers.

    A correlation with constant numbers is 0.
    """
    import numpy as np
    from scipy import stats

    gold, guess = np.asarray(expected, float), np.asarray(predicted, float)
    varied = len(gold) > 1 and bool(np.ptp(gold) > 0 and np.ptp(guess) > 0)
    return {
        "pearson": float(stats.pearsonr(gold, guess).statistic) if varied else 0.0,
        "spearman": float(stats.spearmanr(gold, guess).statistic) if varied else 0.0,
        "mean_absolute_error": float(np.abs(gold - guess).mean()),
        "root_mean_square_error": float(np.sqrt(((gold - guess) ** 2).mean())),
    }


def token_classification(expected: Sequence[Sequence[Span]], predicted: Sequence[Sequence[Span]]) -> dict[str, float]:
    """Precision, recall and F1 of entities, overall and by type: an entity is right if type, start and end are.

    Both arguments are the spans of each text.
    """
    counts: dict[str, list[int]] = {}  # right, predicted and expected, by type
    for gold, guess in zip(expected, predicted, strict=True):
        for place, spans in enumerate((set(gold) & set(guess), guess, gold)):
            for kind, _, _ in spans:
                counts.setdefault(kind, [0, 0, 0])[place] += 1
    total = [sum(column) for column in zip(*counts.values(), strict=True)] or [0, 0, 0]
    metrics = {f"entity_{name}": value for name, value in _shares(*total).items()}
    for kind in sorted(counts):
        metrics |= {f"{kind}/{name}": value for name, value in _shares(*counts[kind]).items()}
        metrics[f"{kind}/support"] = float(counts[kind][2])
    return metrics


def _shares(right: int, predicted: int, expected: int) -> dict[str, float]:
    return {
        "precision": right / max(1, predicted),
        "recall": right / max(1, expected),
        "f1": 2 * right / max(1, predicted + expected),
    }


def generation(log_likelihood: float, tokens: int) -> dict[str, float]:
    """Mean negative log-likelihood of the answers' tokens (`loss`, nats) and its exponential (`perplexity`)."""
    loss = -log_likelihood / max(1, tokens)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}


def answers(expected: Sequence[str], given: Sequence[str]) -> dict[str, float]:
    """Agreement of answers with the expected ones, as SQuAD counts it (Rajpurkar et al. 2016): the mean F1 of their
    words, and the share of exact matches; without case, punctuation and English articles. In scripts without spaces
    each character is a word, as for the Chinese of CMRC and MLQA (Cui et al. 2019, Lewis et al. 2020).

    Rows without expected words (tool calls) are not compared.
    """
    pairs = [(_words(gold), _words(guess)) for gold, guess in zip(expected, given, strict=True) if _words(gold)]
    count = max(1, len(pairs))
    return {
        "token_f1": sum(_word_f1(gold, guess) for gold, guess in pairs) / count,
        "exact_match": sum(gold == guess for gold, guess in pairs) / count,
    }


def expected_answer(row: Row) -> str:
    """Returns the expected answer of a row of generation; empty if it is a tool call."""
    return str(row["completion"] if "completion" in row else row["messages"][-1].get("content") or "")


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case, without punctuation; in scripts without spaces, the characters."""
    return _WORD.findall("".join(character for character in text.lower() if not _is_punctuation(character)))


def is_spaceless(text: str) -> bool:
    """Whether a text has characters of a script without spaces between words."""
    return spacing.SPACELESS.search(text) is not None


def _words(text: str) -> list[str]:
    return [word for word in words(text) if word not in ("a", "an", "the")]


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _word_f1(gold: list[str], guess: list[str]) -> float:
    return 2 * sum((Counter(gold) & Counter(guess)).values()) / (len(gold) + len(guess))


def retrieval(right: Sequence[Sequence[bool]], relevant: Sequence[int]) -> tuple[dict[str, float], RowSums]:
    """nDCG and MRR at 10, and recall at 1 and at 10: the means over queries, and the first one query by query, with
    the number 1 beside it, for `significance`.

    `right`: for each query, which of the best ten passages answer it, the best passage first; `relevant`: how many do
    in all.
    """
    gains = [1 / math.log2(place + 1) for place in range(1, 11)]
    found: dict[str, list[float]] = {name: [] for name in ("ndcg@10", "mrr@10", "recall@1", "recall@10")}
    for hits, count in zip(right, relevant, strict=True):
        found["ndcg@10"].append(sum(compress(gains, hits)) / sum(gains[:count]))
        found["mrr@10"].append(next((1 / place for place, hit in enumerate(hits[:10], start=1) if hit), 0.0))
        for depth in (1, 10):
            found[f"recall@{depth}"].append(sum(hits[:depth]) / count)
    metrics = {name: sum(values) / max(1, len(values)) for name, values in found.items()}
    return metrics, [[value, 1.0] for value in found["ndcg@10"]]


def right_rows(expected: Sequence[object], predicted: Sequence[object]) -> RowSums:
    """The sums that `significance` needs for accuracy: for each row, whether it is right, and the number 1."""
    return [[float(gold == guess), 1.0] for gold, guess in zip(expected, predicted, strict=True)]


def entity_rows(expected: Sequence[Sequence[Span]], predicted: Sequence[Sequence[Span]]) -> RowSums:
    """The same for entity_f1: the numbers of right, predicted and expected entities."""
    pairs = zip(expected, predicted, strict=True)
    return [[float(len(set(gold) & set(guess))), float(len(guess)), float(len(gold))] for gold, guess in pairs]


def number_rows(expected: Sequence[float], predicted: Sequence[float]) -> RowSums:
    """The same for pearson: the number 1, both numbers, their squares and their product."""
    return [[1.0, x, y, x * x, y * y, x * y] for x, y in zip(expected, predicted, strict=True)]


def _classification(
    expected: Sequence[object], predicted: Sequence[object], names: list[str], classes: list[str] | None = None
) -> dict[str, float]:
    """The metrics of texts with one of `classes` each; without `classes`, with a 0 or 1 for each of `names`."""
    from sklearn.metrics import accuracy_score, classification_report

    report = classification_report(
        expected, predicted, labels=classes, target_names=names, output_dict=True, zero_division=0.0
    )
    metrics = {
        "accuracy": float(accuracy_score(expected, predicted)),
        "macro_f1": float(report["macro avg"]["f1-score"]),
    }
    for label in names:
        for name in ("precision", "recall", "f1-score", "support"):
            metrics[f"{label}/{name.removesuffix('-score')}"] = float(report[label][name])
    return metrics
