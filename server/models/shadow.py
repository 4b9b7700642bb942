"""Shadow traffic: a copy of an alias's unary calls for inference goes to another version, and only whether it agrees is
counted.

The caller never waits for it and never sees it. Copies beyond a bound are dropped, and counted as dropped.
"""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from tuneserve.server.call import context
from tuneserve.server.call.tenants import SHADOW
from tuneserve.server.metrics import Metrics
from tuneserve.server.models.model import Model
from tuneserve.server.models.registry import Models
from tuneserve.v1 import classification_pb2, embedding_pb2, generation_pb2

logger = logging.getLogger(__name__)

# Copies at once, and bytes of their requests.
_MOST, _MOST_BYTES = 64, 32 << 20
# What is copied. A copy of another call that names a model could change something, as one of LoadAdapter would.
_INFERENCE = (
    classification_pb2.ClassifyRequest,
    classification_pb2.ClassifyTokensRequest,
    classification_pb2.RankRequest,
    embedding_pb2.EmbedRequest,
    generation_pb2.GenerateRequest,
)


class Shadows:
    """The copies under way."""

    def __init__(self, models: Models, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics
        self._unseen = Metrics()  # where copies are counted as calls: only what callers sent is shown
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
        # A context of its own: what the copy takes is not the caller's. Of the answer, only what is compared is kept.
        comparing = self._compare(method, copy, essence(response), alias, route.shadow)
        task = contextvars.Context().run(asyncio.create_task, comparing)
        self._tasks.add(task)
        self._bytes += size
        task.add_done_callback(partial(self._done, size))

    async def stop(self) -> None:
        """Cancels the copies under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

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
    """What two answers are compared by: labels, spans, texts or orders, but not the scores' last digits."""
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
