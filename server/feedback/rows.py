"""Checks feedback, and makes of it the rows that finetune reads, by the kind of file they belong to:

    labels        {"text", "text_pair", "label"}, or "labels" of a multi-label model
    corrections   {"messages"}, or {"prompt", "completion"}: the better text
    preferences   {"prompt", "chosen", "rejected"}: the better text, and the model's
    thumbs        {"prompt", "completion", "label"}: the model's text, and whether it is good
    clicks        {"query", "positive", "negatives"}

Each row also has the "request_id", which finetune ignores.
"""

import re
from collections.abc import Mapping
from typing import Any

from tuneserve.checkpoint.rows import Row
from tuneserve.checkpoint.tasks import TASK_NAMES
from tuneserve.server.api import generation_messages
from tuneserve.server.api.checks import check_count, check_text, listed
from tuneserve.server.api.classification_messages import problem_of
from tuneserve.server.call.errors import InvalidInput, Violations
from tuneserve.v1 import checkpoint_pb2, generation_pb2
from tuneserve.v1 import feedback_pb2 as pb

_FORMS: Mapping[checkpoint_pb2.Task, str] = {
    checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION: "label",
    checkpoint_pb2.TASK_GENERATION: "answer",
    checkpoint_pb2.TASK_RANKING: "click",
    checkpoint_pb2.TASK_EMBEDDING: "click",
}
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_MOST_IGNORED = 100
# Messages of a conversation, and values in its JSON objects.
_MOST_VALUES = 1 << 14
# Those that training knows.
_ROLES = ("system", "user", "assistant", "tool")


def check(wrong: Violations, request: pb.FeedbackRequest, manifest: checkpoint_pb2.Checkpoint) -> None:
    """Checks a request to a model."""
    if not _ID.fullmatch(request.request_id):
        wrong.add("request_id", "is not 1 to 128 letters, digits, '.', '_', ':' or '-'")
    given, task = request.WhichOneof("feedback"), TASK_NAMES[manifest.task]
    if manifest.task not in _FORMS:
        wrong.add("model", f"is for {task}, which takes no feedback")
    elif given != (form := _FORMS[manifest.task]):
        wrong.add(given or "feedback", f"is {'' if given else 'not '}given; a model for {task} takes `{form}`")
    elif given == "label":
        _check_labels(wrong, request.label, manifest)
    elif given == "click":
        _check_click(wrong, request.click)
    else:
        _check_answer(wrong, request.answer)


def made(request: pb.FeedbackRequest, manifest: checkpoint_pb2.Checkpoint) -> dict[str, Row]:
    """Returns the rows of a checked request by their kinds."""
    if request.HasField("label"):
        rows = {"labels": _labelled(request.label, manifest)}
    elif request.HasField("click"):
        rows = {"clicks": _clicked(request.click)}
    else:
        rows = _judged(request.answer)
    return {kind: {**row, "request_id": request.request_id} for kind, row in rows.items()}


def _check_labels(wrong: Violations, label: pb.LabelFeedback, manifest: checkpoint_pb2.Checkpoint) -> None:
    check_text(wrong, "label.text", label.text)
    problem = problem_of(manifest)
    if problem == checkpoint_pb2.PROBLEM_TYPE_REGRESSION:
        wrong.add("label", "is given; a regression has numbers, and takes no feedback")
        return
    if problem == checkpoint_pb2.PROBLEM_TYPE_MULTI_LABEL:
        if label.text_pair:
            wrong.add("label.text_pair", "is given; multi-label rows have one text")
        enough = check_count(wrong, "label.labels", len(label.labels), len(manifest.labels), least=0)
    else:
        enough = check_count(wrong, "label.labels", len(label.labels), 1)
    for index, one in enumerate(label.labels if enough else ()):
        if one not in manifest.labels:
            wrong.add(f"label.labels[{index}]", f"is not a label of the model; labels: {listed(manifest.labels)}")


