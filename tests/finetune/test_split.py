"""Which rows are trained on, which are held out, and in what order: the same for a seed, whatever else changes."""

import gc
import hashlib
import random
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuneserve import rows
from tuneserve.finetune import config, continual, data, split

WORDS = ("sky", "sea", "rain", "snow", "wind", "sun", "fog")


def texts(count: int, of: int) -> list[tuple[str, random.Random]]:
    """So many texts, of which only `of` differ, and a chance of each that is its own."""
    found = []
    for number in range(count):
        chance = random.Random(number)
        found.append((f"{chance.choice(WORDS)} {chance.randrange(of)}", chance))
    return found


def labelled(path: Path) -> None:
    names = ["common"] * 8 + ["rare", "odd\u2028name"]
    rows.write(path, [{"text": text, "label": chance.choice(names)} for text, chance in texts(400, 60)])


def sets(path: Path) -> None:
    lines = [f"{text},{'|'.join(chance.sample('xyz', chance.randrange(4)))}" for text, chance in texts(300, 90)]
    path.write_text("text,labels\n" + "\n".join(lines) + "\n")


def numbers(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    values = [{"text": text, "label": round(chance.uniform(-3, 3), 1)} for text, chance in texts(300, 90)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), path)


def entities(path: Path) -> None:
    sentences = [
        "\n".join(f"{word} {chance.choice(['O', 'O', 'B-LOC', 'I-LOC', 'B-PER'])}" for word in f"{text} in".split())
        for text, chance in texts(300, 90)
    ]
    path.write_text("\n\n".join(sentences))


def answers(path: Path) -> None:
    chats = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"{chance.randrange(9)}"}]}
        for text, chance in texts(150, 60)
    ]
    rows.write(path, [*chats, *({"prompt": text, "completion": "yes"} for text, _ in texts(100, 60))])


TEXTS, TOKENS = "sequence-classification", "token-classification"
CASES: dict[str, tuple[Callable[[Path], None], str, dict[str, Any]]] = {
    "texts.jsonl": (labelled, TEXTS, {"validation_size": 0.2}),
    "sets.csv": (sets, TEXTS, {"problem_type": "multi-label", "max_train_rows": 150, "test_size": 0.3}),
    "numbers.parquet": (numbers, TEXTS, {"problem_type": "regression", "validation_size": 0.3, "test_size": 0.2}),
    "words.conll": (entities, TOKENS, {"seed": 7}),
    "answers.jsonl": (answers, "generation", {"test": "answers.jsonl", "max_test_rows": 40, "seed": 3}),
}
# What `split_of` gives for each. It may only change on purpose: a seed would stand for another split.
EXPECTED = {
    "texts.jsonl": "1585756bb7753128",
    "sets.csv": "6ba63c69c3dde8dc",
    "numbers.parquet": "87bb0fd647922dd1",
    "words.conll": "19c89242e35433f6",
    "answers.jsonl": "54229b5635b0320b",
}


def settings(directory: Path, name: str) -> config.FinetuneConfig:
    write, task, more = CASES[name]
    write(directory / name)
    return config.parse({"task": task, "base_model": "m", "output": "o", "train": name, **more}, directory)


def split_of(found: data.Data) -> str:
    parts = "|".join(map(rows.sha256, (found.train, found.validation, found.test)))
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", CASES)
def test_a_seed_stands_for_the_same_split_for_ever(tmp_path: Path, name: str) -> None:
    assert split_of(data.load(settings(tmp_path, name))) == EXPECTED[name]


@pytest.mark.parametrize(
    ("share", "replayed", "expected"), [(0.2, 58, "09a586a11cad5454"), (0.6, 206, "572d3f582c7c53e0")]
)
def test_and_for_the_same_old_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, replayed: int, expected: str
) -> None:
    # In place of a checkpoint that was trained.
    old = continual.Old(("rare", "common"), [{"text": text, "label": "rare"} for text, _ in texts(30, 60)])
    monkeypatch.setattr(continual, "load", lambda _: old)
    before = [{"text": text, "label": chance.choice(["rare", "common"])} for text, chance in texts(300, 300)]
    rows.write(tmp_path / "old.jsonl", before)
    given = replace(settings(tmp_path, "texts.jsonl"), replay=str(tmp_path / "old.jsonl"), replay_share=share)
    found = data.load(given)
    assert found.replayed == replayed
    assert split_of(found) == expected


def test_loading_takes_few_bytes_of_memory_for_a_row(tmp_path: Path) -> None:
    count = 5_000
    rows.write(tmp_path / "d.jsonl", ({"text": f"{n} " * 60, "label": f"{n % 7}"} for n in range(count)))
    values = {"task": TEXTS, "base_model": "m", "output": "o", "train": "d.jsonl", "validation_size": 0.1}
    given = config.parse(values, tmp_path)
    tracemalloc.start()
    found = data.load(given)
    gc.collect()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.train) == 4_050
    assert held / count < 30
    # The rows themselves would be 500 and more.
    assert peak / count < 200


def test_shuffling_is_that_of_a_list() -> None:
    expected = list(range(100, 0, -1))
    random.Random(5).shuffle(expected)
    assert split.shuffled(np.arange(100, 0, -1), random.Random(5)).tolist() == expected
