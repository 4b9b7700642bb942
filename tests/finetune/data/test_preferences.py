"""Rows of preferences: their forms, what is wrong with others, and both answers as token ids."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tuneserve.checkpoint import rows
from tuneserve.checkpoint.rows import Row
from tuneserve.errors import UserError
from tuneserve.finetune import config
from tuneserve.finetune.data import dataset, preferences, tokens
from tuneserve.finetune.data.schema import BadRow
from tuneserve.finetune.data.tokens import Target
from tuneserve.finetune.model import base_models


def settings(**values: Any) -> config.FinetuneConfig:
    given = {"task": "preference", "base_model": "org/model", "train": "d.jsonl", "output": "out"}
    return config.parse(given | values, Path())


def user(content: str) -> Row:
    return {"role": "user", "content": content}


def assistant(content: str) -> Row:
    return {"role": "assistant", "content": content}


PAIR = {"messages": [user("q"), assistant("good")], "rejected": assistant("bad")}


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": [user("q")], "chosen": "good", "rejected": "bad"},
        {"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {"prompt": "q", "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {"prompt": "q", "chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]},
        {"chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")], "score": 3},
    ],
)
def test_pairs_of_a_conversation(raw: Row) -> None:
    assert preferences.row(raw, settings()) == PAIR


def test_pairs_of_texts() -> None:
    raw = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert preferences.row(raw, settings()) == {"prompt": "q", "completion": "good", "rejected": "bad"}
    found = preferences.row({"en": "q", "chosen": "a", "rejected": "b"}, settings(prompt_template="Translate: {en}"))
    assert found == {"prompt": "Translate: q", "completion": "a", "rejected": "b"}
    tools = [{"type": "function"}]
    asked = {"prompt": [user("q")], "chosen": "good", "rejected": "bad", "tools": tools}
    assert preferences.row(asked, settings()) == PAIR | {"tools": tools}


@pytest.mark.parametrize("label", [True, "true", "TRUE"])
def test_single_answers(label: Any) -> None:
    raw = {"prompt": "q", "completion": "a", "label": label}
    assert preferences.row(raw, settings()) == {"prompt": "q", "completion": "a", "label": True}
    chat = raw | {"prompt": [user("q")], "label": False}
    assert preferences.row(chat, settings()) == {"messages": [user("q"), assistant("a")], "label": False}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same answer"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "rejected: completion is blank"),
        ({"prompt": "q", "chosen": "", "rejected": "a"}, "chosen: completion is blank"),
        ({"prompt": "q", "chosen": "a"}, "no rejected; found prompt, chosen"),
        ({"prompt": "q", "rejected": "a"}, "no chosen; found prompt, rejected"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "chosen: prompt is blank"),
        ({"chosen": "a", "rejected": "b"}, "chosen: prompt is not text but NoneType"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "chosen: completion is not text but int"),
        ({"prompt": [user("q")], "chosen": [], "rejected": "b"}, "chosen: messages does not end with an assistant's"),
        ({"prompt": [user("q")], "chosen": ["a"], "rejected": "b"}, "chosen: messages is not a list of"),
        (
            {"chosen": [user("q"), assistant("a")], "rejected": [user("p"), assistant("b")]},
            "chosen and rejected answer different prompts",
        ),
        ({"prompt": "q", "completion": "a"}, "no chosen and rejected, and no label; found prompt, completion"),
        ({"prompt": "q", "completion": "a", "label": "good"}, "label is 'good', not true or false"),
        ({"prompt": "q", "completion": "a", "label": 1}, "label is 1, not true or false"),
        ({"prompt": "q", "label": True}, "no completion; found prompt, label"),
    ],
)
def test_bad_rows(raw: Row, message: str) -> None:
    with pytest.raises(BadRow, match=message):
        preferences.row(raw, settings())


def test_a_file_names_its_bad_rows(tmp_path: Path) -> None:
    rows.write(tmp_path / "d.jsonl", [{"prompt": "q", "chosen": "a", "rejected": answer} for answer in "ba"])
    with pytest.raises(UserError, match=r"d\.jsonl:2: chosen and rejected are the same answer"):
        dataset.load(settings(train=str(tmp_path / "d.jsonl")))


def test_answers_to_one_prompt_are_held_out_together(tmp_path: Path) -> None:
    """Of single answers, good and bad ones in proportion."""
    answers = [
        {"prompt": f"q{place // 4}", "completion": f"{place}", "label": place // 4 % 4 == 0} for place in range(400)
    ]
    rows.write(tmp_path / "d.jsonl", answers)
    found = dataset.load(settings(train=str(tmp_path / "d.jsonl"), test_size=0.2))
    assert found.duplicates == 0
    held_out = Counter(row["prompt"] for row in found.test)
    assert (len(held_out), set(held_out.values())) == (20, {4})
    assert not held_out.keys() & {row["prompt"] for row in found.train}
    assert sum(row["label"] for row in found.test) == 20
    # What statistics count are no labels of a classifier.
    assert (found.labels, found.label_distribution()) == ([], {})


def test_rows_are_of_one_kind() -> None:
    pair, good, bad = PAIR, {"label": True}, {"label": False}
    preferences.check(settings(), train=[pair], test=[pair])
    preferences.check(settings(), train=[good, bad], test=[bad, good], validation=[])
    with pytest.raises(UserError, match="some rows are pairs of answers, and others single answers"):
        preferences.check(settings(), train=[pair], test=[good])
    with pytest.raises(UserError, match="the label of every test row is false"):
        preferences.check(settings(), train=[good, bad], test=[bad])
    with pytest.raises(UserError, match="batch_size is 1"):
        preferences.check(settings(batch_size=1), train=[good, bad])
    preferences.check(settings(batch_size=1), train=[pair])


@pytest.fixture
def tokenizer(chat: Path) -> Any:
    return base_models.load_tokenizer(str(chat))


def test_both_answers_follow_one_prompt(tokenizer: Any) -> None:
    [found] = preferences.encode(tokenizer, [PAIR], 64)
    [other] = found["documents"]
    prompt = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    places = [slice(found["start"]), slice(found["start"], None)]
    decoded = [[tokenizer.decode(one["input_ids"][place]) for place in places] for one in (found, other)]
    assert decoded == [[prompt, "good<|im_end|>"], [prompt, "bad<|im_end|>"]]
    assert tokens.lengths([found])[0] == len(found["input_ids"])
    [single] = preferences.encode(tokenizer, [{"prompt": "q", "completion": "a", "label": False}], 64)
    assert tokenizer.decode(single["input_ids"]) == "qa<|im_end|>"
    assert (single["start"], single["label"]) == (1, False)


def test_a_prompt_that_is_too_long_for_either_answer(tokenizer: Any) -> None:
    """It would be truncated for one answer and not for the other, whatever `long_prompts` is."""
    short, long = "a" * 4, "b" * 30
    pair = {"prompt": "q" * 40, "completion": short, "rejected": long}
    target = Target("preference", (), "single-label", 64)
    assert tokens.usable(tokenizer, target, [pair], "truncate")[1] == {"prompt too long": 1}
    fits = [pair | {"rejected": "b" * 20}, pair | {"prompt": "q" * 20}]
    assert tokens.usable(tokenizer, target, fits, "truncate") == (fits, {})
