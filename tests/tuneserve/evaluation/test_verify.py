"""What counts as the same answer. The comparison itself is in test_examples.py, and in tests/engine."""

import pytest
import torch

from tuneserve.evaluation import verify
from tuneserve.evaluation.evaluate import check_rows
from tuneserve.evaluation.verify import Verdict
from tuneserve.v1 import checkpoint_pb2 as pb

SINGLE, MULTI, NUMBER = (
    pb.PROBLEM_TYPE_SINGLE_LABEL,
    pb.PROBLEM_TYPE_MULTI_LABEL,
    pb.PROBLEM_TYPE_REGRESSION,
)


@pytest.mark.parametrize(
    ("problem", "ours", "served", "is_same"),
    [
        (SINGLE, [0.9, 0.1], [0.6, 0.4], True),
        (SINGLE, [0.52, 0.48], [0.48, 0.52], True),
        (SINGLE, [0.6, 0.4], [0.48, 0.52], False),
        (MULTI, [0.52, 0.1], [0.48, 0.1], True),
        (MULTI, [0.6, 0.1], [0.4, 0.1], False),
        (MULTI, [0.9, 0.6], [0.9, 0.4], False),
        (NUMBER, [200.0], [190.0], True),
    ],
)
def test_labels_may_differ_only_where_two_are_nearly_equal(
    problem: pb.ProblemType, ours: list[float], served: list[float], is_same: bool
) -> None:
    manifest = pb.Checkpoint(task=pb.TASK_SEQUENCE_CLASSIFICATION, problem_type=problem)
    same, differences = verify._compared(torch.tensor(ours), torch.tensor(served), manifest)
    assert same == is_same
    scale = max(1.0, *ours) if problem == NUMBER else 1.0
    assert differences == pytest.approx([abs(a - b) / scale for a, b in zip(ours, served, strict=True)])


@pytest.mark.parametrize(
    ("verdict", "is_good"),
    [
        (Verdict(9, 0, 0.25, 0.01, (0.01, 0.25)), True),
        (Verdict(9, 1, 0.0, 0.0, (0.01, 0.25)), False),
        (Verdict(9, 0, 0.26, 0.0, (0.01, 0.25)), False),
        (Verdict(9, 0, 0.1, 0.011, (0.01, 0.25)), False),
    ],
)
def test_rounding_explains_small_differences_and_no_other_answer(verdict: Verdict, is_good: bool) -> None:
    assert verdict.is_good == is_good


@pytest.mark.parametrize(
    "manifest",
    [
        pb.Checkpoint(task=pb.TASK_SEQUENCE_CLASSIFICATION, problem_type=SINGLE, labels=["a", "b"]),
        pb.Checkpoint(task=pb.TASK_SEQUENCE_CLASSIFICATION, problem_type=MULTI, labels=["a", "b"]),
        pb.Checkpoint(task=pb.TASK_SEQUENCE_CLASSIFICATION, problem_type=NUMBER, labels=["score"]),
        pb.Checkpoint(task=pb.TASK_TOKEN_CLASSIFICATION, labels=["O", "B-PER", "I-PER"]),
        pb.Checkpoint(task=pb.TASK_GENERATION),
        pb.Checkpoint(task=pb.TASK_EMBEDDING),
        pb.Checkpoint(task=pb.TASK_RANKING, problem_type=MULTI, labels=["score"]),
    ],
)
def test_a_checkpoint_that_keeps_no_rows_is_asked_about_some_that_fit(manifest: pb.Checkpoint) -> None:
    check_rows(manifest, verify.sentences(manifest))
