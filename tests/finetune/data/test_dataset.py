import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tuneserve import formats
from tuneserve.checkpoint import rows
from tuneserve.checkpoint.entities import spans_of
from tuneserve.checkpoint.rows import Row, input_key
from tuneserve.errors import UserError
from tuneserve.finetune import config
from tuneserve.finetune.data import dataset, schema


def settings(path: Path, task: str = "sequence-classification", **more: Any) -> config.FinetuneConfig:
    return config.parse({"task": task, "base_model": "m", "train": path.name, "output": "o", **more}, path.parent)


def jsonl(path: Path, *values: object) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def labelled(count: int) -> list[dict[str, str]]:
    # 10 % are rare.
    return [{"text": f"text {n}", "label": "rare" if n % 10 == 0 else "common"} for n in range(count)]


def test_all_bad_rows_are_named_at_once(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "d.jsonl",
        {"text": "fine", "label": "a"},
        {"text": " ", "label": "a"},
        {"text": 5, "label": "a"},
        {"text": "no label"},
        {"text": "other", "label": "c"},
        {"text": "yes and no", "label": True},
        {"text": "half \ud83d", "label": "b"},
        {"text": "fine too", "label": 2},
    )
    with pytest.raises(UserError) as caught:
        dataset.load(settings(path, labels=["a", "b", "2"]))
    assert str(caught.value).split("\n  ") == [
        "6 bad rows in the data, nothing was trained:",
        "d.jsonl:2: text is blank",
        "d.jsonl:3: text is not text but int",
        "d.jsonl:4: no label; found text (map with `columns`)",
        "d.jsonl:6: label is not text but bool",
        "d.jsonl:7: text is not valid Unicode (half of a surrogate pair)",
        "d.jsonl:5: label 'c' is not one of 2, a, b",
    ]


