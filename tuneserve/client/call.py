"""What is sent for a call, and how the answer is read. Nothing is sent here.

Both clients have a method for each function that returns a Call, with the same arguments (base.py): texts.py,
generation.py and models.py have them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

R = TypeVar("R")

STUBS = (ClassificationServiceStub, EmbeddingServiceStub, GenerationServiceStub, ModelServiceStub)


@dataclass(frozen=True)
class Call(Generic[R]):
    """What is sent, and how the answer is read."""

    stub: Any  # one of STUBS
    method: str
    request: Message
    read: Callable[[Any], R]
    timeout: float | None  # seconds; the client's own when None
