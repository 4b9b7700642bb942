"""Whether documents say what written answers cite them for: citations for a reader to judge, and what was judged.

    python -m tuneserve.benchmarks.answers.citations WORK                  # writes WORK/citations.jsonl
    python -m tuneserve.benchmarks.answers.citations WORK --report FILE    # with "holds": true or false in each line

A chat model of 135M learns from questions about building to say what the right passage says, with its number, or that
no passage answers: its prompts are Answer's. Then Answer is asked 150 other questions, and 100 of the citations that
passed the server's check are drawn. Each line has a sentence that was written and the part of a document that it cites.
It holds if that part, read alone, says what the sentence says. multilingual-e5-small finds the passages. The training
is kept in WORK, and not repeated. The last line of stdout is the result as JSON.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import grpc
from rich.table import Table
from scipy.stats import binomtest

from tuneserve import samples
from tuneserve.benchmarks.answers import faqs, served
from tuneserve.benchmarks.answers.faqs import HELD_OUT, Faq
from tuneserve.checkpoint import rows
from tuneserve.client import Client
from tuneserve.client.documents import AnswerParts
from tuneserve.errors import UserError
from tuneserve.v1 import answer_pb2 as pb
from tuneserve.v1.answer_pb2_grpc import AnswerServiceStub

PROMISE = 0.95
JUDGED = 100
# An answer is made from fewer passages than Answer takes by itself, so that training takes minutes.
_PASSAGES, _TOKENS = 3, 96
# What the server asks the model that writes (a test compares them), and what that writes if there is no answer.
_ASKED = (
    "Answer the question from the passages below and from nothing else, in the question's language. After each "
    "sentence, write the number of the passage that it comes from, like [1]. If the passages do not answer the "
    "question, write only NOT_FOUND."
)
_NOT_FOUND = "NOT_FOUND"
# Of the right passage, so many sentences are the answer.
_SENTENCES = 2
_SENTENCE = re.compile(r"\S.*?(?:[.!?](?=\s)|$)", re.DOTALL)
_TRAINING: Mapping[str, Any] = {
    "task": "generation",
    "max_length": 1024,
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 5e-4,
    "long_prompts": "drop",
}


def asked(question: str, passages: Sequence[pb.Passage]) -> str:
    """Returns the message that the server sends to the model."""
    numbered = (f"[{number}] {one.text}" for number, one in enumerate(passages, 1))
    return "\n\n".join([_ASKED, *numbered, f"Question: {question}"])


def row(question: str, place: int, passages: Sequence[pb.Passage]) -> dict[str, Any]:
    """Returns a training row: the first sentences of the right passage with its number, or that there is none."""
    right = next((number for number, one in enumerate(passages, 1) if one.document_id == str(place)), None)
    said = [_NOT_FOUND]
    if right:
        said = [f"{one} [{right}]" for one in _SENTENCE.findall(passages[right - 1].text)[:_SENTENCES]]
    turns = [("user", asked(question, passages)), ("assistant", " ".join(said))]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@contextmanager
def answering(models: Mapping[str, Path], index: Mapping[str, str], faq: Faq) -> Iterator[Any]:
    """Serves an index of a FAQ's answers; yields its stub."""
    with served.answering(models, {"faq": index}) as (address, _), grpc.insecure_channel(address) as channel:
        with Client(address) as client:
            served.write(client, "faq", faq.documents())
        yield AnswerServiceStub(channel)


def trained(work: Path, faq: Faq) -> Path:
    """Returns a checkpoint, trained on the questions that are not held out, unless it exists."""
    output = work / "writer"
    if not output.exists():
        with answering({"encoder": samples.e5()}, {"embedding": "encoder"}, faq) as stub:

            def passages(question: str) -> Sequence[pb.Passage]:
                found: pb.SearchResponse = stub.Search(pb.SearchRequest(index="faq", query=question, limit=_PASSAGES))
                return found.passages

            all_ = [row(question, place, passages(question)) for question, place in faq.questions]
        served.trained(output, all_[HELD_OUT:], all_[:HELD_OUT], base_model=str(samples.chat_model()), **_TRAINING)
    return output


def answers(work: Path, faq: Faq) -> Iterator[tuple[str, pb.AnswerResponse]]:
    """Yields the questions that are held out, each with its answer."""
    models = {"encoder": samples.e5(), "writer": trained(work, faq)}
    with answering(models, {"embedding": "encoder", "generation": "writer"}, faq) as stub:
        for question, _place in faq.questions[:HELD_OUT]:
            parts, turn = AnswerParts(), pb.AnswerMessage(role="user", content=question)
            request = pb.AnswerRequest(index="faq", messages=[turn], limit=_PASSAGES, max_tokens=_TOKENS)
            for part in stub.Answer(request):
                parts.add(part)
            yield question, parts.joined()


def cited(faq: Faq, question: str, answer: pb.AnswerResponse) -> Iterator[dict[str, Any]]:
    """Yields what there is to judge in an answer."""
    for one in answer.end.citations:
        document = faq.answers[int(one.document_id)]
        yield {
            "question": question,
            "sentence": answer.text[one.start : one.end],
            "cited": document[one.document_start : one.document_end],
            "holds": None,
        }


def judged(file: Path) -> dict[str, int]:
    """Returns how many citations there are, hold, and are the passage's own words. Raises UserError for one that is not
    judged.
    """
    found = rows.read(file)
    for number, one in enumerate(found, 1):
        if not isinstance(one["holds"], bool):
            raise UserError(f"{file}: line {number} is not judged", "holds: true or false")
    copied = sum(one["sentence"] == one["cited"] for one in found)
    return {"judged": len(found), "hold": sum(one["holds"] for one in found), "copied": copied}


def draw(work: Path, file: Path, counts: Path) -> None:
    """Writes citations for a reader, and how all answers ended."""
    work.mkdir(parents=True, exist_ok=True)
    faq, found, outcomes = faqs.zaragoza(), list[dict[str, Any]](), Counter[str]()
    for question, answer in answers(work, faq):
        outcomes[pb.AnswerOutcome.Name(answer.end.outcome).removeprefix("ANSWER_OUTCOME_").lower()] += 1
        outcomes["citations_dropped"] += answer.end.citations_dropped
        found += cited(faq, question, answer)
    outcomes["citations_kept"] = len(found)
    random.Random(0).shuffle(found)
    rows.write(file, found[:JUDGED])
    counts.write_text(json.dumps(outcomes), encoding="utf-8")


@click.command()
@click.argument("work", type=click.Path(path_type=Path, file_okay=False))
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write what was judged here.")
def main(work: Path, report: Path | None) -> None:
    """Draw 100 citations for a reader; with --report, count what holds. WORK keeps the training."""
    file, counts = work / "citations.jsonl", work / "outcomes.json"
    if report is None:
        draw(work, file, counts)
        click.echo(f"{file}: judge each line")
        return
    found = judged(file)
    outcomes = json.loads(counts.read_text(encoding="utf-8"))
    hold, count = found["hold"], found["judged"]
    low, high = binomtest(hold, count).proportion_ci(method="wilson")
    drawn = Table("measure", "found", "promise", title=f"Citations of {HELD_OUT} written answers, {count} read by hand")
    drawn.add_row("hold", f"{hold / count:.2f} ({low:.2f} to {high:.2f})", f"≥ {PROMISE:g}")
    for name, number in {"in the passage's own words": found["copied"], **outcomes}.items():
        drawn.add_row(name.replace("_", " "), str(number), "")
    served.conclude(drawn, found | {"interval": [round(low, 3), round(high, 3)], "outcomes": outcomes}, report)


if __name__ == "__main__":
    main()
