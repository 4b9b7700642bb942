import datetime

from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    TASK_SEQUENCE_CLASSIFICATION: _ClassVar[Task]
    TASK_TOKEN_CLASSIFICATION: _ClassVar[Task]
    TASK_GENERATION: _ClassVar[Task]
    TASK_EMBEDDING: _ClassVar[Task]
    TASK_RANKING: _ClassVar[Task]

class ProblemType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROBLEM_TYPE_UNSPECIFIED: _ClassVar[ProblemType]
    PROBLEM_TYPE_SINGLE_LABEL: _ClassVar[ProblemType]
    PROBLEM_TYPE_MULTI_LABEL: _ClassVar[ProblemType]
    PROBLEM_TYPE_REGRESSION: _ClassVar[ProblemType]
TASK_UNSPECIFIED: Task
TASK_SEQUENCE_CLASSIFICATION: Task
TASK_TOKEN_CLASSIFICATION: Task
TASK_GENERATION: Task
TASK_EMBEDDING: Task
TASK_RANKING: Task
PROBLEM_TYPE_UNSPECIFIED: ProblemType
PROBLEM_TYPE_SINGLE_LABEL: ProblemType
PROBLEM_TYPE_MULTI_LABEL: ProblemType
PROBLEM_TYPE_REGRESSION: ProblemType

class Checkpoint(_message.Message):
    __slots__ = ("format_version", "task", "architecture", "labels", "problem_type", "max_length", "dtype", "quantization", "chat_template_sha256", "label_distribution", "lineage", "test_split", "files", "temperature", "calibration_split", "trained_rows", "pooling", "prompts")
    class LabelDistributionEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class PromptsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_TYPE_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_SHA256_FIELD_NUMBER: _ClassVar[int]
    LABEL_DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    TEST_SPLIT_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_SPLIT_FIELD_NUMBER: _ClassVar[int]
    TRAINED_ROWS_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    format_version: str
    task: Task
    architecture: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    problem_type: ProblemType
    max_length: int
    dtype: str
    quantization: str
    chat_template_sha256: str
    label_distribution: _containers.ScalarMap[str, float]
    lineage: _containers.RepeatedCompositeFieldContainer[Step]
    test_split: TestSplit
    files: _containers.RepeatedCompositeFieldContainer[File]
    temperature: float
    calibration_split: TestSplit
    trained_rows: RowDigests
    pooling: str
    prompts: _containers.ScalarMap[str, str]
    def __init__(self, format_version: _Optional[str] = ..., task: _Optional[_Union[Task, str]] = ..., architecture: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., problem_type: _Optional[_Union[ProblemType, str]] = ..., max_length: _Optional[int] = ..., dtype: _Optional[str] = ..., quantization: _Optional[str] = ..., chat_template_sha256: _Optional[str] = ..., label_distribution: _Optional[_Mapping[str, float]] = ..., lineage: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., test_split: _Optional[_Union[TestSplit, _Mapping]] = ..., files: _Optional[_Iterable[_Union[File, _Mapping]]] = ..., temperature: _Optional[float] = ..., calibration_split: _Optional[_Union[TestSplit, _Mapping]] = ..., trained_rows: _Optional[_Union[RowDigests, _Mapping]] = ..., pooling: _Optional[str] = ..., prompts: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("name", "source", "config", "packages", "seed", "data_sha256", "metrics", "finished_at", "measured_on")
    class PackagesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    PACKAGES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DATA_SHA256_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    MEASURED_ON_FIELD_NUMBER: _ClassVar[int]
    name: str
    source: str
    config: _struct_pb2.Struct
    packages: _containers.ScalarMap[str, str]
    seed: int
    data_sha256: str
    metrics: _containers.ScalarMap[str, float]
    finished_at: _timestamp_pb2.Timestamp
    measured_on: str
    def __init__(self, name: _Optional[str] = ..., source: _Optional[str] = ..., config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., packages: _Optional[_Mapping[str, str]] = ..., seed: _Optional[int] = ..., data_sha256: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ..., finished_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., measured_on: _Optional[str] = ...) -> None: ...

class TestSplit(_message.Message):
    __slots__ = ("path", "sha256", "rows")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    path: str
    sha256: str
    rows: int
    def __init__(self, path: _Optional[str] = ..., sha256: _Optional[str] = ..., rows: _Optional[int] = ...) -> None: ...

class RowDigests(_message.Message):
    __slots__ = ("path", "sha256", "rows")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    path: str
    sha256: str
    rows: int
    def __init__(self, path: _Optional[str] = ..., sha256: _Optional[str] = ..., rows: _Optional[int] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("path", "size_bytes", "sha256")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    path: str
    size_bytes: int
    sha256: str
    def __init__(self, path: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...
