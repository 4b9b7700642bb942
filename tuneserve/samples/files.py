"""The samples by name, as files in a folder, for finetune/examples."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tuneserve import samples
from tuneserve.machine import disk
from tuneserve.samples import news
from tuneserve.samples.packages import whole


@dataclass(frozen=True)
class Sample:
    """A data set or a base model."""

    file: str  # its name in a folder
    what: str
    licence: str
    cached: Callable[[], Path]  # its file or directory in the cache; fetched and verified if it is not there yet


# The samples that finetune/examples reads, and a model that needs no training.
SAMPLES = {
    "sentiment": Sample("sentiment.jsonl", "movie sentences, negative or positive", "MIT", samples.sentiment),
    "questions": Sample("questions.jsonl", "questions with answers, as chats", "BSD-3-Clause", samples.questions),
    "preferences": Sample(
        "preferences.jsonl",
        "questions with their answers, and those of other questions",
        "BSD-3-Clause",
        samples.preferences,
    ),
    "tweets": Sample("tweets.conll", "tweets with ten types of entities", "unclear", samples.tweets_ner),
    "topics": Sample("topics.jsonl", "sentences about films, products, news and daily life", "MIT", samples.topics),
    "reuters-train": Sample(
        "reuters-train.jsonl", "newswires of eight topics (Reuters R8)", "unclear", partial(news.reuters, "train")
    ),
    "reuters-test": Sample("reuters-test.jsonl", "the test rows of these", "unclear", partial(news.reuters, "test")),
    "news-zh-train": Sample(
        "news-zh-train.jsonl", "Chinese news, by sentiment", "unclear", partial(news.chinese, "train")
    ),
    "news-zh-test": Sample("news-zh-test.jsonl", "the test rows of these", "unclear", partial(news.chinese, "test")),
    "faq": Sample("faq.jsonl", "questions with the passages that answer them", "CC-BY-4.0", samples.faq),
    "movielens": Sample("movielens", "films and ratings of 943 people", "research", samples.movielens),
    "encoder": Sample("minilm-l6", "base model of classifiers: MiniLM-L6", "Apache-2.0", samples.sentiment_encoder),
    "e5": Sample("e5-small", "base model for search: multilingual-e5-small", "MIT", samples.e5),
    "chat": Sample("smollm2-135m", "base model of generation: SmolLM2-135M", "Apache-2.0", samples.chat_model),
    "vectors": Sample(
        "minilm-l6-embedding", "embedding model, to serve as it is: MiniLM-L6", "Apache-2.0", samples.embedding_model
    ),
}


def fetch(name: str, directory: Path) -> bool:
    """Writes a sample into a folder, whole or not at all. Returns False if a file of its name already exists.

    Raises UserError if it can't be fetched or its SHA-256 is wrong, StepFailed if the disk is full.
    """
    sample = SAMPLES[name]
    target = directory / sample.file
    if target.exists():
        return False
    source = sample.cached()
    directory.mkdir(parents=True, exist_ok=True)
    with disk.watched(directory), whole(target) as unfinished:
        shutil.copytree(source, unfinished) if source.is_dir() else shutil.copy(source, unfinished)
    return True


def size(path: Path) -> int:
    """Returns the bytes of a file, or of all files in a directory."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
