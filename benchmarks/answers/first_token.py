"""How soon an answer begins to be written, beside the search and the generation that it is made of.

    python -m tuneserve.benchmarks.answers.first_token CHAT [--ranking CKPT] [--rounds 15] [--report FILE]

Regime. The answers of an FAQ about building are the documents; MiniLM (22M) makes the vectors, CHAT writes. One caller
asks questions that do not refer back, so none is rewritten. Of each question, in an order that changes from round to
round: the search that Answer makes, ranked if there is a ranking model; GenerateStream with a prompt of as many
passages, a little shorter than Answer's, until the first text; Answer, until the first text. The latter two are
cancelled there. The first round warms up, so that both find their prompt in the engine's cache. A round is the mean of
its questions. Ratio and promise as in claims.py; the last line of stdout is the result as JSON.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
from rich.table import Table

from tuneserve import samples
from tuneserve.benchmarks.answers import faqs, served
from tuneserve.benchmarks.claims import METHOD, MIN_ROUNDS, Claim, Ratio, ratios
from tuneserve.client import Client
from tuneserve.errors import StepFailed
from tuneserve.evaluation import gate
from tuneserve.v1 import answer_pb2 as pb
from tuneserve.v1 import generation_pb2
from tuneserve.v1.answer_pb2_grpc import AnswerServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

MOST_SECONDS = 0.02
_PARTS = "search, Generate's first text and 20 ms"
CLAIM = Claim(f"Answer's first text, to {_PARTS}", "Answer", _PARTS, at_most=1.0)
# Of an answer, at most; the first one counts.
_TOKENS = 16
# What an answer is made from, and what it says before them.
_PASSAGES, _ASKED = 5, "Answer the question from the passages below, in its language, with the number of each passage."


class Sides:
    """Each returns the seconds that it took for a question."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._answers = AnswerServiceStub(channel)
        self._generation = GenerationServiceStub(channel)

    def search(self, question: str) -> float:
        """The search that Answer makes."""
        started = time.perf_counter()
        self._found(question)
        return time.perf_counter() - started

    def generate(self, question: str) -> float:
        """The first text that is written from the prompt that Answer makes."""
        passages = self._found(question).passages[:_PASSAGES]
        numbered = [f"[{number}] {one.text}" for number, one in enumerate(passages, 1)]
        message = generation_pb2.ChatMessage(role="user", content="\n\n".join([_ASKED, *numbered, question]))
        request = generation_pb2.GenerateRequest(
            model="chat",
            prompt=generation_pb2.Prompt(chat=generation_pb2.Chat(messages=[message])),
            sampling=generation_pb2.SamplingParams(max_tokens=_TOKENS, temperature=0),
        )
        started = time.perf_counter()
        call = self._generation.GenerateStream(request)
        return _first(call, lambda one: any(part.text for part in one.completions), started, question)

    def answer(self, question: str) -> float:
        """The first text of an answer."""
        request = pb.AnswerRequest(
            index="faq", messages=[pb.AnswerMessage(role="user", content=question)], max_tokens=_TOKENS
        )
        started = time.perf_counter()
        call = self._answers.Answer(request)
        return _first(call, lambda one: bool(one.text), started, question)

    def _found(self, question: str) -> pb.SearchResponse:
        request = pb.SearchRequest(index="faq", query=question, limit=gate.DEPTH)
        found: pb.SearchResponse = self._answers.Search(request)
        return found


def _first(call: Any, has_text: Callable[[Any], bool], started: float, question: str) -> float:
    if not any(has_text(one) for one in call):
        raise StepFailed(f"nothing was written for {question!r}", "leave that question out, or take another model")
    seconds = time.perf_counter() - started
    call.cancel()
    return seconds


def measured(sides: Sides, questions: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Returns the mean seconds of each round, by side."""
    kinds: dict[str, Callable[[str], float]] = {
        "search": sides.search,
        "Generate": sides.generate,
        "Answer": sides.answer,
    }
    means: dict[str, list[float]] = {name: [] for name in kinds}
    # The first round warms up.
    for number in range(rounds + 1):
        order = list(kinds)[:: 1 if number % 2 else -1]
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        for question in questions:
            for name in order:
                seconds[name].append(kinds[name](question))
        if number:
            for name, some in seconds.items():
                means[name].append(float(np.mean(some)))
            said = ", ".join(f"{name} {1000 * means[name][-1]:.1f} ms" for name in kinds)
            click.echo(f"round {number}: {said}", err=True)
    pairs = zip(means["search"], means["Generate"], strict=True)
    return means | {_PARTS: [search + generate + MOST_SECONDS for search, generate in pairs]}


def table(means: dict[str, list[float]], ratio: Ratio) -> Table:
    """Returns what was measured, for people."""
    drawn = Table("measure", "found", "promise", "", title="The first text of an answer")
    for name in ("search", "Generate", "Answer"):
        drawn.add_row(f"{name}, median of rounds", f"{1000 * np.median(means[name]):.1f} ms", "", "")
    drawn.add_row(ratio.claim.name, ratio.interval.text(2), ratio.promise, ratio.verdict or "")
    return drawn


@click.command()
@click.argument("chat", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--ranking", type=click.Path(path_type=Path, exists=True, file_okay=False), help="A ranking model.")
@click.option("--questions", type=click.IntRange(1, 500), default=20, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=MIN_ROUNDS, show_default=True)
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Also write the table here.")
def main(chat: Path, ranking: Path | None, questions: int, rounds: int, report: Path | None) -> None:
    """Measure how soon an answer begins, beside its search and its generation; CHAT is a chat model's checkpoint."""
    faq = faqs.zaragoza()
    models, index = {"encoder": samples.embedding_model(), "chat": chat}, {"embedding": "encoder", "generation": "chat"}
    if ranking:
        models["ranking"] = ranking
        index["ranking"] = "ranking"
    with served.answering(models, {"faq": index}) as (address, _), grpc.insecure_channel(address) as channel:
        with Client(address) as client:
            served.write(client, "faq", faq.documents())
        means = measured(Sides(channel), [question for question, _ in faq.questions[:questions]], rounds)
    [ratio] = ratios([CLAIM], means)
    result = {"method": METHOD, "questions": questions, "rounds": rounds, "ranked": ranking is not None}
    result |= {name: round(1000 * float(np.median(some)), 2) for name, some in means.items()}
    served.conclude(table(means, ratio), result | {"ratio": ratio.to_json()}, report)


if __name__ == "__main__":
    main()
