"""A fake engine that stops: where it starts, or in a step."""

import asyncio
import time
from dataclasses import dataclass

from tuneserve.server.engine.interface import EngineFailed

from .fake_engine import FakeEngine


@dataclass
class TroubledEngine(FakeEngine):
    hangs: bool = False
    starts: bool = True  # or waits with that
    share: float = 0.0  # of a core, that its process uses while it hangs or is slow

    async def start(self) -> None:
        while not self.starts:
            await asyncio.sleep(0.01)
            if self.killed.is_set():
                raise EngineFailed("killed")

    def cpu_seconds(self) -> dict[int, float]:
        # Two processes: one idles.
        is_sound = self.starts and not self.hangs and not self.delay
        return {1: time.monotonic() * (1.0 if is_sound else self.share), 2: 5.0}

    async def _step(self) -> None:
        if self.hangs:
            await self.killed.wait()
        await super()._step()
