"""AnswerService: checks requests, and passes them on to their index."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from tuneserve.server import concurrency
from tuneserve.server.answer import messages
from tuneserve.server.answer.answering import Answering
from tuneserve.server.api.checks import check_count
from tuneserve.server.call.errors import NotFound, Violations
from tuneserve.server.config import IndexConfig
from tuneserve.server.metrics import Metrics
from tuneserve.server.models.aliases import Models
from tuneserve.v1 import answer_pb2 as pb
from tuneserve.v1.answer_pb2_grpc import AnswerServiceServicer

if TYPE_CHECKING:
    from tuneserve.server.answer.index import Index


class AnswerService(AnswerServiceServicer):
    """Documents, the passages of them that fit a query, and answers from these."""

    def __init__(self, models: Models, indexes: Mapping[str, IndexConfig], metrics: Metrics) -> None:
        """Raises UserError if an index can't be opened. A server without indexes needs no LanceDB."""
        self._metrics = metrics
        self._measuring: list[asyncio.Task[None]] = []
        self._indexes: Mapping[str, Index] = {}
        if indexes:
            from tuneserve.server.answer.index import opened

            self._indexes = opened(indexes, models, metrics)
        self._answering = {name: Answering(index, models, metrics) for name, index in self._indexes.items()}

    def start(self) -> None:
        """Begins to measure the indexes."""
        if self._indexes:
            from tuneserve.server.answer import sizes

            self._measuring = [asyncio.create_task(sizes.follow(self._indexes, self._metrics))]

    async def UpsertDocuments(self, request: pb.UpsertDocumentsRequest, context: Any) -> pb.UpsertDocumentsResponse:
        """See answer.proto."""
        index = self._index(request.index)
        with Violations() as wrong:
            messages.check_documents(wrong, request.documents)
        return await index.upsert(request)

    async def DeleteDocuments(self, request: pb.DeleteDocumentsRequest, context: Any) -> pb.DeleteDocumentsResponse:
        """See answer.proto."""
        index = self._index(request.index)
        with Violations() as wrong:
            if check_count(wrong, "ids", len(request.ids), messages.MOST_DOCUMENTS):
                messages.check_ids(wrong, "ids[{}]", request.ids)
        return await index.delete(request.ids)

    async def Search(self, request: pb.SearchRequest, context: Any) -> pb.SearchResponse:
        """See answer.proto."""
        index = self._index(request.index)
        with Violations() as wrong:
            messages.check_search(wrong, request, index.config.ranking is not None)
        return await index.search(request)

    async def Answer(self, request: pb.AnswerRequest, context: Any) -> AsyncGenerator[pb.AnswerResponse, None]:
        """See answer.proto."""
        index = self._index(request.index)
        with Violations() as wrong:
            messages.check_answer(wrong, request, index.config.generation is not None)
        async with aclosing(self._answering[index.name].answer(request)) as responses:
            async for response in responses:
                yield response

    async def close(self) -> None:
        """Ends the work in the background."""
        await concurrency.end(self._measuring)
        for index in self._indexes.values():
            await index.close()

    def _index(self, name: str) -> "Index":
        if name not in self._indexes:
            raise NotFound("index", name, list(self._indexes))
        return self._indexes[name]
