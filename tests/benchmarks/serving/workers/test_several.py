"""A job of several processes is the same work, and has one outcome."""

import pytest

from tuneserve.benchmarks.serving.workers import job
from tuneserve.benchmarks.serving.workers.job import Job, Outcome
from tuneserve.benchmarks.serving.workers.several import joined, shares


@pytest.mark.parametrize(
    "work",
    [
        Job(texts=job.texts(48, seed=1), batch=5, connections=7),
        Job(prompts=job.prompts(11, 4, 500, seed=1), max_tokens=2, connections=4, stream=True),
        Job(texts=["a"]),
    ],
    ids=["texts", "prompts", "one call"],
)
def test_calls_and_connections_are_dealt_out(work: Job) -> None:
    parts = shares(work, 3)
    assert len(parts) == min(3, work.connections)
    assert sum(part.connections for part in parts) == work.connections
    dealt = [tuple(piece) for part in parts for piece in part.pieces()]
    assert sorted(dealt) == sorted(map(tuple, work.pieces()))
    assert {(part.batch, part.max_tokens, part.stream) for part in parts} == {
        (work.batch, work.max_tokens, work.stream)
    }


def test_an_outcome_is_from_the_first_begin_to_the_last_end() -> None:
    first = Outcome(2.0, 3, 30, 4, ["a"], [0.1], [0.01], 0.5)
    second = Outcome(1.0, 2, 20, 5, ["b"], [0.2], [0.02], 0.25)
    assert joined([(10.0, first), (11.5, second)]) == Outcome(2.5, 5, 50, 9, ["a", "b"], [0.1, 0.2], [0.01, 0.02], 0.75)
