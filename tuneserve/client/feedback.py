"""Feedback: what people think of answers, which the server keeps as rows to train on.

`request_id` names the answer: the request's `x-request-id`, or an id of the caller's own. Of several feedbacks to one
answer, `tuneserve retrain` uses the last. All return the number of rows that are now on the server's disk.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tuneserve.client.call import Call
from tuneserve.client.sampling import prompt as as_prompt
from tuneserve.v1 import feedback_pb2 as pb
from tuneserve.v1.feedback_pb2_grpc import FeedbackServiceStub


def label_feedback(
    model: str,
    request_id: str,
    text: str,
    labels: str | Sequence[str],
    *,
    text_pair: str = "",
    timeout: float | None = None,
) -> Call[int]:
    """Tells a text classifier's right label; of a multi-label model, all right labels, which may be none.

    `request_id`: names the answer; a later feedback of the same id replaces this one. `timeout` is as in `classify`.
    Returns the number of rows kept. Raises CallError.
    """
    right = [labels] if isinstance(labels, str) else labels
    label = pb.LabelFeedback(text=text, text_pair=text_pair, labels=right)
    return _call(pb.FeedbackRequest(request_id=request_id, model=model, label=label), timeout)


def answer_feedback(
    model: str,
    request_id: str,
    prompt: str | Sequence[Mapping[str, Any]],
    answer: str,
    *,
    correction: str | None = None,
    good: bool | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    documents: Sequence[Mapping[str, Any]] = (),
    timeout: float | None = None,
) -> Call[int]:
    """Judges what a generation model wrote: by a better text (`correction`), by thumbs up or down (`good`), or both.

    `prompt`, `tools` and `documents` are as the model was asked, in `generate` or `chat`, and `answer` is its text.
    The other arguments are as in `label_feedback`. Returns the number of rows kept. Raises CallError.
    """
    judged = pb.AnswerFeedback(
        prompt=as_prompt(prompt, tools, documents), answer=answer, correction=correction, good=good
    )
    return _call(pb.FeedbackRequest(request_id=request_id, model=model, answer=judged), timeout)


def click_feedback(
    model: str,
    request_id: str,
    query: str,
    chosen: str,
    *,
    ignored: Sequence[str] = (),
    timeout: float | None = None,
) -> Call[int]:
    """Tells which text somebody chose from a list that a ranking or an embedding model made, and which were passed
    over.

    The other arguments are as in `label_feedback`. Returns the number of rows kept. Raises CallError.
    """
    click = pb.ClickFeedback(query=query, chosen=chosen, ignored=ignored)
    return _call(pb.FeedbackRequest(request_id=request_id, model=model, click=click), timeout)


def _call(request: pb.FeedbackRequest, timeout: float | None) -> Call[int]:
    return Call(FeedbackServiceStub, "Feedback", request, _rows, timeout)


def _rows(response: pb.FeedbackResponse) -> int:
    return response.rows
