"""The request of a call, and how its answer is read. Nothing is sent here.

Both clients have a method for each function that returns a Call, with the same arguments (base.py): texts.py,
documents.py, generation.py, monitors.py, feedback.py and models.py have them.
"""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import Message

from tuneserve.v1.answer_pb2_grpc import AnswerServiceStub
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tuneserve.v1.feedback_pb2_grpc import FeedbackServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub
from tuneserve.v1.model_admin_pb2_grpc import ModelAdminServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub
from tuneserve.v1.monitor_pb2_grpc import MonitorServiceStub

R = TypeVar("R")

STUBS = (
    AnswerServiceStub,
    ClassificationServiceStub,
    EmbeddingServiceStub,
    FeedbackServiceStub,
    GenerationServiceStub,
    MonitorServiceStub,
    ModelServiceStub,
    ModelAdminServiceStub,
)


@dataclass
class Requests:
    """The requests of a stream, each made when it can be sent. Iterate once.

    An error while a request is made ends the stream, and is kept here, because gRPC would only log it.
    """

    items: Iterable[Any] | AsyncIterable[Any]
    make: Callable[[int, Any], Message]  # gets an item's place, from 0, and the item
    error: Exception | None = None

    def __iter__(self) -> Iterator[Message]:
        try:
            if isinstance(self.items, AsyncIterable):
                raise TypeError("an async iterable is for AsyncClient; Client takes an iterable")
            yield from map(self.make, count(), self.items)
        except Exception as error:
            self.error = error

    async def __aiter__(self) -> AsyncIterator[Message]:
        try:
            if isinstance(self.items, AsyncIterable):
                places = count()
                async for item in self.items:
                    yield self.make(next(places), item)
            else:
                for message in map(self.make, count(), self.items):
                    yield message
        except Exception as error:
            self.error = error


class Parts(Protocol):
    """A text that arrives in parts."""

    def add(self, part: Any) -> str:
        """Adds a part; returns its text."""

    def joined(self) -> Message:
        """Returns everything received so far as one message, for the call's `read`."""


@dataclass(frozen=True)
class Call(Generic[R]):
    """The request of a call, and how its answer, or each of its answers, is read."""

    stub: Any  # one of STUBS
    method: str
    request: Message | Requests
    read: Callable[[Any], R]
    timeout: float | None  # seconds; if None, the client's own,
    is_endless: bool = False  # or no limit if this is set
