"""A run's report: what is in the folder, that nobody's text can do anything in the page, and what it leaves out."""

import json
import logging
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve import checkpoint
from tuneserve.checkpoint import entities
from tuneserve.checkpoint.rows import Row
from tuneserve.checkpoint.tasks import TRAINABLE
from tuneserve.errors import UserError
from tuneserve.evaluation import quality
from tuneserve.finetune import config
from tuneserve.finetune.data.dataset import Data
from tuneserve.finetune.data.tokens import Target
from tuneserve.finetune.eval.evaluation import Answers, texts
from tuneserve.finetune.report import page
from tuneserve.finetune.report.sections import Finished
from tuneserve.v1 import checkpoint_pb2 as pb

EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(1)>$\\frac{1'
# Nothing that runs, loads or leads anywhere.
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "b", "img"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
HISTORY = [
    *({"loss": 1 / step, "learning_rate": 1e-3, "epoch": step / 10, "step": step} for step in range(1, 11)),
    {"eval_loss": 0.4, "epoch": 1.0, "step": 10},
    {"train_runtime": 1.0, "step": 10},
]


def finished(rows: list[Row], answers: Answers, labels: list[str], **values: Any) -> Finished:
    """A run that never was."""
    settings = config.parse({"base_model": "base", "train": "d.jsonl", "output": "out"} | values, Path("/tmp"))
    manifest = pb.Checkpoint(task=TRAINABLE[settings.task], labels=labels)
    entry = checkpoint.step("finetune", "base", settings.public(), ("torch",))
    measured = {"train_loss": 0.3, "train_steps": 10, "train_seconds": 2.0, "trained_parameters": 99}
    entry.metrics.update(measured | answers.metrics)
    manifest.lineage.append(entry)
    return Finished(
        settings,
        Data(rows, rows, rows[:1], labels, entities.types(labels) if "O" in labels else labels, 0),
        [12] * len(rows),
        HISTORY,
        manifest,
        answers,
    )


class Page(HTMLParser):
    """What a browser would make of a page: its tags, what they load, its headings and its cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.headings: list[str] = []
        self.cells: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._inside = tag
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "h2":
            self.headings.append(data)
        if self._inside == "td":
            self.cells[-1] += data


def page_of(run: Finished) -> Page:
    shown = Page(page.page(run))
    assert shown.tags <= ALLOWED
    assert all(source.startswith("data:image/svg+xml;base64,") for source in shown.loads)
    return shown


def classified() -> Finished:
    rows: list[Row] = [{"text": f"text {n} {EVIL}", "label": EVIL if n % 2 else "b"} for n in range(10)]
    target = Target("sequence-classification", (EVIL, "b"), "single-label", 64)
    # Two of them wrong: the last one is surer of it.
    logits = torch.tensor([[-2.0, 2.0], [2.0, -2.0]] * 4 + [[1.0, 0.0], [-9.0, 9.0]])
    answers = texts(target, rows, logits)
    return finished(rows, answers, [EVIL, "b"], task="sequence-classification", validation_size=0.1)


@pytest.mark.train
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_folder_of_a_real_run(trained: Path) -> None:
    folder = trained.with_name("out-report")
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "report.html", "tensorboard"]
    found = json.loads((folder / "metrics.json").read_text())
    manifest = checkpoint.load(trained)
    assert found["metrics"]["accuracy"] == manifest.lineage[-1].metrics["accuracy"]
    assert found["metrics"]["accuracy_low"] < found["metrics"]["accuracy"] <= found["metrics"]["accuracy_high"]
    assert found["metrics"]["train_loss"] == manifest.lineage[-2].metrics["train_loss"]
    assert found["seed"] == 42
    assert found["data_sha256"] == manifest.lineage[-2].data_sha256
    assert found["settings"]["learning_rate"] == 2e-3
    assert found["packages"]["torch"]
    assert found["rows"] == {"train": 48, "validation": 0, "test": 12}
    losses = [one["loss"] for one in found["history"] if "loss" in one]
    assert len(losses) == manifest.lineage[-2].metrics["train_steps"]
    assert losses[-1] < losses[0]
    assert str(trained.parent) not in (folder / "metrics.json").read_text() + (folder / "report.html").read_text()
    assert "(95 % interval)" in (folder / "report.html").read_text()
    page = Page((folder / "report.html").read_text())
    assert page.headings[:4] == ["Training", "Confusion", "Reliability", "Classes"]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [one.value for one in events.Scalars("train/loss")] == pytest.approx(losses)


def test_texts_and_labels_are_only_shown() -> None:
    page = page_of(classified())
    assert f"text 9 {EVIL}" in page.cells
    assert EVIL in page.cells


def test_a_search_shows_what_it_missed() -> None:
    rows: list[Row] = [{"query": f"query {n} {EVIL}", "positive": f"passage {n}"} for n in range(6)]
    metrics, sums = quality.retrieval([[True], [False, True], *[[True]] * 4], [1] * 6)
    predicted = ["passage 0", "passage 9", *(f"passage {n}" for n in range(2, 6))]
    answers = Answers(metrics, [1 - value for value, _ in sums], predicted, row_sums=sums)
    page = page_of(finished(rows, answers, [], task="embedding", pooling="mean"))
    assert page.headings[:3] == ["Training", "Search", "Missed passages"]
    missed = page.cells.index(f"query 1 {EVIL}")
    assert page.cells[missed + 1 : missed + 4] == ["passage 1", "passage 9", "0.63"]
    assert not any(cell.startswith("query 0") for cell in page.cells)


def test_many_labels_fit(tmp_path: Path) -> None:
    labels = [f"label {n}" for n in range(80)]
    rows: list[Row] = [{"text": "t", "label": label} for label in labels]
    target = Target("sequence-classification", tuple(labels), "single-label", 64)
    run = finished(rows, texts(target, rows, torch.eye(80).roll(1, 0)), labels, task="sequence-classification")
    assert len(page.page(run)) < 2_000_000


def test_it_is_whole_or_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    events = tmp_path / "tensorboard"
    events.mkdir()
    page.write(tmp_path / "report", classified(), events, overwrite=False)
    first = (tmp_path / "report" / "report.html").read_bytes()
    shutil.rmtree(events)
    with caplog.at_level(logging.ERROR):
        page.write(tmp_path / "report", classified(), events, overwrite=True)
    assert "the checkpoint is complete" in caplog.text
    assert (tmp_path / "report" / "report.html").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_losses_that_are_no_numbers_are_null() -> None:
    run = classified()
    run.history[0]["loss"] = float("nan")
    text = json.dumps(page.numbers(run), allow_nan=False)
    assert json.loads(text)["history"][0]["loss"] is None


def test_a_report_is_not_overwritten(run: Callable[..., Path], tmp_path: Path, encoder: Path, reviews: Path) -> None:
    (tmp_path / "out-report").mkdir()
    with pytest.raises(UserError, match="out-report: already exists"):
        run(tmp_path, task="sequence-classification", base_model=str(encoder), train=str(reviews))
