"""A fake engine with troubles: it starts late or is slow, breaks, hangs, and is killed."""

import asyncio
import time
from dataclasses import dataclass, field

from tuneserve.server.engine.interface import EngineFailed

from .fake_engine import FakeEngine


@dataclass
class TroubledEngine(FakeEngine):
    """Sound, until a test says otherwise."""

    delay: float = 0.0  # seconds for each step
    broken: Exception | None = None  # what each step raises
    hangs: bool = False
    starts: bool = True  # or waits with that
    share: float = 0.0  # of a core, that its process uses while it hangs or has not started
    killed: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False

    async def start(self) -> None:
        while not self.starts:
            await asyncio.sleep(0.01)
            if self.killed.is_set():
                raise EngineFailed("killed")

    async def ping(self) -> None:
        try:
            await self._step()
        except Exception as error:
            # As the real one: what becomes of requests says nothing of the engine's life.
            if isinstance(error, EngineFailed):
                raise

    def cpu_seconds(self) -> dict[int, float]:
        # Two processes: one idles.
        is_sound = self.starts and not self.hangs
        return {1: time.monotonic() * (1.0 if is_sound else self.share), 2: 5.0}

    def kill(self) -> None:
        self.killed.set()

    async def close(self) -> None:
        self.closed = True

    async def _step(self) -> None:
        await asyncio.sleep(self.delay)
        if self.hangs:
            await self.killed.wait()
        if self.killed.is_set():
            raise EngineFailed("killed")
        if self.broken:
            raise self.broken
