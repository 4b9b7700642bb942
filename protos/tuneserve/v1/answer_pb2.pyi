from tuneserve.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AnswerOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ANSWER_OUTCOME_UNSPECIFIED: _ClassVar[AnswerOutcome]
    ANSWER_OUTCOME_ANSWERED: _ClassVar[AnswerOutcome]
    ANSWER_OUTCOME_REPLY: _ClassVar[AnswerOutcome]
    ANSWER_OUTCOME_NOT_FOUND: _ClassVar[AnswerOutcome]
    ANSWER_OUTCOME_UNGROUNDED: _ClassVar[AnswerOutcome]
ANSWER_OUTCOME_UNSPECIFIED: AnswerOutcome
ANSWER_OUTCOME_ANSWERED: AnswerOutcome
ANSWER_OUTCOME_REPLY: AnswerOutcome
ANSWER_OUTCOME_NOT_FOUND: AnswerOutcome
ANSWER_OUTCOME_UNGROUNDED: AnswerOutcome

class Document(_message.Message):
    __slots__ = ("id", "title", "text", "metadata", "readers", "reply")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    READERS_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    id: str
    title: str
    text: str
    metadata: _containers.ScalarMap[str, str]
    readers: _containers.RepeatedScalarFieldContainer[str]
    reply: str
    def __init__(self, id: _Optional[str] = ..., title: _Optional[str] = ..., text: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., readers: _Optional[_Iterable[str]] = ..., reply: _Optional[str] = ...) -> None: ...

class UpsertDocumentsRequest(_message.Message):
    __slots__ = ("index", "documents", "priority")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    index: str
    documents: _containers.RepeatedCompositeFieldContainer[Document]
    priority: int
    def __init__(self, index: _Optional[str] = ..., documents: _Optional[_Iterable[_Union[Document, _Mapping]]] = ..., priority: _Optional[int] = ...) -> None: ...

class UpsertDocumentsResponse(_message.Message):
    __slots__ = ("written", "unchanged", "index_version", "usage", "model_version")
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    INDEX_VERSION_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    written: int
    unchanged: int
    index_version: int
    usage: _common_pb2.Usage
    model_version: str
    def __init__(self, written: _Optional[int] = ..., unchanged: _Optional[int] = ..., index_version: _Optional[int] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., model_version: _Optional[str] = ...) -> None: ...

class DeleteDocumentsRequest(_message.Message):
    __slots__ = ("index", "ids")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    index: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, index: _Optional[str] = ..., ids: _Optional[_Iterable[str]] = ...) -> None: ...

class DeleteDocumentsResponse(_message.Message):
    __slots__ = ("deleted", "index_version")
    DELETED_FIELD_NUMBER: _ClassVar[int]
    INDEX_VERSION_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    index_version: int
    def __init__(self, deleted: _Optional[int] = ..., index_version: _Optional[int] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("index", "query", "readers", "filters", "limit", "rerank", "offset_unit", "priority", "liked", "disliked")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    READERS_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    RERANK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_UNIT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    LIKED_FIELD_NUMBER: _ClassVar[int]
    DISLIKED_FIELD_NUMBER: _ClassVar[int]
    index: str
    query: str
    readers: _containers.RepeatedScalarFieldContainer[str]
    filters: _containers.RepeatedCompositeFieldContainer[Filter]
    limit: int
    rerank: bool
    offset_unit: _common_pb2.OffsetUnit
    priority: int
    liked: _containers.RepeatedScalarFieldContainer[str]
    disliked: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, index: _Optional[str] = ..., query: _Optional[str] = ..., readers: _Optional[_Iterable[str]] = ..., filters: _Optional[_Iterable[_Union[Filter, _Mapping]]] = ..., limit: _Optional[int] = ..., rerank: _Optional[bool] = ..., offset_unit: _Optional[_Union[_common_pb2.OffsetUnit, str]] = ..., priority: _Optional[int] = ..., liked: _Optional[_Iterable[str]] = ..., disliked: _Optional[_Iterable[str]] = ...) -> None: ...

