"""Whether passages answer a query: a logistic regression on what a search tells about them.

The server judges by this, too, so it needs plain numbers alone. gate_fitting.py finds them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from tuneserve import settings
from tuneserve.errors import UserError
from tuneserve.evaluation.words import Rarity, words
from tuneserve.settings import Named, Refused, Settings
from tuneserve.v1 import answer_pb2 as pb

# Passages that are looked at, best first.
DEPTH = 10
_RANKING = ("ranking", "ranking_gap")
FEATURES = ("dense", "dense_gap", "keyword", "keyword_gap", "overlap", "overlap_of_three", "length", *_RANKING)
_MADE_BY = "`tuneserve call evaluate --gate FILE` writes one"
# Probabilities of ranking models are compared by their logits.
_SURE = 1e-6


def features(query: str, passages: Sequence[pb.Passage]) -> dict[str, float]:
    """Returns what tells whether passages answer a query, by name. There is one passage at least, the best first."""
    seen = passages[:DEPTH]
    said = [words(f"{one.title} {one.text}") for one in seen]
    asked, rarity = words(query), Rarity(said)
    dense = sorted((one.dense_score for one in seen), reverse=True)
    keyword = sorted((math.log1p(one.keyword_score) for one in seen), reverse=True)
    found = {
        "dense": dense[0],
        "dense_gap": dense[0] - _mean(dense),
        "keyword": keyword[0],
        "keyword_gap": keyword[0] - _mean(keyword),
        "overlap": rarity.share(asked, said[0]),
        "overlap_of_three": rarity.share(asked, frozenset().union(*said[:3])),
        "length": math.log1p(len(asked)),
    }
    if seen[0].HasField("ranking_score"):
        ranking = [_logit(one.ranking_score) for one in seen]
        found |= {"ranking": ranking[0], "ranking_gap": ranking[0] - _mean(ranking)}
    return found


class Judge(Settings):
    """Coefficients of a logistic regression, and the probability from which on it says yes."""

    weights: Annotated[Mapping[str, float], Named]
    bias: float
    threshold: float = Field(ge=0, le=1)

    @field_validator("weights")
    @classmethod
    def _are_known(cls, weights: Mapping[str, float]) -> Mapping[str, float]:
        for name in weights:
            if name not in FEATURES:
                raise Refused(f"unknown feature {name!r}", f"allowed: {', '.join(FEATURES)}")
        return weights

    def probability(self, found: Mapping[str, float]) -> float:
        """Returns the probability of a yes."""
        total = self.bias + sum(weight * found[name] for name, weight in self.weights.items())
        return 1 / (1 + math.exp(-max(-500.0, min(500.0, total))))


class Gate(Settings):
    """What `tuneserve call evaluate --gate` writes."""

    model: str  # the version of the embedding model that it was fitted with
    ranking_model: str  # and of the ranking model, if there is one
    answerable: Judge  # whether the passages have an answer
    reply: Judge  # whether the first one's document is the one that answers, so that its reply does


def load(path: Path) -> Gate:
    """Reads a gate. Raises UserError with the path, the key, and what is allowed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}", _MADE_BY) from None
    except ValueError:
        raise UserError(f"{path}: not JSON", _MADE_BY) from None
    return settings.build(Gate, content, str(path))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _logit(score: float) -> float:
    probability = max(_SURE, min(1 - _SURE, score))
    return math.log(probability / (1 - probability))
