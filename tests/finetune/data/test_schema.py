"""Rows of every supported format, in the schema of their task; and why a row can't be used."""

from pathlib import Path
from typing import Any

import pytest

from tuneserve.checkpoint import rows
from tuneserve.checkpoint.entities import spans_of
from tuneserve.errors import UserError
from tuneserve.finetune.data import dataset, schema

from .test_dataset import jsonl, settings


def test_text_pairs_and_several_labels(tmp_path: Path) -> None:
    values = [{"text": f"a{n}", "text_pair": f"b{n}", "labels": ["y", "x"] if n % 2 else []} for n in range(20)]
    found = dataset.load(settings(jsonl(tmp_path / "d.jsonl", *values), problem_type="multi-label"))
    assert found.labels == ["x", "y"]
    assert {len(row["labels"]) for row in found.train} == {0, 2}
    assert all(row["text_pair"].startswith("b") for row in found.train)


def test_several_labels_in_a_csv_cell(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("text,labels\n" + "".join(f"text {n},x|y\n" for n in range(20)))
    assert dataset.load(settings(path, problem_type="multi-label")).train[0]["labels"] == ["x", "y"]


def test_pairs_and_triplets(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "d.jsonl",
        *({"query": f"q{n}", "positive": f"p{n}"} for n in range(8)),
        {"query": "q8", "positive": "p8", "negatives": ["p1", "p2"]},
        {"query": "q9", "positive": "p9", "negatives": None},
    )
    found = dataset.load(settings(path, "embedding"))
    rows = {row["query"]: row for row in [*found.train, *found.test]}
    assert rows["q8"] == {"query": "q8", "positive": "p8", "negatives": ["p1", "p2"]}
    assert rows["q9"] == {"query": "q9", "positive": "p9"}
    assert (found.labels, found.label_distribution()) == ([], {})
    path = tmp_path / "d.csv"
    path.write_text("anchor,positive,negative\n" + "".join(f"a{n},b{n},{'c' * (n % 2)}\n" for n in range(10)))
    names = {"query": "anchor", "negatives": "negative"}
    rows = {row["query"]: row for row in dataset.load(settings(path, "embedding", columns=names)).train}
    assert {len(row.get("negatives", [])) for row in rows.values()} == {0, 1}


def test_bad_pairs(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "d.jsonl",
        {"query": "a"},
        {"query": " ", "positive": "b"},
        {"query": "a", "positive": "b", "negatives": 3},
        {"query": "a", "positive": "b", "negatives": ["c", ""]},
        {"query": "a", "positive": "b", "negatives": ["c", "b"]},
    )
    with pytest.raises(UserError, match="5 bad rows") as caught:
        dataset.load(settings(path, "embedding"))
    text = str(caught.value)
    for part in ("no positive", "query is blank", "not a list of texts", "negative 2 is blank", "among the negatives"):
        assert part in text


def test_tags_become_iob2(tmp_path: Path) -> None:
    path = tmp_path / "d.conll"
    path.write_text("in O\nNew I-LOC\nYork I-LOC\nAnna I-PER\nBob B-PER\n\n" * 3 + "a O\nb I-PER\nc B-LOC\nd I-LOC\n\n")
    found = dataset.load(settings(path, "token-classification", test_size=0.25))
    assert found.labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    every = {(row["text"], tuple(spans_of(row))) for row in [*found.train, *found.test]}
    assert every == {
        ("in New York Anna Bob", (("LOC", 3, 11), ("PER", 12, 16), ("PER", 17, 20))),
        ("a b c d", (("PER", 2, 3), ("LOC", 4, 7))),
    }


def test_bad_token_rows(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "d.jsonl",
        {"tokens": ["a", "b"], "tags": ["O"]},
        {"tokens": [], "tags": []},
        {"tokens": ["a"], "tags": ["NOUN"]},
        {"tokens": ["a", ""], "tags": ["O", "O"]},
        {"tokens": "a b", "tags": ["O", "O"]},
        {"tokens": ["a"], "tags": ["B-LOC"]},
    )
    with pytest.raises(UserError, match="6 bad rows") as caught:
        dataset.load(settings(path, "token-classification", labels=["PER"]))
    text = str(caught.value)
    for part in ("2 tokens but 1 tags", "tokens is empty", "'NOUN' is not O", "token 2 is blank", "must be lists"):
        assert part in text
    assert "d.jsonl:6: label 'LOC' is not one of PER" in text


def test_chats_and_completions(tmp_path: Path) -> None:
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
    path = jsonl(
        tmp_path / "d.jsonl",
        {"messages": [user, answer], "id": 1},
        {"prompt": [{"role": "user", "content": "hi 2"}], "completion": [answer]},
        *[{"prompt": f"q{n}", "completion": "a"} for n in range(8)],
    )
    found = dataset.load(settings(path, "generation", test_size=0.3))
    assert found.labels == []
    everything = [rows.dumps(row) for row in [*found.train, *found.test]]
    assert rows.dumps({"messages": [user, answer]}) in everything
    assert rows.dumps({"messages": [{"role": "user", "content": "hi 2"}, answer]}) in everything


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, "messages does not end with an assistant's answer"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "messages does not end with an assistant's answer"),
        ({"messages": [{"role": "critic", "content": "hi"}]}, "message 1: role is 'critic'"),
        ({"messages": [{"role": "user", "content": None}]}, "content of message 1 is not text but NoneType"),
        ({"messages": "hi"}, "messages is not a list"),
        ({"prompt": "q"}, "no completion"),
        ({"prompt": "q", "completion": " "}, "completion is blank"),
        ({"question": "q"}, "no prompt; found question"),
    ],
)
def test_bad_generation_rows(tmp_path: Path, value: dict[str, Any], reason: str) -> None:
    path = jsonl(tmp_path / "d.jsonl", value, {"prompt": "q", "completion": "a"})
    with pytest.raises(UserError, match="1 bad rows") as caught:
        dataset.load(settings(path, "generation"))
    assert f"d.jsonl:1: {reason}" in str(caught.value)


CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"instruction": "Add.", "input": "2 + 2", "output": "4"}, {"content": "Add.\n\n2 + 2"}),
        ({"instruction": "2 + 2?", "input": "", "output": "4"}, {}),
        ({"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}, {}),
        ({"messages": CHAT, "tools": [TOOL]}, {"tools": [TOOL]}),
        ({"messages": CHAT, "documents": [{"text": "It is 4."}]}, {"documents": [{"text": "It is 4."}]}),
    ],
)
def test_formats_of_conversations(tmp_path: Path, raw: dict[str, Any], expected: dict[str, Any]) -> None:
    path = jsonl(tmp_path / "d.jsonl", raw, *({"prompt": f"{n}", "completion": "x"} for n in range(9)))
    found = dataset.load(settings(path, "generation"))
    [row] = [row for row in [*found.train, *found.test] if "messages" in row]
    assert row["messages"][0]["content"] == expected.get("content", "2 + 2?")
    assert row["messages"][1] == CHAT[1]
    assert [row.get(key) for key in ("tools", "documents")] == [expected.get(key) for key in ("tools", "documents")]


def test_system_and_tool_turns(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    messages = [
        {"role": "system", "content": "You add."},
        CHAT[0],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "4", "name": "add"},
        CHAT[1],
    ]
    turns = [{"from": "system", "value": "You add."}, {"from": "human", "value": "2 + 2?"}]
    path = jsonl(
        tmp_path / "d.jsonl",
        {"messages": messages, "tools": [TOOL]},
        {"conversations": [*turns, {"from": "observation", "value": "4"}, {"from": "gpt", "value": "4"}]},
        {"conversations": [{"from": "robot", "value": "4"}]},
        {"messages": [*CHAT[:1], {"role": "critic", "content": "4"}]},
        {"messages": CHAT, "tools": ["add"]},
        {"messages": CHAT, "documents": {"text": "It is 4."}},
    )
    with pytest.raises(UserError) as caught:
        dataset.load(settings(path, "generation"))
    assert str(caught.value).split("\n  ")[1:] == [
        "d.jsonl:3: conversations: turn 1: from is 'robot', not one of human, user, gpt, assistant, system, tool, "
        "observation",
        "d.jsonl:4: message 2: role is 'critic', not system, user, assistant or tool",
        "d.jsonl:5: tools is not a list of JSON objects",
        "d.jsonl:6: documents is not a list of JSON objects",
    ]


