"""What a model is calibrated with: never what it is measured on, and the tokens that the server makes."""

import shutil
from pathlib import Path

import pytest

from tuneserve import checkpoint
from tuneserve.checkpoint import rows
from tuneserve.errors import UserError
from tuneserve.quantize import calibration
from tuneserve.v1 import checkpoint_pb2 as pb


def measured(directory: Path) -> list[rows.Row]:
    return rows.read(directory / checkpoint.TEST_SPLIT)


def test_the_rows_that_the_checkpoint_keeps(bert: Path) -> None:
    found = calibration.load(bert, checkpoint.load(bert), None, measured(bert))
    assert found == rows.read(bert / checkpoint.CALIBRATION_SPLIT)


def test_a_checkpoint_that_keeps_none(bert: Path) -> None:
    manifest = checkpoint.load(bert)
    manifest.ClearField("calibration_split")
    assert calibration.load(bert, manifest, None, measured(bert)) == []


def test_rows_that_the_quality_is_measured_on_are_refused(bert: Path, tmp_path: Path) -> None:
    manifest, held_out = checkpoint.load(bert), measured(bert)
    new = {"text": "sentence question", "label": "positive"}
    # Whatever its label says.
    rows.write(tmp_path / "leak.jsonl", [new, held_out[3] | {"label": "negative"}])
    for rows_of_user in (held_out, [new | {"text": "other"}]):
        with pytest.raises(UserError, match=r"leak\.jsonl: row 2 is among the rows that the quality is measured on"):
            calibration.load(bert, manifest, tmp_path / "leak.jsonl", rows_of_user)
    rows.write(tmp_path / "fine.jsonl", [new])
    assert calibration.load(bert, manifest, tmp_path / "fine.jsonl", held_out) == [new]
    with pytest.raises(UserError, match="row 1 is among"):
        calibration.load(bert, manifest, tmp_path / "fine.jsonl", [new])


def test_rows_of_another_task_are_refused(bert: Path, tmp_path: Path) -> None:
    rows.write(tmp_path / "r.jsonl", [{"text": "sentence", "label": "grey"}])
    with pytest.raises(UserError, match=r"r\.jsonl: row 1: label 'grey' is unknown"):
        calibration.load(bert, checkpoint.load(bert), tmp_path / "r.jsonl", measured(bert))


def test_changed_rows_are_refused(bert: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bert, tmp_path / "copy"))
    rows.write(copy / checkpoint.CALIBRATION_SPLIT, [{"text": "sentence", "label": "positive"}])
    with pytest.raises(UserError, match="not the rows that the checkpoint names"):
        calibration.load(copy, checkpoint.read_manifest(bert), None, [])


def test_tokens_are_cut_with_their_end(bert: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bert)
    manifest = pb.Checkpoint(task=pb.TASK_SEQUENCE_CLASSIFICATION, max_length=4)
    short, pair, words = calibration.encode(
        tokenizer,
        manifest,
        [
            {"text": "sentence number 1 2 3"},
            {"text": "answer", "text_pair": "number number"},
            {"text": "question 7", "entities": []},
        ],
    )
    assert tokenizer.decode(short["input_ids"]) == "[CLS] sentence number [SEP]"
    assert tokenizer.decode(pair["input_ids"]) == "[CLS] [SEP] number [SEP]"
    assert len(pair["attention_mask"]) == 4
    assert tokenizer.decode(words["input_ids"]) == "[CLS] question 7 [SEP]"


def test_rows_of_search_have_their_passages(bert: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bert)
    row = {"query": "question 1", "positive": "answer 2", "negatives": ["answer 3"]}
    encoder = pb.Checkpoint(
        task=pb.TASK_EMBEDDING, max_length=16, prompts={"query": "number ", "document": "sentence "}
    )
    texts = [tokenizer.decode(one["input_ids"]) for one in calibration.encode(tokenizer, encoder, [row])]
    assert texts == ["[CLS] number question 1 [SEP]", "[CLS] sentence answer 2 [SEP]"]
    ranker = pb.Checkpoint(task=pb.TASK_RANKING, max_length=16)
    [pair] = calibration.encode(tokenizer, ranker, [row])
    assert tokenizer.decode(pair["input_ids"]) == "[CLS] question 1 [SEP] answer 2 [SEP]"


def test_rows_of_generation_have_their_answers(llama: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    messages = [{"role": "user", "content": "question 1"}, {"role": "assistant", "content": "answer 2"}]
    found = calibration.encode(
        tokenizer,
        pb.Checkpoint(task=pb.TASK_GENERATION, max_length=64),
        [{"prompt": "question 1", "completion": " answer 2"}, {"messages": messages}],
    )
    for row in found:
        assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == "question 1 answer 2"


def test_batches_have_no_padding() -> None:
    encoded = [{"input_ids": [1] * length, "attention_mask": [1] * length} for length in (3, 1, 3, 2000, 2000, 2000)]
    shapes = [tuple(batch["input_ids"].shape) for batch in calibration.tensors(encoded)]
    assert shapes == [(1, 1), (2, 3), (2, 2000), (1, 2000)]


@pytest.mark.parametrize(("given", "calibrating", "choosing"), [(0, 0, 0), (1, 1, 0), (33, 17, 16), (2000, 1744, 256)])
def test_rows_to_choose_on_are_no_others(given: int, calibrating: int, choosing: int) -> None:
    rows = [{"text": str(number)} for number in range(given)]
    parts = calibration.split(rows)
    assert [len(part) for part in parts] == [calibrating, choosing]
    assert sorted(int(row["text"]) for part in parts for row in part) == list(range(given))
