"""Which rows are trained on, which are held out, and in what order: the same for a seed, whatever else changes."""

import gc
import hashlib
import random
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuneserve.checkpoint import rows
from tuneserve.errors import UserError
from tuneserve.finetune import config
from tuneserve.finetune.data import dataset, previous, split

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
    "answers.jsonl": "d9ca551846ad6235",
}


def settings(directory: Path, name: str) -> config.FinetuneConfig:
    write, task, more = CASES[name]
    write(directory / name)
    return config.parse({"task": task, "base_model": "m", "output": "o", "train": name, **more}, directory)


def split_of(found: dataset.Data) -> str:
    parts = "|".join(map(rows.sha256, (found.train, found.validation, found.test)))
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", CASES)
def test_a_seed_stands_for_the_same_split_for_ever(tmp_path: Path, name: str) -> None:
    assert split_of(dataset.load(settings(tmp_path, name))) == EXPECTED[name]


@pytest.mark.parametrize(
    ("share", "replayed", "expected"), [(0.2, 58, "09a586a11cad5454"), (0.6, 206, "572d3f582c7c53e0")]
)
def test_and_for_the_same_old_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, replayed: int, expected: str
) -> None:
    # In place of a checkpoint that was trained.
    old = previous.Old(("rare", "common"), [{"text": text, "label": "rare"} for text, _ in texts(30, 60)])
    monkeypatch.setattr(previous, "load", lambda _: old)
    before = [{"text": text, "label": chance.choice(["rare", "common"])} for text, chance in texts(300, 300)]
    rows.write(tmp_path / "old.jsonl", before)
    given = settings(tmp_path, "texts.jsonl").model_copy(
        update={"replay": str(tmp_path / "old.jsonl"), "replay_share": share}
    )
    found = dataset.load(given)
    assert found.replayed == replayed
    # After its own test rows come those of the old ones that it has not.
    assert {row["text"] for row in found.test[40:]} <= {row["text"] for row in old.test}
    assert split_of(replace(found, test=found.test[:40])) == expected


def test_loading_takes_few_bytes_of_memory_for_a_row(tmp_path: Path) -> None:
    count = 5_000
    rows.write(tmp_path / "d.jsonl", ({"text": f"{n} " * 60, "label": f"{n % 7}"} for n in range(count)))
    values = {"task": TEXTS, "base_model": "m", "output": "o", "train": "d.jsonl", "validation_size": 0.1}
    given = config.parse(values, tmp_path)
    tracemalloc.start()
    found = dataset.load(given)
    gc.collect()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.train) == 4_050
    assert held / count < 30
    # The rows themselves would be 500 and more.
    assert peak / count < 200


def turns(*contents: str) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(contents)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]}


def sides(found: dataset.Data, key: Callable[[Any], Any]) -> list[set[Any]]:
    return [{key(row) for row in rows} for rows in (found.train, found.validation, found.test)]


@pytest.mark.parametrize("seed", range(5))
def test_the_beginning_of_a_conversation_is_on_its_side(tmp_path: Path, seed: int) -> None:
    talks = [turns(*(f"{number} {turn}" for turn in range(2 * length))) for number in range(40) for length in (1, 2, 3)]
    # Which is not: another conversation that begins with the same question.
    talks += [turns("hi", "ho", f"next {number}", "yes") for number in range(20)]
    rows.write(tmp_path / "d.jsonl", talks)
    given = {"task": "generation", "base_model": "m", "output": "o", "train": "d.jsonl", "seed": seed}
    found = dataset.load(config.parse(given | {"test_size": 0.2, "validation_size": 0.2}, tmp_path))
    assert found.duplicates == 0
    assert sum(map(len, (found.train, found.validation, found.test))) == len(talks)
    firsts = sides(found, lambda row: row["messages"][0]["content"])
    for one, other in combinations(firsts, 2):
        assert one & other <= {"hi"}
    assert all("hi" in first for first in firsts)
    # Of 40 conversations and 20.
    assert len(firsts[2] - {"hi"}) + sum(len(row["messages"]) == 4 for row in found.test) >= 8


def test_a_conversation_is_not_trained_on_whose_beginning_is_in_a_test_file(tmp_path: Path) -> None:
    rows.write(tmp_path / "d.jsonl", [turns("a", "b", "c", "d"), turns("e", "f"), turns("a", "x")])
    rows.write(tmp_path / "t.jsonl", [turns("a", "y"), turns("e", "f", "g", "h")])
    given = {"task": "generation", "base_model": "m", "output": "o", "train": "d.jsonl", "test": "t.jsonl"}
    with pytest.raises(UserError, match="0 rows to train on, 2 to test on"):
        dataset.load(config.parse(given, tmp_path))
    rows.write(tmp_path / "t.jsonl", [turns("e", "f", "g", "h")])
    found = dataset.load(config.parse(given, tmp_path))
    assert found.duplicates == 1
    assert sides(found, lambda row: row["messages"][0]["content"]) == [{"a"}, set(), {"e"}]


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_on_one_side(tmp_path: Path, seed: int) -> None:
    texts = [{"text": f"text {n}", "label": "ab"[n % 2], "author": n // 7} for n in range(420)]
    # Of no group.
    texts += [{"text": f"alone {n}", "label": "a", "author": None} for n in range(80)]
    rows.write(tmp_path / "d.jsonl", texts)
    given = {"task": TEXTS, "base_model": "m", "output": "o", "train": "d.jsonl", "seed": seed}
    given |= {"test_size": 0.2, "validation_size": 0.2, "group_column": "author"}
    found = dataset.load(config.parse(given, tmp_path))
    assert sum(map(len, (found.train, found.validation, found.test))) == 500
    author = {row["text"]: row["author"] for row in texts}
    groups = sides(found, lambda row: author[row["text"]])
    for one, other in combinations(groups, 2):
        assert one & other <= {None}
    assert all({"text", "label"} == row.keys() for row in found.train)
    assert 60 <= len(found.test) <= 140


def test_groups_that_are_too_few_or_nowhere(tmp_path: Path) -> None:
    rows.write(tmp_path / "d.jsonl", [{"text": f"text {n}", "label": "ab"[n % 2], "author": n % 3} for n in range(99)])
    given = {"task": TEXTS, "base_model": "m", "output": "o", "train": "d.jsonl", "group_column": "author"}
    with pytest.raises(UserError, match="99 rows to train on, 0 to test on") as caught:
        dataset.load(config.parse(given, tmp_path))
    assert "more groups" in caught.value.hint
    with pytest.raises(UserError, match="no column writer, which `group_column` names"):
        dataset.load(config.parse(given | {"group_column": "writer"}, tmp_path))


def test_shuffling_is_that_of_a_list() -> None:
    expected = list(range(100, 0, -1))
    random.Random(5).shuffle(expected)
    assert split.shuffled(np.arange(100, 0, -1), random.Random(5)).tolist() == expected
