"""A fake engine: numbers in place of a model."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, Gauge

from tuneserve.server.engine.interface import (
    Alternative,
    Delta,
    Encoded,
    EngineFailed,
    Logprob,
    Parsers,
    Sampling,
    Ticket,
)
from tuneserve.server.turns import in_turns


@dataclass
class FakeEngine:
    """Answers by token id, so that a test can tell which input an answer belongs to. `running` counts its slots."""

    labels: int
    max_length: int = 32
    max_num_seqs: int = 4
    vocab_size: int = 300
    long_prompt: int = 1000
    long_prompts: int = 3
    cache_block: int = 8
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    parsers: Parsers | None = None
    delay: float = 0.0  # seconds for each step
    broken: Exception | None = None
    killed: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False
    running: int = 0
    tickets: list[Ticket] = field(default_factory=list)
    pooled: list[Encoded] = field(default_factory=list)
    sampled: list[Sampling] = field(default_factory=list)
    adapters: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Gauge("vllm:num_requests_running", "Running.", registry=self.registry).set_function(lambda: self.running)

    async def start(self) -> None:
        pass

    async def pool(self, ticket: Ticket, inputs: Sequence[Encoded], task: str) -> list[np.ndarray]:
        with self._slots(ticket, len(inputs)):
            await self._step()
            self.pooled.extend(inputs)
            return [self._vector(np.asarray(one.token_ids), task) async for one in in_turns(inputs)]

    def _vector(self, ids: np.ndarray, task: str) -> np.ndarray:
        if task == "embed":
            return np.array([3, 4, len(ids)], dtype=np.float32)
        if task == "token_classify":
            return np.eye(self.labels, dtype=np.float32)[ids % self.labels] * 9
        return np.eye(self.labels, dtype=np.float32)[len(ids) % self.labels] * 2

    async def generate(
        self, ticket: Ticket, token_ids: Sequence[int], sampling: Sampling, stream: bool
    ) -> AsyncGenerator[Delta, None]:
        with self._slots(ticket, 1):
            self.sampled.append(sampling)
            for piece in self.pieces(token_ids, sampling, stream):
                await self._step()
                yield piece

    def pieces(self, token_ids: Sequence[int], sampling: Sampling, stream: bool) -> Sequence[Delta]:
        """What it writes, as each completion: "ab" for each token."""
        if stream:
            return [Delta(0, "ab", [7])] * (sampling.max_tokens - 1) + [Delta(0, "ab", [7], finish="length")]
        count, token = sampling.max_tokens, (*sampling.allowed_token_ids, 7)[0]
        others = [Alternative(index, -index, "é") for index in range(sampling.logprobs or 0)]
        made = [] if sampling.logprobs is None else [Logprob(token, -0.5, others)] * count
        prompt = [] if sampling.prompt_logprobs is None else [Logprob(id_, -0.5, []) for id_ in token_ids[1:]]
        return [Delta(0, "ab" * count, [token] * count, made, "length", prompt_logprobs=prompt)]

    async def load_adapter(self, name: str, directory: Path) -> None:
        self.adapters[name] = directory

    async def unload_adapter(self, name: str) -> None:
        del self.adapters[name]

    async def ping(self) -> None:
        try:
            await self._step()
        except Exception as error:
            # As the real one: what becomes of requests says nothing of the engine's life.
            if isinstance(error, EngineFailed):
                raise

    def cpu_seconds(self) -> dict[int, float]:
        return {1: time.monotonic()}

    def kill(self) -> None:
        self.killed.set()

    async def close(self) -> None:
        self.closed = True

    async def _step(self) -> None:
        await asyncio.sleep(self.delay)
        if self.killed.is_set():
            raise EngineFailed("killed")
        if self.broken:
            raise self.broken

    @contextmanager
    def _slots(self, ticket: Ticket, count: int) -> Iterator[None]:
        self.tickets.append(ticket)
        self.running += count
        try:
            yield
        finally:
            self.running -= count
