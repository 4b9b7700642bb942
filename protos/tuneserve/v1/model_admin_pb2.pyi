from tuneserve.v1 import model_pb2 as _model_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LoadModelRequest(_message.Message):
    __slots__ = ("model", "path", "settings")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    model: str
    path: str
    settings: ModelSettings
    def __init__(self, model: _Optional[str] = ..., path: _Optional[str] = ..., settings: _Optional[_Union[ModelSettings, _Mapping]] = ...) -> None: ...

class ModelSettings(_message.Message):
    __slots__ = ("dtype", "max_length", "max_num_seqs", "max_inputs", "max_explained_words", "max_queue", "max_queue_tokens", "max_wait_seconds", "redact", "max_adapters", "max_adapter_rank", "gpu_memory_utilization", "kv_cache_gib", "engine", "tool_parser", "reasoning_parser")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    MAX_INPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_EXPLAINED_WORDS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REDACT_FIELD_NUMBER: _ClassVar[int]
    MAX_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_ADAPTER_RANK_FIELD_NUMBER: _ClassVar[int]
    GPU_MEMORY_UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_GIB_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    TOOL_PARSER_FIELD_NUMBER: _ClassVar[int]
    REASONING_PARSER_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    max_length: int
    max_num_seqs: int
    max_inputs: int
    max_explained_words: int
    max_queue: int
    max_queue_tokens: int
    max_wait_seconds: float
    redact: Redaction
    max_adapters: int
    max_adapter_rank: int
    gpu_memory_utilization: float
    kv_cache_gib: float
    engine: EngineOptions
    tool_parser: str
    reasoning_parser: str
    def __init__(self, dtype: _Optional[str] = ..., max_length: _Optional[int] = ..., max_num_seqs: _Optional[int] = ..., max_inputs: _Optional[int] = ..., max_explained_words: _Optional[int] = ..., max_queue: _Optional[int] = ..., max_queue_tokens: _Optional[int] = ..., max_wait_seconds: _Optional[float] = ..., redact: _Optional[_Union[Redaction, _Mapping]] = ..., max_adapters: _Optional[int] = ..., max_adapter_rank: _Optional[int] = ..., gpu_memory_utilization: _Optional[float] = ..., kv_cache_gib: _Optional[float] = ..., engine: _Optional[_Union[EngineOptions, _Mapping]] = ..., tool_parser: _Optional[str] = ..., reasoning_parser: _Optional[str] = ...) -> None: ...

class Redaction(_message.Message):
    __slots__ = ("kinds",)
    KINDS_FIELD_NUMBER: _ClassVar[int]
    kinds: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kinds: _Optional[_Iterable[str]] = ...) -> None: ...

class EngineOptions(_message.Message):
    __slots__ = ("block_size", "enable_chunked_prefill", "enable_prefix_caching", "enforce_eager", "kv_cache_dtype", "long_prefill_token_threshold", "max_logprobs", "max_num_batched_tokens", "seed", "tensor_parallel_size")
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    ENABLE_CHUNKED_PREFILL_FIELD_NUMBER: _ClassVar[int]
    ENABLE_PREFIX_CACHING_FIELD_NUMBER: _ClassVar[int]
    ENFORCE_EAGER_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    LONG_PREFILL_TOKEN_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MAX_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_BATCHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    block_size: int
    enable_chunked_prefill: bool
    enable_prefix_caching: bool
    enforce_eager: bool
    kv_cache_dtype: str
    long_prefill_token_threshold: int
    max_logprobs: int
    max_num_batched_tokens: int
    seed: int
    tensor_parallel_size: int
    def __init__(self, block_size: _Optional[int] = ..., enable_chunked_prefill: _Optional[bool] = ..., enable_prefix_caching: _Optional[bool] = ..., enforce_eager: _Optional[bool] = ..., kv_cache_dtype: _Optional[str] = ..., long_prefill_token_threshold: _Optional[int] = ..., max_logprobs: _Optional[int] = ..., max_num_batched_tokens: _Optional[int] = ..., seed: _Optional[int] = ..., tensor_parallel_size: _Optional[int] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: _model_pb2.Model
    def __init__(self, model: _Optional[_Union[_model_pb2.Model, _Mapping]] = ...) -> None: ...

class CancelLoadRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class CancelLoadResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetAliasRequest(_message.Message):
    __slots__ = ("alias", "unload_unused")
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    UNLOAD_UNUSED_FIELD_NUMBER: _ClassVar[int]
    alias: _model_pb2.Alias
    unload_unused: bool
    def __init__(self, alias: _Optional[_Union[_model_pb2.Alias, _Mapping]] = ..., unload_unused: _Optional[bool] = ...) -> None: ...

class SetAliasResponse(_message.Message):
    __slots__ = ("alias",)
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    alias: _model_pb2.Alias
    def __init__(self, alias: _Optional[_Union[_model_pb2.Alias, _Mapping]] = ...) -> None: ...

class DeleteAliasRequest(_message.Message):
    __slots__ = ("name", "etag", "unload_unused")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    UNLOAD_UNUSED_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    unload_unused: bool
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ..., unload_unused: _Optional[bool] = ...) -> None: ...

class DeleteAliasResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LoadAdapterRequest(_message.Message):
    __slots__ = ("model", "adapter", "path")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    model: str
    adapter: str
    path: str
    def __init__(self, model: _Optional[str] = ..., adapter: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class LoadAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: _model_pb2.Adapter
    def __init__(self, adapter: _Optional[_Union[_model_pb2.Adapter, _Mapping]] = ...) -> None: ...

class UnloadAdapterRequest(_message.Message):
    __slots__ = ("model", "adapter")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    model: str
    adapter: str
    def __init__(self, model: _Optional[str] = ..., adapter: _Optional[str] = ...) -> None: ...

class UnloadAdapterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