def test_bad_rows_are_told_before_what_the_others_lack(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", {"text": "fine", "label": "a"}, {"text": " ", "label": "b"})
    with pytest.raises(UserError, match="1 bad rows in the data") as caught:
        dataset.load(settings(path))
    assert "d.jsonl:2: text is blank" in str(caught.value)
    path = jsonl(tmp_path / "d.jsonl", {"text": "fine", "label": "a"}, {"text": "too", "label": "a"})
    with pytest.raises(UserError, match="only 1 in the training data"):
        dataset.load(settings(path))


def test_only_the_first_problems_are_shown(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *[{"text": "", "label": "a"}] * 30)
    with pytest.raises(UserError, match="30 bad rows") as caught:
        dataset.load(settings(path, labels=["a", "b"]))
    assert str(caught.value).endswith("d.jsonl:20: text is blank\n  and 10 more")


def test_labels_that_training_rows_lack_are_named_where_they_are(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *labelled(20))
    jsonl(tmp_path / "t.jsonl", *labelled(3), {"text": "", "label": "rare"}, {"text": "x", "label": "odd"})
    with pytest.raises(UserError) as caught:
        dataset.load(settings(path, test="t.jsonl"))
    assert str(caught.value).split("\n  ")[1:] == [
        "t.jsonl:4: text is blank",
        "t.jsonl:5: label 'odd' is not one of common, rare",
    ]


def test_columns_are_mapped_and_a_wrong_mapping_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("review,stars\n" + "".join(f"text {n},{n % 2}\n" for n in range(20)))
    found = dataset.load(settings(path, columns={"text": "review", "label": "stars"}))
    assert found.labels == ["0", "1"]
    assert set(found.train[0]) == {"text", "label"}
    with pytest.raises(UserError, match=r"d\.csv:2: no column sentence") as caught:
        dataset.load(settings(path, columns={"text": "sentence"}))
    assert caught.value.hint == "found: review, stars"


def test_the_split_is_stratified_seeded_and_of_the_wanted_size(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *labelled(200))
    found = dataset.load(settings(path, test_size=0.2))
    assert (len(found.train), len(found.test)) == (160, 40)
    assert Counter(row["label"] for row in found.test) == {"common": 36, "rare": 4}
    assert list(dataset.load(settings(path, test_size=0.2)).train) == list(found.train)
    assert list(dataset.load(settings(path, test_size=0.2, seed=1)).train) != list(found.train)
    assert found.label_distribution() == {"common": 0.9, "rare": 0.1}


def test_inputs_held_out_are_never_trained_on(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *labelled(50), *labelled(50))
    found = dataset.load(settings(path))
    assert found.duplicates > 0
    assert len(found.train) + len(found.test) + found.duplicates == 100
    assert not {row["text"] for row in found.train} & {row["text"] for row in found.test}


def test_own_test_file_and_row_limits(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *labelled(50))
    jsonl(tmp_path / "t.jsonl", *labelled(20))
    found = dataset.load(settings(path, test="t.jsonl", max_train_rows=10, max_test_rows=5))
    assert (len(found.train), len(found.test)) == (10, 5)


def test_label_order_is_as_given_or_sorted(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *labelled(30))
    assert dataset.load(settings(path)).labels == ["common", "rare"]
    assert dataset.load(settings(path, labels=["rare", "common"])).labels == ["rare", "common"]


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


def test_spans_of_characters(tmp_path: Path) -> None:
    """What each tool exports of the same two texts."""
    texts = ["Bo 🙂 saw Anna.", "nothing"]
    kept: list[list[dict[str, Any]]] = [
        [{"start": 0, "end": 2, "label": "PER"}, {"start": 9, "end": 13, "label": "PER"}], []
    ]  # fmt: skip
    ours = [{"text": text, "entities": spans} for text, spans in zip(texts, kept, strict=True)]
    # As a browser counts: the emoji is two.
    marks = [[one | {"labels": ["PER"], "text": text[one["start"] : one["end"]]} for one in spans]
             for text, spans in zip(texts, kept, strict=True)]  # fmt: skip
    marks[0][1] |= {"start": 10, "end": 14}
    for one in marks[0]:
        del one["label"]
    exports: dict[str, Any] = {
        "ours": ours,
        "unordered": [{"text": row["text"], "entities": row["entities"][::-1]} for row in ours],
        "prodigy": [{"text": row["text"], "spans": row["entities"], "answer": "accept"} for row in ours],
        "spacy": [[row["text"], {"entities": [[*one.values()] for one in row["entities"]]}] for row in ours],
        "doccano": [{"text": row["text"], "label": [[*one.values()] for one in row["entities"]]} for row in ours],
        "studio": [
            {"id": 1, "data": {"text": text}, "annotations": [
                {"was_cancelled": True, "result": []},
                {"result": [{"type": "labels", "value": mark} for mark in spans] + [{"value": {"choices": ["x"]}}]},
            ]}
            for text, spans in zip(texts, marks, strict=True)
        ],
        "studio-min": [
            {"text": texts[0], "label": marks[0], "annotation_id": 1},
            {"text": texts[1], "annotation_id": 2},
        ],
    }  # fmt: skip
    for name, values in exports.items():
        for path, text in (
            (tmp_path / f"{name}.json", json.dumps(values, ensure_ascii=False, indent=1)),
            (tmp_path / f"{name}.jsonl", "\n".join(json.dumps(value) for value in values)),
        ):
            path.write_text(text, encoding="utf-8")
            found = [
                schema.row(raw, settings(path, "token-classification"))
                for _, raw in formats.read(str(path))
                if isinstance(raw, dict)
            ]
            assert found == ours, path.name


TEXT = "Anna  saw 🙂"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": TEXT, "entities": [[0, 4, "A"], [3, 9, "A"]]}, "entities 0 to 4 and 3 to 9 overlap"),
        ({"text": TEXT, "entities": [[0, 4, "A"], [0, 4, "B"]]}, "overlap"),
        ({"text": TEXT, "entities": [[6, 12, "A"]]}, "entity 6 to 12 is empty, or not within the text's 11 characters"),
        ({"text": TEXT, "entities": [[-1, 2, "A"]]}, "entity -1 to 2"),
        ({"text": TEXT, "entities": [[3, 3, "A"]]}, "entity 3 to 3 is empty"),
        ({"text": TEXT, "entities": [[4, 6, "A"]]}, "entity 4 to 6 is only white space"),
        ({"text": TEXT, "entities": [[0.0, 4, "A"]]}, "not whole numbers"),
        ({"text": TEXT, "entities": [{"start": 0, "end": 4}]}, "label is not text"),
        ({"text": TEXT, "entities": [{"start": 0, "end": 4, "labels": ["A", "B"]}]}, "has not one label"),
        ({"text": TEXT, "entities": ["A"]}, "an entity is not {start, end, label}"),
        (
            {"text": TEXT, "entities": [{"start": 0, "end": 4, "label": "A", "text": "saw"}]},
            "is 'Anna', its own text is",
        ),
        ({"text": TEXT}, "no tokens and tags, nor text and entities; found text"),
        ({"entities": []}, "text is missing"),
        ({"text": " ", "entities": []}, "text is blank"),
        ({"text": TEXT, "spans": [], "answer": "reject"}, "answer is 'reject'"),
        ({"data": {"text": TEXT}, "annotations": []}, "0 annotations"),
        ({"data": {"text": TEXT}, "annotations": [{"result": []}] * 2}, "2 annotations"),
        ({"data": {"n": 1}, "annotations": [{"result": []}]}, "data has no text"),
    ],
)
def test_bad_spans(tmp_path: Path, row: Row, reason: str) -> None:
    with pytest.raises(schema.BadRow) as caught:
        schema.row(row, settings(tmp_path / "d.jsonl", "token-classification"))
    assert reason in str(caught.value)


def test_spans_lose_the_white_space_at_their_ends(tmp_path: Path) -> None:
    row = schema.row({"text": TEXT, "entities": [[0, 6, "A"]]}, settings(tmp_path / "d", "token-classification"))
    assert row["entities"] == [{"start": 0, "end": 4, "label": "A"}]


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


