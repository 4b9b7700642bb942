"""A server with an index, on fake engines whose vectors have a dimension for each token."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from tuneserve.server.config import IndexConfig
from tuneserve.v1 import answer_pb2 as pb
from tuneserve.v1 import feedback_pb2
from tuneserve.v1.answer_pb2_grpc import AnswerServiceStub
from tuneserve.v1.feedback_pb2_grpc import FeedbackServiceStub

from ..conftest import Served, loopback
from ..troubled_engine import TroubledEngine

DIMENSIONS = 64


def by_tokens(name: str, engine: TroubledEngine) -> None:
    """Texts that share tokens have vectors, or logits, that are near."""

    async def pool(ticket: Any, inputs: Any, task: str) -> list[np.ndarray]:
        with engine._slots(ticket, len(inputs)):
            await engine._step()
            engine.pooled.extend(inputs)
            counts = [np.bincount(one.token_ids, minlength=DIMENSIONS).astype(np.float32) for one in inputs]
            # A ranking model that counts the word "great".
            return counts if task == "embed" else [count[[WORD_GREAT]] for count in counts]

    engine.pool = pool  # type: ignore[method-assign]


WORD_GREAT = 5 + "the a film movie was is good bad great".split().index("great")  # noqa: SIM905


class Answers:
    """Calls of AnswerService, about the index `docs`."""

    def __init__(self, server: Served, key: str = "") -> None:
        self.server = server
        self.stub = AnswerServiceStub(server.channel)
        self._metadata = (("x-api-key", key),) if key else ()

    async def upsert(self, *documents: dict[str, Any], **fields: Any) -> pb.UpsertDocumentsResponse:
        request = pb.UpsertDocumentsRequest(**{"index": "docs", "documents": documents} | fields)
        return await self.stub.UpsertDocuments(request, metadata=self._metadata)

    async def delete(self, *ids: str) -> pb.DeleteDocumentsResponse:
        return await self.stub.DeleteDocuments(
            pb.DeleteDocumentsRequest(index="docs", ids=ids), metadata=self._metadata
        )

    async def search(self, query: str, **fields: Any) -> pb.SearchResponse:
        request = pb.SearchRequest(**{"index": "docs", "query": query} | fields)
        return await self.stub.Search(request, metadata=self._metadata)

    async def answer(self, *turns: str, **fields: Any) -> list[pb.AnswerResponse]:
        """The answer to a conversation: the user's turns and the assistant's, one after the other."""
        messages = [
            pb.AnswerMessage(role="assistant" if place % 2 else "user", content=turn)
            for place, turn in enumerate(turns)
        ]
        request = pb.AnswerRequest(**{"index": "docs", "messages": messages} | fields)
        return [one async for one in self.stub.Answer(request, metadata=self._metadata)]

    async def feedback(self, **fields: Any) -> feedback_pb2.FeedbackResponse:
        request = feedback_pb2.FeedbackRequest(**{"model": "vectors"} | fields)
        return await FeedbackServiceStub(self.server.channel).Feedback(request, metadata=self._metadata)

    async def found(self, query: str, **fields: Any) -> list[str]:
        return [one.document_id for one in (await self.search(query, **fields)).passages]


@pytest.fixture
def answering(serve_config, make_bert, make_llama, tmp_path) -> Callable[..., Any]:
    """`async with answering(**settings_of_the_index) as answers`."""

    @asynccontextmanager
    async def run(server: dict[str, Any] | None = None, **index: Any) -> AsyncIterator[Answers]:
        models = {
            "vectors": make_bert("Model", []),
            "reranker": make_bert(labels=["LABEL_0"], sentence_transformers={"version": "5"}),
            "sentiment": make_bert(),
        }
        if "generation" in index:
            models["chat"] = make_llama(max_position_embeddings=2048)
        settings = {"path": tmp_path / "docs", "embedding": "vectors"} | index
        config = loopback(models, indexes={"docs": IndexConfig(**settings)}, **server or {})
        async with serve_config(config, made=by_tokens) as served:
            yield Answers(served)

    return run


@pytest.fixture
async def answers(answering) -> AsyncIterator[Answers]:
    async with answering() as one:
        yield one
