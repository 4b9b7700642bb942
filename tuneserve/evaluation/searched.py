"""What labelled queries find in an index, and the weight of words beside vectors that fits them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from tuneserve.evaluation import quality
from tuneserve.evaluation.blending import Array, blended
from tuneserve.evaluation.quality import RowSums
from tuneserve.v1 import answer_pb2

# The weights that are tried.
WEIGHTS = tuple(number / 20 for number in range(21))
_DEPTH = 10


@dataclass(frozen=True)
class Searched:
    """A query, the passages found for it, and the documents that answer it."""

    documents: Sequence[str]  # of each passage
    dense: Array
    keyword: Array
    answers: Collection[str]

    @classmethod
    def of(cls, response: answer_pb2.SearchResponse, answers: Collection[str]) -> "Searched":
        """Returns what a search found."""
        found = response.passages
        dense = np.array([one.dense_score for one in found], np.float32)
        keyword = np.array([one.keyword_score for one in found], np.float32)
        return cls([one.document_id for one in found], dense, keyword, answers)

    def right(self, weight: float) -> list[bool]:
        """Returns whether each of the best documents answers the query, by the scores at a weight."""
        order = np.argsort(-blended(self.dense, self.keyword, weight), kind="stable")
        return hits([self.documents[place] for place in order], self.answers)


def ordered(response: answer_pb2.SearchResponse, weight: float) -> list[answer_pb2.Passage]:
    """Returns the passages that a search found in the order that a weight gives them."""
    found = Searched.of(response, ())
    order = np.argsort(-blended(found.dense, found.keyword, weight), kind="stable")
    return [response.passages[place] for place in order]


def measured(found: Sequence[Searched], weight: float) -> tuple[dict[str, float], RowSums]:
    """Returns the metrics of search at a weight, and the sums that `significance` needs."""
    return quality.retrieval([one.right(weight) for one in found], [len(one.answers) for one in found])


def fitted(found: Sequence[Searched], weights: Sequence[float] = WEIGHTS) -> float:
    """Returns the weight of the best nDCG@10; of equal ones, the smallest."""
    return max(weights, key=lambda one: (measured(found, one)[0]["ndcg@10"], -one))


def hits(documents: Sequence[str], answers: Collection[str]) -> list[bool]:
    """Returns whether each of the best documents is among the answers; a document counts by its best passage."""
    return [document in answers for document in list(dict.fromkeys(documents))[:_DEPTH]]
