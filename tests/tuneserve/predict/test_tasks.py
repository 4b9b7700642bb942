"""What a row needs to be asked about, for each task."""

from typing import Any

import pytest

from tuneserve.errors import UserError
from tuneserve.predict.tasks import Options, renamed, task_of
from tuneserve.v1 import checkpoint_pb2 as pb

CLASSIFIER = pb.Checkpoint(task=pb.TASK_SEQUENCE_CLASSIFICATION, problem_type=pb.PROBLEM_TYPE_SINGLE_LABEL)
CHAT = pb.Checkpoint(task=pb.TASK_GENERATION)
ENCODER = pb.Checkpoint(task=pb.TASK_EMBEDDING)
USER, ASSISTANT = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}


def read(manifest: pb.Checkpoint, row: dict[str, Any]) -> Any:
    return task_of(manifest, row, Options()).read(row)


@pytest.mark.parametrize(
    ("manifest", "row", "found"),
    [
        (CLASSIFIER, {"text": "a", "label": "x"}, "a"),
        (CLASSIFIER, {"text": "a", "text_pair": "b"}, ("a", "b")),
        (CLASSIFIER, {"query": "a", "candidates": ["b", "c"]}, ("a", ["b", "c"])),
        (ENCODER, {"text": "a"}, "a"),
        (CHAT, {"prompt": "a", "completion": "b"}, {"prompt": "a"}),
        (CHAT, {"messages": [USER]}, {"messages": [USER]}),
        (CHAT, {"messages": [USER, ASSISTANT], "tools": []}, {"messages": [USER]}),
        (CHAT, {"messages": [USER], "documents": [{"text": "b"}]}, {"messages": [USER], "documents": [{"text": "b"}]}),
    ],
)
def test_what_is_asked(manifest, row, found):
    assert read(manifest, row) == found


@pytest.mark.parametrize(
    ("manifest", "row", "reason"),
    [
        (CLASSIFIER, {"review": "a", "id": 1}, "text: is missing; the row has review, id"),
        (CLASSIFIER, {"text": 3}, "text: is not a text"),
        (CLASSIFIER, {"text": "a", "text_pair": 3}, "text_pair: is not a text"),
        (CLASSIFIER, {"query": "a"}, "candidates: is missing"),
        (CLASSIFIER, {"query": "a", "candidates": "b"}, "candidates: a list of texts is needed"),
        (CHAT, {"messages": "Hello"}, "messages: a list of objects is needed"),
        (CHAT, {"messages": [ASSISTANT]}, "messages: there is none to answer"),
        (CHAT, {"text": "a"}, "prompt: is missing; the row has text"),
    ],
)
def test_why_it_is_not(manifest, row, reason):
    with pytest.raises(ValueError, match=reason):
        read(manifest, row)


def test_columns_have_other_names():
    assert renamed({"review": "a", "text": "b"}, {"text": "review"}) == {"review": "a", "text": "a"}
    assert renamed({"id": 1}, {"text": "review"}) == {"id": 1}


def test_a_prompt_is_one_of_the_checkpoint():
    encoder = pb.Checkpoint(task=pb.TASK_EMBEDDING, prompts={"query": "q: ", "passage": "p: "})
    task_of(encoder, {"text": "a"}, Options(prompt_name="query"))
    with pytest.raises(UserError, match="--prompt title: not a prompt of the checkpoint") as caught:
        task_of(encoder, {"text": "a"}, Options(prompt_name="title"))
    assert caught.value.hint == "it has: passage, query"


def test_windows_are_for_labels():
    with pytest.raises(UserError, match="windows"):
        task_of(ENCODER, {"text": "a"}, Options(truncation="windows"))
