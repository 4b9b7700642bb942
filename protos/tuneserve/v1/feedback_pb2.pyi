from tuneserve.v1 import generation_pb2 as _generation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FeedbackRequest(_message.Message):
    __slots__ = ("request_id", "model", "label", "answer", "click")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    CLICK_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    label: LabelFeedback
    answer: AnswerFeedback
    click: ClickFeedback
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., label: _Optional[_Union[LabelFeedback, _Mapping]] = ..., answer: _Optional[_Union[AnswerFeedback, _Mapping]] = ..., click: _Optional[_Union[ClickFeedback, _Mapping]] = ...) -> None: ...

class LabelFeedback(_message.Message):
    __slots__ = ("text", "text_pair", "labels")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TEXT_PAIR_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    text: str
    text_pair: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, text: _Optional[str] = ..., text_pair: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class AnswerFeedback(_message.Message):
    __slots__ = ("prompt", "answer", "correction", "good")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    GOOD_FIELD_NUMBER: _ClassVar[int]
    prompt: _generation_pb2.Prompt
    answer: str
    correction: str
    good: bool
    def __init__(self, prompt: _Optional[_Union[_generation_pb2.Prompt, _Mapping]] = ..., answer: _Optional[str] = ..., correction: _Optional[str] = ..., good: _Optional[bool] = ...) -> None: ...

class ClickFeedback(_message.Message):
    __slots__ = ("query", "chosen", "ignored")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    IGNORED_FIELD_NUMBER: _ClassVar[int]
    query: str
    chosen: str
    ignored: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, query: _Optional[str] = ..., chosen: _Optional[str] = ..., ignored: _Optional[_Iterable[str]] = ...) -> None: ...

class FeedbackResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    def __init__(self, rows: _Optional[int] = ...) -> None: ...