class Filter(_message.Message):
    __slots__ = ("key", "values")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    key: str
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, key: _Optional[str] = ..., values: _Optional[_Iterable[str]] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("passages", "index_version", "usage", "model_version", "ranking_model_version")
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    INDEX_VERSION_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    RANKING_MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    passages: _containers.RepeatedCompositeFieldContainer[Passage]
    index_version: int
    usage: _common_pb2.Usage
    model_version: str
    ranking_model_version: str
    def __init__(self, passages: _Optional[_Iterable[_Union[Passage, _Mapping]]] = ..., index_version: _Optional[int] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., model_version: _Optional[str] = ..., ranking_model_version: _Optional[str] = ...) -> None: ...

class Passage(_message.Message):
    __slots__ = ("document_id", "title", "text", "start", "end", "metadata", "reply", "score", "dense_score", "keyword_score", "ranking_score")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DOCUMENT_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    DENSE_SCORE_FIELD_NUMBER: _ClassVar[int]
    KEYWORD_SCORE_FIELD_NUMBER: _ClassVar[int]
    RANKING_SCORE_FIELD_NUMBER: _ClassVar[int]
    document_id: str
    title: str
    text: str
    start: int
    end: int
    metadata: _containers.ScalarMap[str, str]
    reply: str
    score: float
    dense_score: float
    keyword_score: float
    ranking_score: float
    def __init__(self, document_id: _Optional[str] = ..., title: _Optional[str] = ..., text: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ..., reply: _Optional[str] = ..., score: _Optional[float] = ..., dense_score: _Optional[float] = ..., keyword_score: _Optional[float] = ..., ranking_score: _Optional[float] = ...) -> None: ...

class AnswerRequest(_message.Message):
    __slots__ = ("index", "messages", "readers", "filters", "limit", "offset_unit", "priority", "max_tokens", "temperature", "seed")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    READERS_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_UNIT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    index: str
    messages: _containers.RepeatedCompositeFieldContainer[AnswerMessage]
    readers: _containers.RepeatedScalarFieldContainer[str]
    filters: _containers.RepeatedCompositeFieldContainer[Filter]
    limit: int
    offset_unit: _common_pb2.OffsetUnit
    priority: int
    max_tokens: int
    temperature: float
    seed: int
    def __init__(self, index: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[AnswerMessage, _Mapping]]] = ..., readers: _Optional[_Iterable[str]] = ..., filters: _Optional[_Iterable[_Union[Filter, _Mapping]]] = ..., limit: _Optional[int] = ..., offset_unit: _Optional[_Union[_common_pb2.OffsetUnit, str]] = ..., priority: _Optional[int] = ..., max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class AnswerMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class AnswerResponse(_message.Message):
    __slots__ = ("retrieval", "text", "end")
    RETRIEVAL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    retrieval: Retrieval
    text: str
    end: AnswerEnd
    def __init__(self, retrieval: _Optional[_Union[Retrieval, _Mapping]] = ..., text: _Optional[str] = ..., end: _Optional[_Union[AnswerEnd, _Mapping]] = ...) -> None: ...

class Retrieval(_message.Message):
    __slots__ = ("query", "found", "answerable")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    ANSWERABLE_FIELD_NUMBER: _ClassVar[int]
    query: str
    found: SearchResponse
    answerable: float
    def __init__(self, query: _Optional[str] = ..., found: _Optional[_Union[SearchResponse, _Mapping]] = ..., answerable: _Optional[float] = ...) -> None: ...

class AnswerEnd(_message.Message):
    __slots__ = ("outcome", "citations", "usage", "citations_dropped", "generation_model_version")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    CITATIONS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    CITATIONS_DROPPED_FIELD_NUMBER: _ClassVar[int]
    GENERATION_MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    outcome: AnswerOutcome
    citations: _containers.RepeatedCompositeFieldContainer[Citation]
    usage: _common_pb2.Usage
    citations_dropped: int
    generation_model_version: str
    def __init__(self, outcome: _Optional[_Union[AnswerOutcome, str]] = ..., citations: _Optional[_Iterable[_Union[Citation, _Mapping]]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., citations_dropped: _Optional[int] = ..., generation_model_version: _Optional[str] = ...) -> None: ...

class Citation(_message.Message):
    __slots__ = ("start", "end", "document_id", "document_start", "document_end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_ID_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_START_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    document_id: str
    document_start: int
    document_end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ..., document_id: _Optional[str] = ..., document_start: _Optional[int] = ..., document_end: _Optional[int] = ...) -> None: ...
