"""A fake engine: all that the server needs of one. What its model answers is in `fake_model.py`, what may go wrong with
it in `troubled_engine.py`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from tuneserve.server.engine.interface import Delta, Encoded, Engine, Parsers, Sampling, Ticket
from tuneserve.server.turns import in_turns

from . import fake_model


@dataclass
class FakeEngine(Engine):
    """Keeps what it is asked for, and counts its slots in `running`. What the interface has besides does nothing."""

    labels: int
    max_length: int = 32
    max_num_seqs: int = 4
    vocab_size: int = 300
    long_prompt: int = 1000
    long_prompts: int = 3
    cache_block: int = 8
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    parsers: Parsers | None = None
    writes: Callable[[Sequence[int], Sampling, bool], Sequence[Delta]] = fake_model.pieces
    running: int = 0
    tickets: list[Ticket] = field(default_factory=list)
    pooled: list[Encoded] = field(default_factory=list)
    sampled: list[Sampling] = field(default_factory=list)
    adapters: dict[str, Path] = field(default_factory=dict)

    async def pool(self, ticket: Ticket, inputs: Sequence[Encoded], task: str) -> list[np.ndarray]:
        with self._slots(ticket, len(inputs)):
            await self._step()
            self.pooled.extend(inputs)
            return [fake_model.vector(one.token_ids, task, self.labels) async for one in in_turns(inputs)]

    async def generate(self, ticket, token_ids, sampling, stream) -> AsyncGenerator[Delta, None]:
        with self._slots(ticket, 1):
            self.sampled.append(sampling)
            for piece in self.writes(token_ids, sampling, stream):
                await self._step()
                yield piece

    async def load_adapter(self, name: str, directory: Path) -> None:
        self.adapters[name] = directory

    async def unload_adapter(self, name: str) -> None:
        del self.adapters[name]

    async def _step(self) -> None:
        await asyncio.sleep(0)

    @contextmanager
    def _slots(self, ticket: Ticket, count: int) -> Iterator[None]:
        self.tickets.append(ticket)
        self.running += count
        try:
            yield
        finally:
            self.running -= count
