"""Entities as annotation tools export them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tuneserve import formats
from tuneserve.checkpoint.rows import Row
from tuneserve.finetune.data import schema

from .test_dataset import settings


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
