"""A call's place in a model's queue, and its requests from there to the engine."""

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuneserve.server.call.context import current
from tuneserve.server.call.errors import DeadlinePassed
from tuneserve.server.engine.interface import Delta, Encoded, EngineFailed, PoolTask, Sampling
from tuneserve.server.models.admission import TOO_LATE, Entry
from tuneserve.server.models.model import Model


@contextmanager
def admitted(model: Model, priority: int = 0) -> Iterator["Place"]:
    """Holds a place in a model's queue for the current call. Raises Overloaded or Unavailable at once."""
    model.check_ready()
    call = current()
    priority = max(priority, call.tenant.priority)
    depth = call.metrics.queue_depth.labels(model.name)
    with model.admission.enter(priority) as entry:
        depth.inc()
        try:
            yield Place(model, priority, entry)
        finally:
            depth.dec()


@dataclass(frozen=True)
class Place:
    """A call's place in a model's queue."""

    model: Model
    priority: int
    entry: Entry

    async def pool(self, inputs: Sequence[Encoded], task: PoolTask) -> list[NDArray[np.float32]]:
        """Waits for a turn and returns the engine's output for the inputs; see interface.Engine.pool."""
        tokens = sum(len(one.token_ids) for one in inputs)
        async with self._turn(len(inputs), tokens):
            self._read(tokens)
            with current().stage("engine"):
                return await self.model.engine.pool(current().ticket(self.priority), inputs, task)

    async def generate(
        self,
        token_ids: Sequence[int],
        sampling: Sampling,
        stream: bool,
        adapter: str = "",
        cost: int | None = None,
    ) -> AsyncGenerator[list[Delta], None]:
        """Waits for a turn and yields the engine's output for the prompt; see interface.Engine.generate.

        If given, `cost` is counted as prompt tokens, in place of all tokens read and written: for prompts that are
        mostly in the engine's prefix cache.
        """
        call, name = current(), self.model.name
        # Looked up once: there may be thousands of tokens.
        written, last = call.metrics.tokens_out.labels(name), 0.0
        first, gap = call.metrics.first_token.labels(name), call.metrics.token_gap.labels(name)

        def wrote(tokens: int) -> None:
            if cost is None:
                call.count(completion=tokens)
                written.inc(tokens)

        with self.model.adapter(adapter).in_use() if adapter else contextlib.nullcontext("") as adapter_id:
            async with self._turn(sampling.n, len(token_ids)):
                self._read(len(token_ids) if cost is None else cost)
                with call.stage("engine"):
                    ticket = call.ticket(self.priority, adapter_id, wrote)
                    outputs = self.model.engine.generate(ticket, token_ids, sampling, stream)
                    async with contextlib.aclosing(outputs):
                        async for output in outputs:
                            new = sum(len(delta.token_ids) for delta in output)
                            wrote(new)
                            if stream and new:
                                now = time.monotonic()
                                if last:
                                    gap.observe((now - last) / new)
                                else:
                                    first.observe(now - call.began)
                                last = now
                            yield output

    def _read(self, tokens: int) -> None:
        current().count(prompt=tokens)
        current().metrics.tokens_in.labels(self.model.name).inc(tokens)

    @asynccontextmanager
    async def _turn(self, sequences: int, tokens: int) -> AsyncIterator[None]:
        model, call, started = self.model, current(), time.monotonic()
        with call.stage("queue"):
            await model.admission.wait(sequences, tokens, self.priority, self.entry, call.deadline)
        try:
            call.metrics.queue_wait.labels(model.name).observe(time.monotonic() - started)
            # The event loop may be late to end a wait whose deadline has passed.
            if call.expired():
                raise DeadlinePassed(TOO_LATE)
            yield
        except EngineFailed as error:
            error.told = model.told  # the reason, for callers
            raise
        finally:
            model.admission.release(sequences)
