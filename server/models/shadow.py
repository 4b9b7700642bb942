"""Shadow traffic: copies of an alias's unary inference calls go to another version, and its answers are compared.

Only the result of the comparison is counted. The caller never waits for a copy and never sees its answer. Copies beyond
a bound are dropped, and counted as dropped.
"""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from tuneserve.server import concurrency
from tuneserve.server.call import context
from tuneserve.server.call.tenants import SHADOW
from tuneserve.server.metrics import Metrics
from tuneserve.server.models.aliases import Models
from tuneserve.server.models.model import Model
from tuneserve.v1 import classification_pb2, embedding_pb2, generation_pb2

logger = logging.getLogger(__name__)

# Copies at once, and bytes of their requests.
_MOST, _MOST_BYTES = 64, 32 << 20
# The calls that are copied. A copy of any other call that names a model could change something, such as LoadAdapter.
_INFERENCE = (
    classification_pb2.ClassifyRequest,
    classification_pb2.ClassifyTokensRequest,
    classification_pb2.RankRequest,
    embedding_pb2.EmbedRequest,
    generation_pb2.GenerateRequest,
)


class Shadows:
    """The shadow calls that are running."""

    def __init__(self, models: Models, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics
        self._unseen = Metrics()  # the metrics of shadow calls, never exported
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes = 0

    def mirror(self, method: Callable[..., Awaitable[Any]], request: Any, response: Any) -> None:
        """Sends a copy of an answered call to the alias's shadow, if it has one."""
        if type(request) not in _INFERENCE:
            return
        alias = request.model
        route = self._models.route(alias)
        if route is None or route.shadow is None:
            return
        count, size = self._metrics.shadow.labels, request.ByteSize()
        if len(self._tasks) >= _MOST or self._bytes + size > _MOST_BYTES:
            count(alias, route.shadow.name, route.shadow.version, "dropped").inc()
            return
        copy = type(request)()
        copy.CopyFrom(request)
        copy.model = route.shadow.id
        # A context of its own, so that the copy's cost is not charged to the caller. Only the compared part of the
        # answer is kept.
        comparing = self._compare(method, copy, essence(response), alias, route.shadow)
        task = contextvars.Context().run(asyncio.create_task, comparing)
        self._tasks.add(task)
        self._bytes += size
        task.add_done_callback(partial(self._done, size))

    async def stop(self) -> None:
        """Cancels the running shadow calls."""
        await concurrency.end(list(self._tasks))

    def _done(self, size: int, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._bytes -= size

    async def _compare(
        self, method: Callable[..., Awaitable[Any]], request: Any, answered: object, alias: str, shadow: Model
    ) -> None:
        context.begin(context.Call("shadow", method.__name__, SHADOW, {}, self._unseen))
        try:
            other = await method(request, None)
        except Exception as error:
            logger.info("alias %s: its shadow failed: %s", alias, type(error).__name__)
            result = "error"
        else:
            result = "same" if essence(other) == answered else "different"
        self._metrics.shadow.labels(alias, shadow.name, shadow.version, result).inc()


def essence(response: Any) -> object:
    """Returns the part of an answer that is compared: labels, spans, texts or order, not scores."""
    if isinstance(response, classification_pb2.ClassifyResponse):
        return [result.labels[0].label if result.labels else None for result in response.results]
    if isinstance(response, classification_pb2.ClassifyTokensResponse):
        return [[(span.label, span.start, span.end) for span in result.spans] for result in response.results]
    if isinstance(response, classification_pb2.RankResponse):
        return [result.index for result in response.results]
    if isinstance(response, generation_pb2.GenerateResponse):
        return [
            (completion.text, [(call.name, call.arguments) for call in completion.tool_calls])
            for completion in response.completions
        ]
    # Embeddings of two models are never comparable, so they count as different.
    return object()
