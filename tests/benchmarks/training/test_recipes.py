"""The fixed split of the sample data: the same each time, stratified, and no row in both parts."""

import re
from collections import Counter
from pathlib import Path

import pytest

from tuneserve import samples
from tuneserve.benchmarks.training import recipes
from tuneserve.checkpoint import rows


def test_lines_are_split_by_their_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [{"text": f"text {number}", "label": "rare" if number % 10 == 0 else "common"} for number in range(200)]
    rows.write(tmp_path / "given.jsonl", given)
    monkeypatch.setattr(samples, "sentiment", lambda: tmp_path / "given.jsonl")
    parts = recipes.split("movies", tmp_path)
    train, test = map(rows.read, parts)
    assert Counter(row["label"] for row in test) == {"common": 36, "rare": 4}
    assert sorted(row["text"] for row in [*train, *test]) == sorted(row["text"] for row in given)
    before = [path.read_bytes() for path in parts]
    for path in parts:
        path.unlink()
    assert [path.read_bytes() for path in recipes.split("movies", tmp_path)] == before


def test_rows_of_several_lines_are_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"in\tO\nplace{number}\tB-{'LOC' if number % 5 else 'PER'}" for number in range(50)]
    (tmp_path / "given.conll").write_text("\n\n".join(names) + "\n")
    monkeypatch.setattr(samples, "tweets_ner", lambda: tmp_path / "given.conll")
    train, test = (re.split(r"\n\n+", path.read_text().strip()) for path in recipes.split("tweets", tmp_path))
    assert sorted([*train, *test]) == sorted(names)
    assert sum("B-PER" in row for row in test) == 2
    assert len(test) == 10
