"""A call's place in a model's queue, and its way to the engine: it is masked, is tokenized, waits for its turn, and is
run.
"""

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuneserve.server.call.context import Call, current
from tuneserve.server.call.errors import DeadlinePassed
from tuneserve.server.engine.interface import Delta, Encoded, EngineFailed, PoolTask, Sampling
from tuneserve.server.models.admission import TOO_LATE, Entry
from tuneserve.server.models.model import Model
from tuneserve.server.text.masking import M, Redacted, redacted
from tuneserve.server.text.tokenizer import Text, Tokens


@asynccontextmanager
async def admitted(model: Model, request: M, priority: int = 0) -> AsyncIterator[tuple["Place", Redacted[M]]]:
    """Holds a place in a model's queue for the current call, with its checked request, masked: the model sees no other.

    Raises Overloaded or Unavailable at once, and InvalidInput for personal data that can't be masked.
    """
    model.check_ready()
    call = current()
    place = Place(max(priority, call.tenant.priority), call.deadline, model=model, call=call)
    depth = call.metrics.queue_depth.labels(model.name)
    with model.admission.enter(place):
        depth.inc()
        try:
            yield place, await place.masked(request) if model.masks else Redacted(request)
        finally:
            depth.dec()


@dataclass(eq=False, kw_only=True)
class Place(Entry):
    """A call's place in a model's queue."""

    model: Model
    call: Call
    prompt_tokens: int = 0  # that the engine read, or counts as read

    async def masked(self, request: M, path: str = "") -> Redacted[M]:
        """Returns a request, or the field at that path, with the personal data masked that the model's settings name.
        Measured as a stage of the call. Raises InvalidInput.
        """
        with self.call.stage("tokenize"):
            return await redacted(self.model.redactor, request, path, self.model.tokenizer.apart)

    async def encode(
        self, texts: Sequence[Text], *, special_tokens: bool = True, truncate: bool = False, most: int | None = None
    ) -> list[Tokens]:
        """See Tokenizer.encode; measured as a stage of the call. Raises Overloaded if calls hold too much."""
        with self.call.stage("tokenize"):
            return await self.model.tokenizer.encode(
                texts, special_tokens=special_tokens, truncate=truncate, most=most, hold=self.call.hold
            )

    async def pool(self, inputs: Sequence[Encoded], task: PoolTask) -> list[NDArray[np.float32]]:
        """Waits for a turn and returns the engine's output for the inputs; see interface.Engine.pool."""
        tokens = sum(len(one.token_ids) for one in inputs)
        async with self._turn(len(inputs), tokens, tokens):
            return await self.model.engine.pool(self.call.ticket(self.priority), inputs, task)

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
        call, name = self.call, self.model.name
        # Looked up once: there may be thousands of tokens.
        written, last = call.metrics.tokens_out.labels(name), 0.0
        first, gap = call.metrics.first_token.labels(name), call.metrics.token_gap.labels(name)

        def wrote(tokens: int) -> None:
            if cost is None:
                call.count(completion=tokens)
                written.inc(tokens)

        with self.model.adapter(adapter).in_use() if adapter else contextlib.nullcontext("") as adapter_id:
            async with self._turn(sampling.n, len(token_ids), len(token_ids) if cost is None else cost):
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

    @asynccontextmanager
    async def _turn(self, sequences: int, tokens: int, cost: int) -> AsyncIterator[None]:
        """Waits for a turn in the engine, and counts the prompt tokens that it costs when it has come."""
        model, call, started = self.model, self.call, time.monotonic()
        with call.stage("queue"):
            await model.admission.wait(self, sequences, tokens)
        try:
            call.metrics.queue_wait.labels(model.name).observe(time.monotonic() - started)
            # The event loop may be late to end a wait whose deadline has passed.
            if call.expired():
                raise DeadlinePassed(TOO_LATE)
            self.prompt_tokens += cost
            call.count(prompt=cost)
            call.metrics.tokens_in.labels(model.name).inc(cost)
            with call.stage("engine"):
                yield
        except EngineFailed as error:
            error.told = model.told  # the reason, for callers
            raise
        finally:
            model.admission.release(sequences)
