"""Fits a gate to labelled queries, and measures it.

A query is seen twice: with all that was found, and without the documents that answer it, as if they were not in the
index. So queries that have answers are enough; those that have none are seen as they are.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuneserve.evaluation.gate import Gate, Judge, features
from tuneserve.v1 import answer_pb2 as pb

# Passages that an answer is made from, if a caller does not say how many.
_ANSWERED_FROM = 5
# A wrong reply is worse than none: of the replies that are given, so many are of the right document.
_PRECISION = 0.95
_RESAMPLES = 1000
# Folds of each cross-validation. So there have to be as many rows of both kinds.
_FOLDS = 5


@dataclass(frozen=True)
class Seen:
    """A query with what was found for it."""

    query: int  # its place among the queries
    features: Mapping[str, float]
    is_answerable: bool
    is_first: bool  # whether the first passage is of a document that answers


def seen(place: int, query: str, passages: Sequence[pb.Passage], answers: Collection[str]) -> list[Seen]:
    """Returns a query as it is seen: with its answers and without. `passages` are in the order of the search."""
    without = [one for one in passages if one.document_id not in answers]
    found = []
    for some in [passages, without] if answers else [passages]:
        if some:
            right = [one.document_id in answers for one in some[:_ANSWERED_FROM]]
            found.append(Seen(place, features(query, some), any(right), right[0]))
    return found


def fitted(rows: Sequence[Seen], model: str, ranking_model: str) -> Gate:
    """Returns the gate for these rows. Raises ValueError for too few with an answer, or without."""
    answerable = [one.is_answerable for one in rows]
    first = [one.is_first for one in rows]
    if not (sum(first) >= _FOLDS and sum(answerable) <= len(rows) - _FOLDS):
        raise ValueError(f"fewer than {_FOLDS} of a kind")
    return Gate(
        model=model,
        ranking_model=ranking_model,
        answerable=_judge(rows, answerable, None),
        reply=_judge(rows, first, _PRECISION),
    )


def measured(rows: Sequence[Seen]) -> dict[str, float]:
    """Returns the AUROC with the ends of its 95 % interval (bootstrap over queries), and what the thresholds do: shares
    of the answerable that pass and of the others that are stopped, of replies that are right. Each query is judged by a
    gate that was fitted to other queries. Raises ValueError as `fitted`, for those.
    """
    from sklearn.metrics import roc_auc_score

    labels = np.array([one.is_answerable for one in rows])
    scores, passed, replied = np.zeros(len(rows)), np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    for fold in range(_FOLDS):
        gate = fitted([one for one in rows if one.query % _FOLDS != fold], "", "")
        for place, one in enumerate(rows):
            if one.query % _FOLDS == fold:
                scores[place] = gate.answerable.probability(one.features)
                passed[place] = scores[place] >= gate.answerable.threshold
                replied[place] = gate.reply.probability(one.features) >= gate.reply.threshold
    of_query: dict[int, list[int]] = {}
    for place, one in enumerate(rows):
        of_query.setdefault(one.query, []).append(place)
    groups, chance = list(of_query.values()), np.random.default_rng(0)
    resampled = []
    for _ in range(_RESAMPLES):
        drawn = [place for group in chance.integers(len(groups), size=len(groups)) for place in groups[group]]
        if len(set(labels[drawn])) == 2:
            resampled.append(roc_auc_score(labels[drawn], scores[drawn]))
    low, high = np.quantile(resampled, (0.025, 0.975))
    first = np.array([one.is_first for one in rows])
    return {
        "auroc": float(roc_auc_score(labels, scores)),
        "low": float(low),
        "high": float(high),
        "passed": float(passed[labels].mean()),
        "stopped": float((~passed[~labels]).mean()),
        "replied": float(replied.mean()),
        "replied_right": float(first[replied].mean()) if replied.any() else float("nan"),
    }


def _judge(rows: Sequence[Seen], labels: Sequence[bool], precision: float | None) -> Judge:
    """Fits a regression. Its threshold is even odds, or the lowest probability that has this precision."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = list(rows[0].features)
    table, right = np.array([[one.features[name] for name in names] for one in rows]), np.array(labels)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    threshold = 0.5
    if precision is not None:
        # On rows that did not fit the regression which judges them.
        scores = cross_val_predict(pipeline, table, right, cv=_FOLDS, method="predict_proba")[:, 1]
        threshold = _lowest(scores, right, precision)
    scaler, regression = pipeline.fit(table, right)
    weights = regression.coef_[0] / scaler.scale_
    return Judge(
        weights=dict(zip(names, map(float, weights), strict=True)),
        bias=float(regression.intercept_[0] - weights @ scaler.mean_),
        threshold=threshold,
    )


def _lowest(scores: NDArray[np.float64], right: NDArray[np.bool_], precision: float) -> float:
    """Returns the lowest score from which on this share is right; 1 if there is none."""
    order = np.argsort(-scores, kind="stable")
    shares = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(shares >= precision)
    return float(scores[order[enough[-1]]]) if len(enough) else 1.0
