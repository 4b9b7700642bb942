"""What a gate does with passages that are made up; Search itself is tested with the server."""

import random

from tuneserve.benchmarks.answers import gate
from tuneserve.v1 import answer_pb2 as pb

QUESTIONS = [(f"question {number}", number) for number in range(60)]


def found(*best: tuple[str, float]) -> pb.SearchResponse:
    """Passages: some, and ten that are far away."""
    far = [(f"x{number}", 0.1) for number in range(10)]
    return pb.SearchResponse(passages=[pb.Passage(document_id=id_, dense_score=dense) for id_, dense in [*best, *far]])


def test_a_gate_tells_questions_with_answers_from_others() -> None:
    chance = random.Random(0)
    near = [found((str(number), 0.8 + chance.random() / 10)) for number in range(60)]
    nothing = [found(("y", 0.2)) for _ in QUESTIONS[:5]]
    got = gate.judged(QUESTIONS, near, {}, QUESTIONS[:5], nothing)
    assert (got["auroc"], got["stopped"], got["others_stopped"]) == (1, 1, 1)
    assert "1.000 (1.000 to 1.000)" in list(gate.table({"faq": got}).columns[1].cells)


def test_other_passages_that_answer_are_answers() -> None:
    # Of each second question another passage answers, too: without its own answer it looks like one that has it.
    chance = random.Random(0)
    near = [
        found((str(number), 0.8 + chance.random() / 10), *([(f"{number + 100}", 0.85)] if number % 2 else []))
        for number in range(60)
    ]
    also = {number: (number + 100,) for number in range(1, 60, 2)}
    others = QUESTIONS[:1], [found()]
    assert (
        gate.judged(QUESTIONS, near, also, *others)["auroc"] == 1 > gate.judged(QUESTIONS, near, {}, *others)["auroc"]
    )
