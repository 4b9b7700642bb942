import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from tuneserve.v1 import classification_pb2 as _classification_pb2
from tuneserve.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ObserveStreamRequest(_message.Message):
    __slots__ = ("id", "monitor", "text", "truncation", "priority")
    ID_FIELD_NUMBER: _ClassVar[int]
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    id: int
    monitor: str
    text: str
    truncation: _common_pb2.Truncation
    priority: int
    def __init__(self, id: _Optional[int] = ..., monitor: _Optional[str] = ..., text: _Optional[str] = ..., truncation: _Optional[_Union[_common_pb2.Truncation, str]] = ..., priority: _Optional[int] = ...) -> None: ...

class ObserveStreamResponse(_message.Message):
    __slots__ = ("id", "observation", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: int
    observation: Observation
    error: _classification_pb2.Error
    def __init__(self, id: _Optional[int] = ..., observation: _Optional[_Union[Observation, _Mapping]] = ..., error: _Optional[_Union[_classification_pb2.Error, _Mapping]] = ...) -> None: ...

class Observation(_message.Message):
    __slots__ = ("topics", "sentiment", "usage", "topic_model_version", "sentiment_model_version", "truncated")
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    SENTIMENT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TOPIC_MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SENTIMENT_MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedCompositeFieldContainer[_classification_pb2.LabelScore]
    sentiment: _classification_pb2.LabelScore
    usage: _common_pb2.Usage
    topic_model_version: str
    sentiment_model_version: str
    truncated: bool
    def __init__(self, topics: _Optional[_Iterable[_Union[_classification_pb2.LabelScore, _Mapping]]] = ..., sentiment: _Optional[_Union[_classification_pb2.LabelScore, _Mapping]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., topic_model_version: _Optional[str] = ..., sentiment_model_version: _Optional[str] = ..., truncated: _Optional[bool] = ...) -> None: ...

class ExamplesRequest(_message.Message):
    __slots__ = ("monitor", "topic", "sentiment")
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    SENTIMENT_FIELD_NUMBER: _ClassVar[int]
    monitor: str
    topic: str
    sentiment: str
    def __init__(self, monitor: _Optional[str] = ..., topic: _Optional[str] = ..., sentiment: _Optional[str] = ...) -> None: ...

class ExamplesResponse(_message.Message):
    __slots__ = ("examples",)
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    examples: _containers.RepeatedCompositeFieldContainer[Example]
    def __init__(self, examples: _Optional[_Iterable[_Union[Example, _Mapping]]] = ...) -> None: ...

class Example(_message.Message):
    __slots__ = ("text", "time")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    text: str
    time: _timestamp_pb2.Timestamp
    def __init__(self, text: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
