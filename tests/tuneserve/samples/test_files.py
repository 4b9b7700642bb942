"""Samples as files in a folder: what the examples read, whole, and never in place of what is there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tuneserve.errors import UserError
from tuneserve.finetune import config
from tuneserve.finetune.report import tables
from tuneserve.samples import files as sample_files

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "finetune" / "examples").glob("*.yaml"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that has one data set and one model; nothing else can be fetched."""
    folder = tmp_path / "cache"
    (folder / "minilm-l6").mkdir(parents=True)
    (folder / "minilm-l6" / "config.json").write_text("{}")
    (folder / "questions.jsonl").write_text('{"messages": []}\n')
    monkeypatch.setenv("TUNESERVE_CACHE", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return folder


def run(*arguments: object, status: int = 0) -> str:
    """Runs `tuneserve samples`; returns what it printed."""
    result = subprocess.run(
        [sys.executable, "-m", "tuneserve.cli", "samples", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout + result.stderr


def test_files_and_directories_are_written(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "samples"
    assert sample_files.fetch("questions", folder)
    assert sample_files.fetch("encoder", folder)
    assert (folder / "questions.jsonl").read_text() == '{"messages": []}\n'
    assert json.loads((folder / "minilm-l6" / "config.json").read_text()) == {}
    assert sorted(path.name for path in folder.iterdir()) == ["minilm-l6", "questions.jsonl"]
    (folder / "questions.jsonl").write_text("mine")
    assert (cache / "questions.jsonl").read_text() != "mine", "the cache is another file"


def test_what_is_there_is_kept(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text("mine")
    assert not sample_files.fetch("questions", tmp_path)
    assert (tmp_path / "questions.jsonl").read_text() == "mine"


def test_nothing_is_left_of_what_failed(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "samples"
    with pytest.raises(UserError, match="could not be fetched"):
        sample_files.fetch("sentiment", folder)
    assert not folder.exists()

    def half(source: Path, target: Path) -> None:
        target.mkdir()
        raise OSError("cut short")

    monkeypatch.setattr(shutil, "copytree", half)
    with pytest.raises(OSError, match="cut short"):
        sample_files.fetch("encoder", folder)
    assert list(folder.iterdir()) == []


def test_the_command(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    lines = run("fetch", "questions", "encoder", "--directory", folder).splitlines()
    assert lines == [f"{folder}/questions.jsonl: written, 0.0 MB", f"{folder}/minilm-l6: written, 0.0 MB"]
    assert run("fetch", "questions", "--directory", folder) == f"{folder}/questions.jsonl: already exists\n"
    listed = {line.split()[0]: line for line in run("list", "--directory", folder).splitlines()[1:]}
    assert listed.keys() == sample_files.SAMPLES.keys()
    assert str(folder / "questions.jsonl") in listed["questions"]
    assert str(folder) not in listed["chat"]


def test_the_command_says_what_there_is(cache: Path, tmp_path: Path) -> None:
    told = run("fetch", "question", "--directory", tmp_path / "here", status=2)
    assert "question: no such sample; allowed: sentiment, questions," in told
    assert "could not be fetched" in run("fetch", "--directory", tmp_path / "here", status=2)
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_read_what_is_fetched(example: Path) -> None:
    files = {ROOT / "samples" / sample.file for sample in sample_files.SAMPLES.values()}
    wanted = config.load(example)
    assert {Path(wanted.base_model).resolve(), Path(wanted.train).resolve()} <= files


@pytest.mark.train
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_right_as_they_are(example: Path, tmp_path: Path) -> None:
    """On the real samples, which are the cache's own."""
    copy = tmp_path / "finetune" / "examples" / example.name
    copy.parent.mkdir(parents=True)
    shutil.copy(example, copy)
    (tmp_path / "samples").mkdir()
    for sample in sample_files.SAMPLES.values():
        (tmp_path / "samples" / sample.file).symlink_to(sample.cached())
    found = tables.validate(copy)
    assert min(found["train"], found["test"]) > 50
