"""Rows of feedback: what is refused, and that finetune reads what is made."""

from pathlib import Path

import pytest
from google.protobuf import json_format

from tuneserve.finetune import config
from tuneserve.finetune.data import schema
from tuneserve.server.call.errors import InvalidInput, Violations
from tuneserve.server.feedback import rows
from tuneserve.v1 import checkpoint_pb2
from tuneserve.v1 import feedback_pb2 as pb

LABELS = ["neg", "pos"]
CLASSIFIER = checkpoint_pb2.Checkpoint(
    task=checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION,
    labels=LABELS,
    problem_type=checkpoint_pb2.PROBLEM_TYPE_SINGLE_LABEL,
)
MULTI = checkpoint_pb2.Checkpoint(
    task=checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION,
    labels=LABELS,
    problem_type=checkpoint_pb2.PROBLEM_TYPE_MULTI_LABEL,
)
REGRESSION = checkpoint_pb2.Checkpoint(
    task=checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION,
    labels=["score"],
    problem_type=checkpoint_pb2.PROBLEM_TYPE_REGRESSION,
)
CHAT = checkpoint_pb2.Checkpoint(task=checkpoint_pb2.TASK_GENERATION)
RANKING = checkpoint_pb2.Checkpoint(task=checkpoint_pb2.TASK_RANKING, labels=["score"])
EMBEDDING = checkpoint_pb2.Checkpoint(task=checkpoint_pb2.TASK_EMBEDDING)
TAGGER = checkpoint_pb2.Checkpoint(task=checkpoint_pb2.TASK_TOKEN_CLASSIFICATION, labels=["O", "B-A", "I-A"])

TURNS = {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]}
TOOL = {"type": "function", "function": {"name": "weather"}}
CALL = {"role": "assistant", "tool_calls": [TOOL]}


def request(**feedback) -> pb.FeedbackRequest:
    return json_format.ParseDict({"request_id": "r-1", "model": "m", **feedback}, pb.FeedbackRequest())


def made(manifest: checkpoint_pb2.Checkpoint, **feedback) -> dict[str, dict]:
    with Violations() as wrong:
        rows.check(wrong, request(**feedback), manifest)
    return rows.made(request(**feedback), manifest)


def trained(row: dict, task: str, **settings) -> dict:
    """The row as finetune reads it."""
    return schema.row(
        row, config.parse({"task": task, "base_model": "b", "train": "t", "output": "o"} | settings, Path())
    )


def test_a_label_is_a_row_of_its_text():
    found = made(CLASSIFIER, label={"text": "good", "labels": ["pos"]})
    assert found == {"labels": {"text": "good", "label": "pos", "request_id": "r-1"}}
    assert trained(found["labels"], "sequence-classification") == {"text": "good", "label": "pos"}
    pair = made(CLASSIFIER, label={"text": "good", "text_pair": "bad", "labels": ["neg"]})["labels"]
    assert trained(pair, "sequence-classification") == {"text": "good", "text_pair": "bad", "label": "neg"}


@pytest.mark.parametrize("labels", [["pos", "neg"], []])
def test_several_labels_or_none(labels):
    row = made(MULTI, label={"text": "good", "labels": labels})["labels"]
    wanted = {"text": "good", "labels": sorted(set(labels))}
    assert trained(row, "sequence-classification", problem_type="multi-label") == wanted


@pytest.mark.parametrize(
    ("prompt", "example"),
    [
        ({"text": "why?"}, {"prompt": "why?", "completion": "because"}),
        ({"chat": TURNS}, {"messages": [*TURNS["messages"], {"role": "assistant", "content": "because"}]}),
    ],
)
def test_a_correction_is_an_example_and_a_preference(prompt, example):
    found = made(CHAT, answer={"prompt": prompt, "answer": "no", "correction": "because", "good": False})
    assert trained(found["corrections"], "generation") == example
    asked = prompt.get("text") or TURNS["messages"]
    own = {"request_id": "r-1"}
    assert found["preferences"] == {"prompt": asked, "chosen": "because", "rejected": "no"} | own
    assert found["thumbs"] == {"prompt": asked, "completion": "no", "label": False} | own
    assert found.keys() == {"corrections", "preferences", "thumbs"}
    assert made(CHAT, answer={"prompt": prompt, "answer": "no", "good": True}).keys() == {"thumbs"}