def test_a_prompt_out_of_columns(tmp_path: Path) -> None:
    values = [{"en": f"word {n}", "completion": f"Wort {n}"} for n in range(10)]
    path = jsonl(tmp_path / "d.jsonl", *values)
    found = dataset.load(settings(path, "generation", prompt_template="Translate to German: {en}\n"))
    assert {row["prompt"] for row in [*found.train, *found.test]} == {
        f"Translate to German: word {n}\n" for n in range(10)
    }
    with pytest.raises(UserError, match="no fr; found"):
        dataset.load(settings(path, "generation", prompt_template="{fr}"))


def test_relations_are_marked_in_their_text(tmp_path: Path) -> None:
    text = "Anna was born in Berlin."
    rows_ = [
        {"text": text, "head": [0, 4], "tail": [17, 23], "label": "born in"},
        {"text": text, "head": [17, 23], "tail": [0, 4], "label": "birthplace of"},
    ]
    path = jsonl(tmp_path / "d.jsonl", *rows_ * 4)
    test = jsonl(tmp_path / "t.jsonl", rows_[0])
    found = dataset.load(settings(path, test=test.name))
    assert list(found.test) == [{"text": "@ Anna @ was born in # Berlin #.", "label": "born in"}]
    assert found.train[0] == {"text": "# Anna # was born in @ Berlin @.", "label": "birthplace of"}
    for head, tail, message in (
        ([0, 4], [2, 9], "overlap"),
        ([0, 99], [17, 23], "head is not"),
        (None, [0, 4], "head"),
    ):
        with pytest.raises(UserError, match=message):
            dataset.load(settings(jsonl(path, {"text": text, "head": head, "tail": tail, "label": "x"})))


@pytest.mark.parametrize(
    "tags",
    [
        ["I-PER", "O", "I-LOC", "I-LOC", "B-LOC"],
        ["U-PER", "O", "B-LOC", "L-LOC", "U-LOC"],
        ["S-PER", "O", "B-LOC", "E-LOC", "S-LOC"],
    ],
)
def test_every_scheme_of_tags_becomes_iob2(tags: list[str]) -> None:
    assert schema.iob2(tags) == ["B-PER", "O", "B-LOC", "I-LOC", "B-LOC"]


@pytest.mark.parametrize("empty", ["", " ", None])
def test_an_empty_second_text_is_none(tmp_path: Path, empty: str | None) -> None:
    raw = {"text": "one", "text_pair": empty, "label": "a"}
    assert schema.row(raw, settings(tmp_path / "d.jsonl")) == {"text": "one", "label": "a"}


def test_columns_are_chosen_over_what_else_a_row_has(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    others = {"messages": turns, "instruction": "say", "output": "said", "conversations": []}
    asked = settings(path, "generation", columns={"prompt": "question", "completion": "answer"})
    assert schema.row(others | {"question": "q", "answer": "a", "prompt": "q", "completion": "a"}, asked) == {
        "prompt": "q",
        "completion": "a",
    }
    chat = settings(path, "generation", columns={"messages": "chat"})
    assert schema.row({"prompt": [], "completion": [], "messages": turns}, chat) == {"messages": turns}
    spans = settings(path, "token-classification", columns={"text": "body", "label": "marks"})
    row = {"text": "in Rome", "label": [[3, 7, "LOC"]], "tokens": ["in", "Rome"], "tags": [0, 1]}
    assert schema.row(row, spans)["entities"] == [{"start": 3, "end": 7, "label": "LOC"}]


def test_tags_of_bmes(tmp_path: Path) -> None:
    assert schema.iob2(["B-A", "M-A", "E-A", "S-A", "O", "M-B"]) == ["B-A", "I-A", "I-A", "B-A", "O", "B-B"]
