import copy
from pathlib import Path
from typing import Any

import pytest

from tuneserve.finetune.data import tokens
from tuneserve.finetune.data.tokens import IGNORED, Target
from tuneserve.finetune.model import base_models

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}


@pytest.fixture(scope="session")
def chat_tokenizer(chat: Path) -> Any:
    return base_models.load_tokenizer(str(chat))


@pytest.fixture(scope="session")
def encoder_tokenizer(encoder: Path) -> Any:
    return base_models.load_tokenizer(str(encoder))


def test_the_loss_counts_the_answer_and_its_end_only(chat_tokenizer: Any) -> None:
    row = tokens.encode(chat_tokenizer, Target("generation", (), "single-label", 100), [CHAT])[0]
    counted = [token for token in row["labels"] if token != IGNORED]
    assert chat_tokenizer.decode(counted) == "yo<|im_end|>"
    assert chat_tokenizer.decode(row["input_ids"]).startswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert len(row["input_ids"]) == len(row["labels"]) == len(row["attention_mask"])


def test_all_turns_are_learned_and_the_last_is_measured(chat_tokenizer: Any) -> None:
    row = {"messages": [*CHAT["messages"], {"role": "user", "content": "so"}, {"role": "assistant", "content": "no"}]}
    target = Target("generation", (), "single-label", 100)

    def counted(*train_on: str) -> str:
        [item] = tokens.encode(chat_tokenizer, target, [row], *train_on)
        return chat_tokenizer.decode([token for token in item["labels"] if token != IGNORED])

    assert counted("all-turns") == "yo<|im_end|>no<|im_end|>"
    assert counted("last-turn") == counted() == "no<|im_end|>"


def test_rows_that_nothing_can_be_learned_of(chat_tokenizer: Any) -> None:
    long = {"prompt": "so " * 20, "completion": "yes"}
    target = Target("generation", (), "single-label", 32)
    rows = [{"prompt": "so", "completion": "yes"}, long, {"prompt": "so", "completion": "yes " * 20}]
    kept, left_out = tokens.usable(chat_tokenizer, target, rows, "truncate")
    assert kept == rows
    assert not left_out
    # No loss of it is a mean over nothing, which is no number.
    assert all(set(item["labels"]) != {IGNORED} for item in tokens.encode(chat_tokenizer, target, rows))
    kept, left_out = tokens.usable(chat_tokenizer, target, rows, "drop")
    assert list(kept) == [rows[0], rows[2]]
    assert left_out == {"prompt too long": 1}
    silent = "{% for m in messages %}{{ m.content if m.role == 'user' }}{% endfor %}"
    chat_tokenizer = copy.copy(chat_tokenizer)
    chat_tokenizer.chat_template = silent
    kept, left_out = tokens.usable(chat_tokenizer, target, [CHAT, rows[0]], "truncate")
    assert list(kept) == [rows[0]]
    assert left_out == {"answer without tokens": 1}


PEOPLE = Target("token-classification", ("O", "B-PER", "I-PER"), "single-label", 32)


def person(text: str, start: int, end: int) -> dict[str, Any]:
    return {"text": text, "entities": [{"start": start, "end": end, "label": "PER"}]}


def test_every_token_of_an_entity_carries_its_tag(encoder_tokenizer: Any) -> None:
    item = tokens.encode(encoder_tokenizer, PEOPLE, [person("Anna xyz lives", 5, 8)])[0]
    pieces = encoder_tokenizer.convert_ids_to_tokens(item["input_ids"])
    assert pieces == ["[CLS]", "anna", "x", "##y", "##z", "lives", "[SEP]"]
    assert item["labels"] == [IGNORED, 0, 1, 2, 2, 0, IGNORED]


def test_tokens_are_those_of_the_text_itself(chat_tokenizer: Any) -> None:
    """A tokenizer of bytes: several for one character, and one for each space."""
    row = person("  Al B\u00f6, is", 2, 7)
    item = tokens.encode(chat_tokenizer, PEOPLE, [row])[0]
    assert item["input_ids"] == chat_tokenizer(row["text"])["input_ids"]
    pieces = chat_tokenizer.convert_ids_to_tokens(item["input_ids"])
    assert pieces == ["\u0120", "\u0120", "A", "l", "\u0120", "B", "\u00c3", "\u00b6", ",", "\u0120", "i", "s"]
    assert item["labels"] == [0, 0, 1, 2, 2, 2, 2, 2, 0, 0, 0, 0]


def test_entities_that_tokens_can_not_tell(encoder_tokenizer: Any) -> None:
    assert tokens.lost_entities(encoder_tokenizer, person("anna lives", 0, 4)) == 0
    # The tokenizer knows the word as one token.
    assert tokens.lost_entities(encoder_tokenizer, person("anna lives", 0, 3)) == 1
    two = [{"start": 0, "end": 2, "label": "PER"}, {"start": 2, "end": 4, "label": "LOC"}]
    assert tokens.lost_entities(encoder_tokenizer, {"text": "anna lives", "entities": two}) == 2


def test_classes_by_index_and_by_share(encoder_tokenizer: Any) -> None:
    single = Target("sequence-classification", ("x", "y"), "single-label", 8)
    items = tokens.encode(encoder_tokenizer, single, [{"text": "good " * 20, "label": "y"}])
    assert items[0]["labels"] == 1
    assert len(items[0]["input_ids"]) == 8
    multi = Target("sequence-classification", ("x", "y", "z"), "multi-label", 8)
    items = tokens.encode(encoder_tokenizer, multi, [{"text": "a", "text_pair": "b", "labels": ["x", "z"]}])
    assert items[0]["labels"] == [1.0, 0.0, 1.0]
    assert items[0]["token_type_ids"] == [0, 0, 0, 1, 1]
