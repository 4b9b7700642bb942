"""A call's place in a model's queue, and its way to the engine: it is masked, is tokenized, waits for its turn, and is
run.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tuneserve.server import concurrency
from tuneserve.server.call.context import Call, current
from tuneserve.server.call.errors import DeadlinePassed
from tuneserve.server.engine.interface import Delta, Encoded, EngineFailed, PoolTask, Sampling
from tuneserve.server.models.admission import TOO_LATE, Entry, Turn
from tuneserve.server.models.model import Model
from tuneserve.server.text.masking import M, Redacted, redacted
from tuneserve.server.text.tokenizer import Text, Tokens

# What of a call's inputs takes one turn: others need not wait until all of a large batch have run.
_TOGETHER = 64
_TOKENS_TOGETHER = 4096


@asynccontextmanager
async def admitted(model: Model, request: M, priority: int = 0) -> AsyncIterator[tuple["Place", Redacted[M]]]:
    """Holds a place in a model's queue for the current call, with its checked request, masked: the model sees no other.

    Raises Overloaded or Unavailable at once, and InvalidInput for personal data that can't be masked.
    """
    model.check_ready()
    call = current()
    place = Place(max(priority, call.tenant.priority), call.deadline, calls=call.requests, model=model, call=call)
    depth = call.metrics.queue_depth.labels(model.name)
    with model.admission.enter(place):
        depth.inc(place.calls)
        try:
            yield place, await place.masked(request) if model.masks else Redacted(request)
        finally:
            depth.dec(place.calls)


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
        """Waits for turns and returns the engine's output for the inputs; see interface.Engine.pool."""
        if len(inputs) <= _TOGETHER and sum(len(one.token_ids) for one in inputs) <= _TOKENS_TOGETHER:
            return await self._pool(inputs, task)
        parts = list(concurrency.pieces(inputs, _size, _TOKENS_TOGETHER))
        rows = await concurrency.together(lambda part: self._pool(part, task), parts, len(parts))
        return [row for part in rows for row in part]

    async def _pool(self, inputs: Sequence[Encoded], task: PoolTask) -> list[NDArray[np.float32]]:
        lengths = [len(one.token_ids) for one in inputs]
        async with self._turn(len(inputs), sum(lengths), max(lengths)) as turn:
            return await self.model.engine.pool(self.call.ticket(turn.priority), inputs, task)

    def generate(
        self,
        token_ids: Sequence[int],
        sampling: Sampling,
        stream: bool,
        adapter: str = "",
        cost: int | None = None,
    ) -> AsyncGenerator[Delta, None]:
        """Waits for turns and yields the engine's output for the prompt, of all completions as it comes; see
        interface.Engine.generate. The first completion reads the prompt for all.

        If given, `cost` is counted as prompt tokens, in place of all tokens read and written: for prompts that are
        mostly in the engine's prefix cache.
        """
        prompt_read = None if sampling.n == 1 else asyncio.Event()

        def one(index: int) -> AsyncGenerator[Delta, None]:
            own = sampling
            if sampling.n > 1:
                seed = None if sampling.seed is None else sampling.seed + index
                own = replace(sampling, n=1, seed=seed, prompt_logprobs=None if index else sampling.prompt_logprobs)
            return self._completion(index, token_ids, own, stream, adapter, cost, prompt_read)

        return one(0) if sampling.n == 1 else concurrency.merged([one(index) for index in range(sampling.n)])

    def again(self, length: int) -> int:
        """Returns how many of a prompt's tokens the engine reads if the prompt is in its cache already: the last ones,
        one at least.
        """
        block = self.model.engine.cache_block
        return (length - 1) % block + 1 if block else length

    async def _completion(
        self,
        index: int,
        token_ids: Sequence[int],
        sampling: Sampling,
        stream: bool,
        adapter: str,
        cost: int | None,
        prompt_read: asyncio.Event | None,
    ) -> AsyncGenerator[Delta, None]:
        """Waits for a turn and yields one of a call's completions."""
        call, name = self.call, self.model.name
        # Looked up once: there may be thousands of tokens.
        written, last = call.metrics.tokens_out.labels(name), 0.0
        first, gap = call.metrics.first_token.labels(name), call.metrics.token_gap.labels(name)

        def wrote(tokens: int) -> None:
            if cost is None:
                call.count(completion=tokens)
                written.inc(tokens)

        reads = len(token_ids) if cost is None else cost
        if prompt_read and index:
            await prompt_read.wait()
            reads = self.again(len(token_ids))
        with self.model.adapters.get(adapter).in_use() if adapter else contextlib.nullcontext("") as adapter_id:
            async with self._turn(1, reads, reads) as turn:

                def read() -> None:
                    self.model.admission.read(turn)
                    if prompt_read:
                        prompt_read.set()

                is_awaited = turn.reads or (prompt_read is not None and not index)
                ticket = self.call.ticket(turn.priority, adapter_id, wrote, read if is_awaited else None)
                outputs = self.model.engine.generate(ticket, token_ids, sampling, stream)
                async with contextlib.aclosing(outputs):
                    async for delta in outputs:
                        if is_awaited:
                            is_awaited = False
                            read()
                        new = len(delta.token_ids)
                        wrote(new)
                        if stream and new:
                            now = time.monotonic()
                            if last:
                                gap.observe((now - last) / new)
                            elif not index:
                                first.observe(now - call.began)
                            last = now
                        yield replace(delta, index=index) if index else delta

    @asynccontextmanager
    async def _turn(self, sequences: int, tokens: int, longest: int) -> AsyncIterator[Turn]:
        """Waits for a turn in the engine, and counts the prompt tokens that it reads; the longest prompt's length tells
        how.
        """
        model, call, started = self.model, self.call, time.monotonic()
        with call.stage("queue"):
            turn = await model.admission.wait(self, sequences, tokens, longest > model.engine.long_prompt)
        try:
            call.metrics.queue_wait.labels(model.name).observe(time.monotonic() - started)
            # The event loop may be late to end a wait whose deadline has passed.
            if call.expired():
                raise DeadlinePassed(TOO_LATE)
            self.prompt_tokens += tokens
            call.count(prompt=tokens)
            call.metrics.tokens_in.labels(model.name).inc(tokens)
            with call.stage("engine"):
                yield turn
        except EngineFailed as error:
            error.told = model.told  # the reason, for callers
            raise
        finally:
            model.admission.release(turn)


def _size(one: Encoded) -> int:
    """Returns an input's part of a turn, in tokens."""
    return max(len(one.token_ids), _TOKENS_TOGETHER // _TOGETHER)