def test_too_little_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows"):
        dataset.load(settings(jsonl(tmp_path / "d.jsonl")))
    with pytest.raises(UserError, match="only 1 in the training data"):
        dataset.load(settings(jsonl(tmp_path / "d.jsonl", *[{"text": "x", "label": "a"}] * 20)))
    with pytest.raises(UserError, match="1 rows to train on, 0 to test on"):
        dataset.load(settings(jsonl(tmp_path / "d.jsonl", {"text": "x", "label": "a"}), labels=["a", "b"]))


CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"instruction": "Add.", "input": "2 + 2", "output": "4"}, {"content": "Add.\n\n2 + 2"}),
        ({"instruction": "2 + 2?", "input": "", "output": "4"}, {}),
        ({"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}, {}),
        ({"messages": CHAT, "tools": [TOOL]}, {"tools": [TOOL]}),
    ],
)
def test_formats_of_conversations(tmp_path: Path, raw: dict[str, Any], expected: dict[str, Any]) -> None:
    path = jsonl(tmp_path / "d.jsonl", raw, *({"prompt": f"{n}", "completion": "x"} for n in range(9)))
    found = dataset.load(settings(path, "generation"))
    [row] = [row for row in [*found.train, *found.test] if "messages" in row]
    assert row["messages"][0]["content"] == expected.get("content", "2 + 2?")
    assert row["messages"][1] == CHAT[1]
    assert row.get("tools") == expected.get("tools")


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
    )
    with pytest.raises(UserError) as caught:
        dataset.load(settings(path, "generation"))
    assert str(caught.value).split("\n  ")[1:] == [
        "d.jsonl:3: conversations: turn 1: from is 'robot', not one of human, user, gpt, assistant, system, tool, "
        "observation",
        "d.jsonl:4: message 2: role is 'critic', not system, user, assistant or tool",
        "d.jsonl:5: tools is not a list of JSON objects",
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


def test_numbers_to_learn(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *({"text": f"text {n}", "label": str(n / 10)} for n in range(20)))
    found = dataset.load(settings(path, problem_type="regression", test_size=0.2))
    assert found.labels == ["score"]
    # Spread over the whole range, as the training rows are.
    assert max(row["label"] for row in found.test) > 1 > min(row["label"] for row in found.test)
    with pytest.raises(UserError, match="label is 'many', not a number"):
        dataset.load(settings(jsonl(path, {"text": "x", "label": "many"}), problem_type="regression"))


def test_validation_rows_are_of_the_training_rows_alone(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *labelled(200), *labelled(20))
    found = dataset.load(settings(path, test_size=0.2, validation_size=0.25))
    inputs = [{input_key(row) for row in part} for part in (found.train, found.validation, found.test)]
    assert sum(map(len, inputs)) == len(set.union(*inputs))
    assert len(found.validation) == pytest.approx(0.25 * (len(found.train) + len(found.validation)), abs=8)
    assert Counter(row["label"] for row in found.validation)["rare"] >= 2


def test_rows_that_repeat_and_contradict_each_other_are_counted(tmp_path: Path) -> None:
    values = [{"text": "same", "label": "a"}] * 3 + [{"text": "same", "label": "b"}, {"text": "other", "label": "b"}]
    test = jsonl(tmp_path / "t.jsonl", {"text": "held out", "label": "a"})
    found = dataset.load(settings(jsonl(tmp_path / "d.jsonl", *values), test=test.name))
    repeated, contradictory = found.repeated()
    assert repeated == 3
    # Which of them comes first is the shuffle's choice.
    assert contradictory in (1, 3)


def test_weights_of_labels_that_there_are_not(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *labelled(30))
    with pytest.raises(UserError, match="class_weights: 'raer' is not a label") as caught:
        dataset.load(settings(path, class_weights={"rare": 2, "raer": 5}))
    assert caught.value.hint == "allowed: common, rare"
    dataset.load(settings(path, class_weights={"rare": 2}))
    words = jsonl(tmp_path / "w.jsonl", *[{"tokens": ["in", f"Rome{n}"], "tags": ["O", "B-LOC"]} for n in range(20)])
    with pytest.raises(UserError, match="class_weights: 'PER' is not a label") as caught:
        dataset.load(settings(words, "token-classification", class_weights={"PER": 2}))
    assert caught.value.hint == "allowed: O, LOC"
    dataset.load(settings(words, "token-classification", class_weights={"LOC": 2, "O": 0.5}))


def test_labels_of_texts_that_look_like_tags(tmp_path: Path) -> None:
    names = ("O", "B-cell", "T-cell", "cell")
    path = jsonl(tmp_path / "d.jsonl", *[{"text": f"text {n}", "label": names[n % 4]} for n in range(80)])
    found = dataset.load(settings(path))
    assert found.labels == ["B-cell", "O", "T-cell", "cell"]
    assert found.label_distribution() == {name: pytest.approx(0.25, abs=0.02) for name in names}
    with pytest.raises(UserError, match=r"label 'B-cell' is not one of O, T-cell, cell"):
        dataset.load(settings(path, labels=["O", "T-cell", "cell"]))


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
