"""What searches find: FAQs in English and Chinese, and Chinese news, by vectors, words and both; after training, by
vectors and ranking.

    python -m tuneserve.benchmarks.answers.quality WORK [--only-untuned] [--report FILE]

Each FAQ is an index of its answers, without the questions, which are the queries; the news are an index of texts, and
their titles the queries. multilingual-e5-small makes the vectors. Each half of the questions is measured at the weight
of words that the other half chose: whether both together are worse than the better of the two alone, by the paired test
of significance.py. For the questions about building, the same encoder is also trained, as in
finetune/examples/search.yaml, and a cross-encoder (MiniLM) beside it; 150 questions are held out from both. Trainings
are kept in WORK, and not repeated. The last line of stdout is the result as JSON.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import grpc
from rich.table import Table

from tuneserve import samples
from tuneserve.benchmarks.answers import faqs, served
from tuneserve.benchmarks.answers.faqs import HELD_OUT, Faq
from tuneserve.client import Client
from tuneserve.evaluation import quality, searched, significance
from tuneserve.evaluation.quality import RowSums
from tuneserve.evaluation.searched import Searched
from tuneserve.v1 import answer_pb2 as pb
from tuneserve.v1.answer_pb2_grpc import AnswerServiceStub

# By set and column of the table.
PROMISES = {
    ("debian-faq-zh-cn", "recall@10"): 0.92,
    ("news-zh", "both"): 0.91,
    ("zaragoza-en, tuned", "both"): 0.78,
    ("zaragoza-en, tuned and ranked", "both"): 0.83,
}
# All that the server finds.
_PASSAGES = 100


def trained(work: Path, faq: Faq, task: str, base: Path, **settings: Any) -> Path:
    """Returns a checkpoint, trained on all questions that are not held out, unless it exists."""
    output = work / task
    if not output.exists():
        found = [{"query": question, "positive": faq.answers[place]} for question, place in faq.questions]
        given = {"task": task, "base_model": str(base), **settings}
        served.trained(output, found[HELD_OUT:], found[:HELD_OUT], **given)
    return output


def trainings(work: Path, building: Faq) -> dict[str, Path]:
    """Returns the encoder `tuned` and the cross-encoder `ranking`, neither of which has seen what is held out."""
    example = {"max_length": 128, "epochs": 3}
    return {
        "tuned": trained(work, building, "embedding", samples.e5(), learning_rate=5e-4, **example),
        "ranking": trained(work, building, "ranking", samples.sentiment_encoder(), **example),
    }


def asked(search: Any, index: str, questions: Sequence[tuple[str, int]], rerank: bool) -> list[pb.SearchResponse]:
    """Returns what an index finds for questions."""
    return [
        search(pb.SearchRequest(index=index, query=question, limit=_PASSAGES, rerank=rerank))
        for question, _ in questions
    ]


def found(faq: Faq, questions: Sequence[tuple[str, int]], responses: Sequence[pb.SearchResponse]) -> list[Searched]:
    """Returns what was found, with what would be right."""
    return [Searched.of(response, {str(place)}) for response, (_, place) in zip(responses, questions, strict=True)]


def both(name: str, some: Sequence[Searched]) -> dict[str, Any]:
    """Returns what the two kinds of search find alone and together, each half of the questions at the weight that the
    other half chose.
    """
    weights, recall = list[float](), 0.0
    sums: dict[str, RowSums] = {one: [] for one in ("vectors", "words", "both", "better")}
    halves = some[::2], some[1::2]
    for choosing, held_out in (halves, halves[::-1]):
        weights.append(searched.fitted(choosing))
        single = searched.fitted(choosing, (0.0, 1.0))
        for kind, weight in (("vectors", 0.0), ("words", 1.0), ("both", weights[-1]), ("better", single)):
            metrics, rows_sums = searched.measured(held_out, weight)
            sums[kind] += rows_sums
            recall += metrics["recall@10"] * len(held_out) * (kind == "both")
    change = significance.compare("ndcg@10", sums["better"], sums["both"])
    return {
        "set": name,
        "questions": len(some),
        "weights": weights,
        **{kind: sum(value for value, _ in sums[kind]) / len(some) for kind in ("vectors", "words", "both")},
        "recall@10": recall / len(some),
        "change": [change.second - change.first, change.low, change.high],
        "not_worse": not (change.is_significant and change.second < change.first),
    }


def of_ranked(responses: Sequence[pb.SearchResponse], questions: Sequence[tuple[str, int]]) -> float:
    """Returns the nDCG@10 of passages in the order in which they were returned."""
    right = [
        searched.hits([one.document_id for one in response.passages], {str(place)})
        for response, (_, place) in zip(responses, questions, strict=True)
    ]
    return quality.retrieval(right, [1] * len(right))[0]["ndcg@10"]


def table(sets: Sequence[Mapping[str, Any]], tuned: Mapping[str, float]) -> Table:
    """Returns what was measured, for people."""
    names = ("set", "questions", "vectors", "words", "both", "both to the better one", "recall@10")
    drawn = Table(*names, title="nDCG@10 of FAQs, and of news by their titles")
    for one in sets:
        change, low, high = one["change"]
        verdict = "" if one["not_worse"] else ", worse"
        drawn.add_row(
            one["set"],
            str(one["questions"]),
            *(_shown(one["set"], name, one[name]) for name in ("vectors", "words", "both")),
            f"{change:+.3f} ({low:+.3f} to {high:+.3f}{verdict})",
            _shown(one["set"], "recall@10", one["recall@10"]),
        )
    for name, value in tuned.items():
        drawn.add_row(name, str(HELD_OUT), "", "", _shown(name, "both", value), "", "")
    return drawn


def _shown(name: str, column: str, value: float) -> str:
    promise = PROMISES.get((name, column))
    return f"{value:.3f}" + (f", promised {promise:g}" if promise else "")


@click.command()
@click.argument("work", type=click.Path(path_type=Path, file_okay=False))
@click.option("--only-untuned", is_flag=True, help="Without training.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Also write the table here.")
def main(work: Path, only_untuned: bool, report: Path | None) -> None:
    """Measure what searches find in FAQs and news; trainings are kept in the folder WORK."""
    work.mkdir(parents=True, exist_ok=True)
    building = faqs.zaragoza()
    all_ = [building, *map(faqs.debian, faqs.DEBIAN), faqs.chinese_news()]
    models = {"encoder": samples.e5()}
    indexes: dict[str, dict[str, Any]] = {one.name: {"embedding": "encoder"} for one in all_}
    if not only_untuned:
        models |= trainings(work, building)
        # By vectors alone, so that what training gave is seen.
        indexes["tuned"] = {"embedding": "tuned", "ranking": "ranking", "keyword_weight": 0.0}
    sets, tuned = [], dict[str, float]()
    with served.answering(models, indexes) as (address, _), grpc.insecure_channel(address) as channel:
        search = AnswerServiceStub(channel).Search
        with Client(address) as client:
            for name in indexes:
                [faq] = [one for one in all_ if one.name == name] or [building]
                served.write(client, name, faq.documents())
        for faq in all_:
            sets.append(both(faq.name, found(faq, faq.questions, asked(search, faq.name, faq.questions, False))))
        if not only_untuned:
            questions = building.questions[:HELD_OUT]
            tuned["zaragoza-en, before"] = of_ranked(asked(search, building.name, questions, False), questions)
            tuned["zaragoza-en, tuned"] = of_ranked(asked(search, "tuned", questions, False), questions)
            tuned["zaragoza-en, tuned and ranked"] = of_ranked(asked(search, "tuned", questions, True), questions)
    served.conclude(table(sets, tuned), {"sets": sets, "tuned": tuned}, report)


if __name__ == "__main__":
    main()
