"""One of a server's processes: the command that users start, on its own cores, with its own settings.

It is killed when its parent ends, however that ends, and its engines with it (`tuneserve.machine.lifetime`).
"""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tuneserve.server.config import ServerConfig
from tuneserve.serving import Addresses

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1


class Process:
    """A process, started again and again."""

    def __init__(self, number: int, config: ServerConfig, folder: Path, cores: Collection[int]) -> None:
        """`folder` is that of all processes of the server."""
        self.number = number
        self.addresses: Addresses | None = None  # once its models answer
        self._folder = folder
        self._cores = cores
        self._ready = folder / f"{number}.json"
        self._config = folder / f"{number}.yaml"
        # As they are now, wherever this one came from: a restart must not find other settings, nor other ports.
        values = json.dumps(config.model_dump(), default=lambda path: str(Path(path).absolute()))
        self._config.write_text(values, encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None
        self._input = -1

    @property
    def pid(self) -> int:
        """Its process id, once it was started."""
        assert self._process
        return self._process.pid

    def start(self, environment: Mapping[str, str]) -> None:
        """Starts it."""
        self._ready.unlink(missing_ok=True)
        # -P: nothing is imported from the working directory.
        command = [sys.executable, "-P", "-m", "tuneserve.cli", *(["-v"] if logger.isEnabledFor(logging.DEBUG) else [])]
        command += ["serve", "--config", str(self._config), "--ready-file", str(self._ready)]
        read, self._input = os.pipe()
        # A process group of its own: Ctrl-C, and what else is sent to a whole group, reaches the parent alone, which
        # passes it on. A second SIGTERM would mean: at once.
        with _on(self._cores):
            self._process = subprocess.Popen(
                [*command, "--end-with-input", "--shared", str(self._folder)],
                stdin=read,
                env=environment,
                process_group=0,
            )
        os.close(read)

    async def ready(self) -> Addresses:
        """Waits until its models answer. Returns its addresses."""
        while True:
            if self._ready.exists():
                self.addresses = Addresses.read(self._ready)
                return self.addresses
            await asyncio.sleep(_POLL_SECONDS)

    async def ended(self) -> int:
        """Waits until it has ended. Returns its exit status."""
        assert self._process
        while True:
            if (status := self._process.poll()) is not None:
                self.addresses = None
                os.close(self._input)
                return status
            await asyncio.sleep(_POLL_SECONDS)

    def send(self, number: int) -> None:
        """Sends it a signal, if it runs."""
        if self._process:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it at once, even if it is stopped."""
        self.send(signal.SIGKILL)


@contextmanager
def _on(cores: Collection[int]) -> Iterator[None]:
    """Processes that this thread starts in the block run on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
