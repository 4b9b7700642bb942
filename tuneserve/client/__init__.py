"""A client for running servers: `Client` waits for each answer, `AsyncClient` is the same for asyncio.

    endpoint   where a server is, and how it is spoken to: key, TLS, deadline, retries, several addresses
    errors     why a call brought no answer
    results    what calls return
    answers    the server's messages as results
    sampling   how tokens are chosen, as keyword arguments
    call       what is sent for a call, and how the answer is read
    texts, generation, models, administration
               each call once, as a function of its arguments
    base       what both clients share
    sync, aio  the two clients

    with Client("localhost:8033") as client:
        for result in client.classify("sentiment", ["A lovely film.", "A waste of time."]):
            print(result.best.label, result.best.score)

Needs grpcio, protobuf and googleapis-common-protos, and nothing else of what the server needs.
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
    Classification,
    Completion,
    Embedding,
    Entities,
    Entity,
    Generation,
    LabelScore,
    Limits,
    Model,
    RankedCandidate,
    Results,
    StreamedClassification,
    Token,
    TokenAlternative,
    TokenLogprob,
    Tokens,
    ToolCall,
    Usage,
    WordWeight,
)
from tuneserve.client.sync import Answers, Client, Stream

__all__ = [
    "Adapter",
    "Alias",
    "AliasTarget",
    "Answers",
    "AsyncAnswers",
    "AsyncClient",
    "AsyncStream",
    "CallError",
    "Classification",
    "Client",
    "Completion",
    "DeadlineExceeded",
    "Embedding",
    "Entities",
    "Entity",
    "FieldViolation",
    "Generation",
    "InvalidInput",
    "LabelScore",
    "Limits",
    "Model",
    "NotAllowed",
    "NotFound",
    "Overloaded",
    "RankedCandidate",
    "Results",
    "Stream",
    "StreamedClassification",
    "Token",
    "TokenAlternative",
    "TokenLogprob",
    "Tokens",
    "ToolCall",
    "Unauthenticated",
    "Unavailable",
    "Usage",
    "WordWeight",
    "WrongState",
]