def test_tools_and_documents_go_with_a_conversation():
    chat = {"messages": [*TURNS["messages"], CALL], "tools": [TOOL], "documents": [{"title": "a", "n": 1}]}
    found = made(CHAT, answer={"prompt": {"chat": chat}, "answer": "no", "correction": "because"})
    row = trained(found["corrections"], "generation")
    assert (row["tools"], row["documents"]) == ([TOOL], [{"title": "a", "n": 1}])
    assert row["messages"][2] == {"role": "assistant", "content": "", "tool_calls": [TOOL]}


@pytest.mark.parametrize(("manifest", "task"), [(RANKING, "ranking"), (EMBEDDING, "embedding")])
def test_a_click_is_a_pair_with_what_was_passed_over(manifest, task):
    found = made(manifest, click={"query": "sky", "chosen": "blue", "ignored": ["red", "red", "green"]})["clicks"]
    assert trained(found, task) == {"query": "sky", "positive": "blue", "negatives": ["red", "green"]}
    alone = made(manifest, click={"query": "sky", "chosen": "blue"})["clicks"]
    assert trained(alone, task) == {"query": "sky", "positive": "blue"}


def test_texts_that_masking_made_equal_are_no_preference():
    same = request(answer={"prompt": {"text": "a"}, "answer": "[EMAIL]", "correction": "[EMAIL]"})
    assert rows.made(same, CHAT).keys() == {"corrections"}
    assert (
        "negatives" not in rows.made(request(click={"query": "a", "chosen": "b", "ignored": ["b"]}), RANKING)["clicks"]
    )


ANSWER = {"prompt": {"text": "why?"}, "answer": "no", "good": True}


@pytest.mark.parametrize(
    ("manifest", "feedback", "said"),
    [
        (CLASSIFIER, {"request_id": "a b", "label": {"text": "a", "labels": ["pos"]}}, "request_id: is not 1 to 128"),
        (CLASSIFIER, {}, "feedback: is not given; a model for sequence-classification takes `label`"),
        (CLASSIFIER, {"answer": ANSWER}, "answer: is given; a model for sequence-classification takes `label`"),
        (TAGGER, {"label": {"text": "a"}}, "model: is for token-classification, which takes no feedback"),
        (REGRESSION, {"label": {"text": "a", "labels": ["1"]}}, "label: is given; a regression has numbers"),
        (CLASSIFIER, {"label": {"text": " ", "labels": ["pos"]}}, "label.text: is empty or blank"),
        (CLASSIFIER, {"label": {"text": "a", "labels": []}}, "label.labels: has 0 entries; allowed: 1 to 1"),
        (
            CLASSIFIER,
            {"label": {"text": "a", "labels": ["new"]}},
            "labels[0]: is not a label of the model; labels: neg",
        ),
        (MULTI, {"label": {"text": "a", "text_pair": "b"}}, "label.text_pair: is given"),
        (MULTI, {"label": {"text": "a", "labels": ["pos"] * 3}}, "label.labels: has 3 entries; allowed: 0 to 2"),
        (CHAT, {"answer": {"prompt": {"text": "a"}, "answer": "b"}}, "answer: has neither a correction nor good"),
        (CHAT, {"answer": ANSWER | {"answer": ""}}, "answer.answer: is empty or blank"),
        (CHAT, {"answer": ANSWER | {"correction": "no"}}, "answer.correction: is the same as the answer"),
        (CHAT, {"answer": ANSWER | {"prompt": {"token_ids": {"ids": [1]}}}}, "answer.prompt: is not a text or a chat"),
        (CHAT, {"answer": ANSWER | {"prompt": {"text": ""}}}, "answer.prompt.text: is empty or blank"),
        (CHAT, {"answer": ANSWER | {"prompt": {"chat": {}}}}, "answer.prompt.chat.messages: is empty"),
        (
            CHAT,
            {"answer": ANSWER | {"prompt": {"chat": {"messages": [{"role": "poet", "content": "a"}]}}}},
            "answer.prompt.chat.messages[0].role: is not one that training knows: system, user, assistant, tool",
        ),
        (
            CHAT,
            {"answer": ANSWER | {"prompt": {"chat": {"messages": [{"role": "user"}]}}}},
            "answer.prompt.chat.messages[0].content: is empty or blank",
        ),
        (RANKING, {"click": {"query": "", "chosen": " "}}, "click.query: is empty or blank"),
        (RANKING, {"click": {"query": "a", "chosen": "b", "ignored": ["b"]}}, "click.ignored[0]: is the chosen text"),
        (RANKING, {"click": {"query": "a", "chosen": "b", "ignored": ["c"] * 101}}, "click.ignored: has 101 entries"),
    ],
)
def test_what_makes_no_row_is_refused(manifest, feedback, said):
    with pytest.raises(InvalidInput) as caught:
        made(manifest, **feedback)
    assert said in str(caught.value)
