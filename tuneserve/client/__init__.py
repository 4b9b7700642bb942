"""A client for running servers: `Client` waits for each answer, `AsyncClient` is the same for asyncio.

    endpoint   how a server is reached: addresses, key, TLS, deadline, retries
    errors     the exceptions of failed calls
    results    what calls return
    answers    converts the server's messages to results
    sampling   sampling parameters as keyword arguments
    call       the request of a call, and how its answer is read
    texts, documents, generation, monitors, feedback, models
               a function for each call, which builds it from its arguments
    base       what both clients share
    sync, aio  the two clients

    with Client("localhost:8033") as client:
        for result in client.classify("sentiment", ["A lovely film.", "A waste of time."]):
            print(result.best.label, result.best.score)

Needs grpcio, protobuf and googleapis-common-protos, and no other dependency of the server.
"""

from tuneserve.client.aio import AsyncAnswers, AsyncClient, AsyncStream
from tuneserve.client.errors import (
    CallError,
    DeadlineExceeded,
    FieldViolation,
    InvalidInput,
    NotAllowed,
    NotFound,
    Overloaded,
    Unauthenticated,
    Unavailable,
    WrongState,
)
from tuneserve.client.results import (
    Adapter,
    Alias,
    AliasTarget,
    Answer,
    Citation,
    Classification,
    Completion,
    Deleted,
    Document,
    Embedding,
    Entities,
    Entity,
    Example,
    Generation,
    LabelScore,
    Limits,
    Model,
    Observation,
    Passage,
    Passages,
    RankedCandidate,
    Results,
    StreamedClassification,
    StreamedObservation,
    Token,
    TokenAlternative,
    TokenLogprob,
    Tokens,
    ToolCall,
    Usage,
    WordWeight,
    Written,
)
from tuneserve.client.sync import Answers, Client, Stream

__all__ = [
    "Adapter",
    "Alias",
    "AliasTarget",
    "Answer",
    "Answers",
    "AsyncAnswers",
    "AsyncClient",
    "AsyncStream",
    "CallError",
    "Citation",
    "Classification",
    "Client",
    "Completion",
    "DeadlineExceeded",
    "Deleted",
    "Document",
    "Embedding",
    "Entities",
    "Entity",
    "Example",
    "FieldViolation",
    "Generation",
    "InvalidInput",
    "LabelScore",
    "Limits",
    "Model",
    "NotAllowed",
    "NotFound",
    "Observation",
    "Overloaded",
    "Passage",
    "Passages",
    "RankedCandidate",
    "Results",
    "Stream",
    "StreamedClassification",
    "StreamedObservation",
    "Token",
    "TokenAlternative",
    "TokenLogprob",
    "Tokens",
    "ToolCall",
    "Unauthenticated",
    "Unavailable",
    "Usage",
    "WordWeight",
    "Written",
    "WrongState",
]