def _check_click(wrong: Violations, click: pb.ClickFeedback) -> None:
    check_text(wrong, "click.query", click.query)
    check_text(wrong, "click.chosen", click.chosen)
    if check_count(wrong, "click.ignored", len(click.ignored), _MOST_IGNORED, least=0):
        for index, text in enumerate(click.ignored):
            check_text(wrong, f"click.ignored[{index}]", text)
            if text == click.chosen:
                wrong.add(f"click.ignored[{index}]", "is the chosen text")


def _check_answer(wrong: Violations, answer: pb.AnswerFeedback) -> None:
    check_text(wrong, "answer.answer", answer.answer)
    if not answer.HasField("correction") and not answer.HasField("good"):
        wrong.add("answer", "has neither a correction nor good")
    if answer.HasField("correction"):
        check_text(wrong, "answer.correction", answer.correction)
        if answer.correction == answer.answer:
            wrong.add("answer.correction", "is the same as the answer")
    kind = answer.prompt.WhichOneof("kind")
    if kind == "text":
        check_text(wrong, "answer.prompt.text", answer.prompt.text)
    elif kind == "chat":
        try:
            with Violations() as inner:
                _check_chat(inner, answer.prompt.chat)
        except InvalidInput as error:
            wrong.include(error.renamed(lambda field: f"answer.{field}"))
    else:
        wrong.add("answer.prompt", "is not a text or a chat; rows to train on have no token ids")


def _check_chat(wrong: Violations, chat: generation_pb2.Chat) -> None:
    conversation = generation_messages.conversation(wrong, chat, _MOST_VALUES)
    for index, message in enumerate(conversation.messages):
        where = f"prompt.chat.messages[{index}]"
        if message["role"] not in _ROLES:
            wrong.add(f"{where}.role", f"is not one that training knows: {', '.join(_ROLES)}")
        if "tool_calls" not in message:
            check_text(wrong, f"{where}.content", message["content"])


def _labelled(label: pb.LabelFeedback, manifest: checkpoint_pb2.Checkpoint) -> Row:
    if problem_of(manifest) == checkpoint_pb2.PROBLEM_TYPE_MULTI_LABEL:
        return {"text": label.text, "labels": sorted(set(label.labels))}
    # An empty or blank one is none.
    pair = {"text_pair": label.text_pair} if label.text_pair.strip() else {}
    return {"text": label.text, "label": label.labels[0], **pair}


def _clicked(click: pb.ClickFeedback) -> Row:
    # Masked, an ignored text may have become the chosen one.
    ignored = [text for text in dict.fromkeys(click.ignored) if text != click.chosen]
    return {"query": click.query, "positive": click.chosen, **({"negatives": ignored} if ignored else {})}


def _judged(answer: pb.AnswerFeedback) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    prompt, more = _prompt(answer.prompt)
    if answer.HasField("correction"):
        rows["corrections"] = _example(prompt, answer.correction) | more
        # Masked, both may have become equal.
        if answer.correction != answer.answer:
            rows["preferences"] = {"prompt": prompt, "chosen": answer.correction, "rejected": answer.answer} | more
    if answer.HasField("good"):
        rows["thumbs"] = {"prompt": prompt, "completion": answer.answer, "label": answer.good} | more
    return rows


def _prompt(prompt: generation_pb2.Prompt) -> tuple[Any, Row]:
    """Returns a text, or messages, and the tools and documents beside them."""
    if prompt.WhichOneof("kind") == "text":
        return prompt.text, {}
    with Violations() as wrong:
        chat = generation_messages.conversation(wrong, prompt.chat, _MOST_VALUES)
    given = {"tools": chat.tools, "documents": chat.documents}
    return chat.messages, {key: value for key, value in given.items() if value}


def _example(prompt: Any, completion: str) -> Row:
    if isinstance(prompt, str):
        return {"prompt": prompt, "completion": completion}
    return {"messages": [*prompt, {"role": "assistant", "content": completion}]}
