"""Rows of files, and of checkpoints made before entities were spans of the text."""

from pathlib import Path

from tuneserve.checkpoint import rows
from tuneserve.v1 import checkpoint_pb2 as pb


def test_words_and_tags_are_read_as_text_with_entities(tmp_path: Path) -> None:
    old = {"tokens": ["Anna", "Berg", "left", "."], "tags": ["B-PER", "I-PER", "O", "O"]}
    rows.write(tmp_path / "r.jsonl", [old, {"tokens": ["a"], "tags": []}])
    whole, broken = rows.read(tmp_path / "r.jsonl")
    assert whole == {"text": "Anna Berg left.", "entities": [{"start": 0, "end": 9, "label": "PER"}]}
    # Told where rows are checked.
    assert broken == {"tokens": ["a"], "tags": []}


def test_the_hash_of_rows_is_that_of_their_file(tmp_path: Path) -> None:
    from tuneserve.checkpoint import sha256_file
    from tuneserve.evaluation.evaluate import held_out_rows

    old = [{"tokens": ["Zoë", "\u2028"], "tags": ["B-PER", "O"]}]
    rows.write(tmp_path / "r.jsonl", old)
    assert sha256_file(tmp_path / "r.jsonl") == rows.sha256(old)
    split = pb.TestSplit(path="r.jsonl", sha256=rows.sha256(old), rows=1)
    [row] = held_out_rows(tmp_path, pb.Checkpoint(test_split=split))
    assert row["entities"] == [{"start": 0, "end": 3, "label": "PER"}]


def test_rows_that_differ_in_tools_or_documents_ask_something_else() -> None:
    row = {"messages": [{"role": "user", "content": "weather?"}, {"role": "assistant", "content": "sunny"}]}
    more = {"tools": [{"type": "function", "function": {"name": "weather"}}], "documents": [{"text": "It rains."}]}
    for key in more:
        assert rows.input_key(row) != rows.input_key(row | {key: more[key]})
        assert rows.input_key(row) == rows.input_key(row | {key: []})
    answered = [*row["messages"][:1], {"role": "assistant", "content": "rainy"}]
    assert rows.input_key(row) == rows.input_key({"messages": answered})
