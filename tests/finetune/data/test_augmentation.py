"""Copies of training rows: what may be changed in them, and what not."""

from pathlib import Path
from typing import Any

import nltk
import pytest
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.corpus.util import LazyCorpusLoader

from tuneserve import samples
from tuneserve.errors import UserError
from tuneserve.finetune import config
from tuneserve.finetune.data import augmentation


@pytest.fixture
def wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [str(samples.wordnet())])


def parsed(directory: Path, **values: Any) -> config.FinetuneConfig:
    given = {"task": "sequence-classification", "base_model": "m", "train": "d.jsonl", "output": "o"}
    return config.parse(given | values, directory)


def test_copies_lack_words_that_the_rows_have(tmp_path: Path) -> None:
    settings = parsed(tmp_path, augment_copies=3, word_dropout=0.3, word_swap=0.2)
    rows: list[dict[str, Any]] = [{"text": "one two three four five six seven", "label": "a"}]
    more = augmentation.augmented(rows, settings)
    assert list(more) == list(augmentation.augmented(rows, settings))
    assert more[0] == rows[0]
    assert 1 < len(more) <= 4
    words = set(rows[0]["text"].split())
    assert all(row["label"] == "a" and set(row["text"].split()) <= words for row in more)


def said(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["label"], row["text"][one["start"] : one["end"]]) for one in row["entities"]]


def test_augmented_entities_keep_their_words(tmp_path: Path) -> None:
    settings = parsed(tmp_path, task="token-classification", augment_copies=20, word_dropout=0.5)
    text = "so then Anna Berg, who went home, met Bo's dog"
    people = [{"start": 8, "end": 17, "label": "PER"}, {"start": 38, "end": 40, "label": "PER"}]
    row = {"text": text, "entities": people}
    copies = list(augmentation.augmented([row], settings)[1:])
    assert len({copy["text"] for copy in copies}) > 10
    for copy in copies:
        assert said(copy) == [("PER", "Anna Berg"), ("PER", "Bo")]
        # Words go whole, with their commas and the space before them.
        assert set(copy["text"].split()) <= set(text.split())
        assert copy["text"] == " ".join(copy["text"].split())


def test_a_text_without_entities_is_not_emptied(tmp_path: Path) -> None:
    settings = parsed(tmp_path, task="token-classification", augment_copies=20, word_dropout=0.9)
    assert all(row["text"] for row in augmentation.augmented([{"text": "so long", "entities": []}], settings))


def test_words_become_others_of_the_same_meaning(tmp_path: Path, wordnet: None) -> None:
    settings = parsed(tmp_path, augment_copies=2, word_dropout=0, synonyms=1.0)
    rows = [{"text": "Quickly a terrible movie, but they don't quickly say so.", "text_pair": "zzz", "label": "a"}]
    _, copy, other = augmentation.augmented(rows, settings)
    before, after = rows[0]["text"].split(), copy["text"].split()
    changed = {old: new for old, new in zip(before, after, strict=True) if old != new}
    # No name, no word of grammar, no part of a word, no comma; as many words as before.
    assert changed.keys() == {"terrible", "movie,", "quickly", "say"}
    assert changed["movie,"] in ("film,", "picture,", "pic,", "flick,")
    assert changed["quickly"] in ("rapidly", "speedily", "apace")
    assert copy["text"] != other["text"]
    assert (copy["text_pair"], copy["label"]) == ("zzz", "a")
    assert list(augmentation.augmented(rows, settings)) == [*rows, copy, other]


def test_entities_are_not_said_otherwise(tmp_path: Path, wordnet: None) -> None:
    settings = parsed(tmp_path, task="token-classification", augment_copies=1, word_dropout=0, synonyms=1.0)
    row = {"text": "terrible movie by movie", "entities": [{"start": 9, "end": 14, "label": "WORK"}]}
    _, copy = augmentation.augmented([row], settings)
    assert said(copy) == [("WORK", "movie")]
    words = copy["text"].split()
    assert words[1:3] == ["movie", "by"]
    assert words[0] != "terrible"
    assert words[3] != "movie"


def test_synonyms_without_wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    # One that no other test has loaded.
    monkeypatch.setattr(nltk.corpus, "wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))
    augmentation.check(parsed(tmp_path, synonyms=0.5))
    with pytest.raises(UserError, match="WordNet is not on this machine") as caught:
        augmentation.check(parsed(tmp_path, augment_copies=1, synonyms=0.5))
    assert "nltk.downloader wordnet" in caught.value.hint
