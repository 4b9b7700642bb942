"""What the page shows of each task, and what it leaves out."""

import re

import torch

from tuneserve.checkpoint.entities import spans_of
from tuneserve.checkpoint.rows import Row
from tuneserve.evaluation import quality
from tuneserve.finetune.data.tokens import Target
from tuneserve.finetune.eval.evaluation import Answers, texts
from tuneserve.finetune.report import page, sections
from tuneserve.finetune.report.sections import Finished

from .test_page import EVIL, classified, finished, page_of


def test_the_surest_mistake_comes_first() -> None:
    cells = page_of(classified()).cells
    wrong = [cell for cell in cells if cell.startswith("text ")]
    assert [re.findall(r"\d", cell)[0] for cell in wrong] == ["9", "8"]


def test_no_texts_where_the_rows_are_not_kept() -> None:
    run = classified()
    shown = page.page(finished(
        run.split.test, run.answers, run.split.labels, task="sequence-classification", keep_test_split=False
    ))  # fmt: skip
    assert "text 9" not in shown
    assert "text 9" in page.page(run)


def test_several_labels() -> None:
    rows: list[Row] = [{"text": f"text {n}", "labels": ["a"] * (n % 2)} for n in range(6)]
    target = Target("sequence-classification", ("a", "b"), "multi-label", 64)
    answers = texts(target, rows, torch.tensor([[-1.0, -1.0], [1.0, 3.0]] * 3))
    page = page_of(finished(rows, answers, ["a", "b"], task="sequence-classification", problem_type="multi-label"))
    assert "a, b" in page.cells
    assert "Classes" in page.headings


def test_numbers() -> None:
    rows: list[Row] = [{"text": f"text {n}", "label": n / 2} for n in range(6)]
    target = Target("sequence-classification", ("score",), "regression", 64)
    answers = texts(target, rows, torch.arange(6)[:, None] / 2.5)
    page = page_of(finished(rows, answers, ["score"], task="sequence-classification", problem_type="regression"))
    assert "Numbers and errors" in page.headings
    assert "Classes" not in page.headings
    assert page.cells[:4] == ["text 5", "2.5", "2", "0.500"]


def test_entities() -> None:
    rows: list[Row] = [{"text": "anna berg went", "entities": [{"start": 0, "end": 9, "label": "PER"}]}] * 4
    guesses = [[("PER", 0, 9)], [("PER", 0, 4)], [("LOC", 0, 4)], [("LOC", 10, 14)]]
    gold = list(map(spans_of, rows))
    answers = Answers(quality.token_classification(gold, guesses), [0.1, 0.2, 0.3, 0.4], guesses)
    page = page_of(finished(rows, answers, ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"], task="token-classification"))
    assert "Entities" in page.headings
    assert "LOC: anna" in page.cells
    pairs = [pair for one, guess in zip(gold, guesses, strict=True) for pair in sections._overlapping(one, guess)]
    assert pairs == [("PER", "PER"), ("PER", "PER"), ("PER", "LOC"), ("PER", "O"), ("O", "LOC")]


def test_preferences() -> None:
    rows: list[Row] = [{"prompt": f"q{n}", "completion": f"a{n}", "rejected": f"b{n} {EVIL}"} for n in range(4)]
    figures = {"reward_accuracy": 0.5, "win_rate": 0.25, "base_win_rate": 0.75}
    answers = Answers(figures | quality.generation(-6.0, 4), [0.5, -2.0, 1.0, -2.5])
    run = finished(rows, answers, [], task="preference", preference_beta=0.1)
    page = page_of(run)
    assert page.cells[:4] == ["q2", "a2", f"b2 {EVIL}", "-0.10"]
    assert page.cells[4:6] == ["q0", "a0"]
    assert "Rewards" in page.headings
    single: list[Row] = [{"prompt": f"q{n}", "completion": f"a{n}", "label": n > 0} for n in range(2)]
    page = page_of(finished(single, Answers(answers.metrics, [0.5, 1.0]), [], task="preference"))
    assert page.cells[:8] == ["q1", "a1", "good", "-0.10", "q0", "a0", "bad", "-0.05"]


def test_answers() -> None:
    rows: list[Row] = [{"prompt": f"q{n} {EVIL}", "completion": f"a{n}"} for n in range(4)]
    run = finished(rows, Answers(quality.generation(-6.0, 4), [0.5, 2.0, 1.0, 2.5]), [], task="generation")
    run = Finished(**vars(run) | {"samples": [{"prompt": "q", "expected": "a", "answer": EVIL}]})
    page = page_of(run)
    assert [cell for cell in page.cells if cell.startswith("a")][:4] == ["a3", "a1", "a2", "a0"]
    assert EVIL in page.cells
