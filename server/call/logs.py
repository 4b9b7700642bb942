"""Standard error that never blocks its writers: a thread of its own writes the text out.

A pipe that nobody reads blocks the thread that writes to it: here the event loop, and with it every call, health and
SIGTERM. So text waits in a queue, bounded in bytes; when the queue is full, text is dropped and counted. Waking the
thread costs the loop more than writing a line, so the thread collects what arrives within some hundredths of a second.
"""

import atexit
import contextlib
import io
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue

_STDERR = 2
_MOST_BYTES = 4 << 20
# How long an exit waits for the last lines to be read.
_LAST_SECONDS = 2.0
# How long a line waits for others.
_GATHER_SECONDS = 0.05


class Stderr(io.TextIOBase):
    """A stream that accepts text at once, from any thread. Each piece of text is written whole or dropped."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self) -> None:
        """`dropped` is called for each piece of text that is lost; it must not block either."""
        self.dropped: Callable[[], object] = lambda: None
        # Not `Queue`: the garbage collector may log while the same thread puts a line there.
        self._queue: SimpleQueue[bytes] = SimpleQueue()
        self._taking = threading.RLock()
        self._taken = self._done = 0  # bytes
        threading.Thread(target=self._run, name="stderr", daemon=True).start()
        atexit.register(self.drain)

    def write(self, text: str) -> int:
        """Takes a text; returns its length, as streams do."""
        data = text.encode(self.encoding, self.errors)
        with self._taking:
            full = self._taken - self._done + len(data) > _MOST_BYTES
            if not full:
                self._taken += len(data)
                self._queue.put(data)
        if full:
            self.dropped()
        return len(text)

    def drain(self, seconds: float = _LAST_SECONDS) -> None:
        """Waits until everything is written, for at most `seconds`."""
        deadline = time.monotonic() + seconds
        while self._done < self._taken and time.monotonic() < deadline:
            time.sleep(0.01)

    def writable(self) -> bool:
        """Always true."""
        return True

    def isatty(self) -> bool:
        """Whether standard error is a terminal."""
        return os.isatty(_STDERR)

    def fileno(self) -> int:
        """Writes to this file descriptor may block."""
        return _STDERR

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            time.sleep(_GATHER_SECONDS)
            for data, texts in _together([first, *self._rest()]):
                try:
                    _write(data)
                except OSError:
                    # Its reader is gone.
                    for _ in range(texts):
                        self.dropped()
                self._done += len(data)

    def _rest(self) -> Iterator[bytes]:
        with contextlib.suppress(Empty):
            while True:
                yield self._queue.get_nowait()


def never_wait() -> Stderr:
    """Replaces standard error by such a stream, also in the log handlers that write to it now."""
    before, stream = sys.stderr, Stderr()
    sys.stderr = stream
    for name in (None, *logging.root.manager.loggerDict):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                handler.setStream(stream)
    return stream


def handler() -> logging.Handler:
    """Returns a log handler on such a stream, for the engines' processes: see vllm_logging.json."""
    return logging.StreamHandler(sys.stderr if isinstance(sys.stderr, Stderr) else Stderr())


def _together(texts: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yields the bytes of each write, and how many texts they hold. Up to PIPE_BUF bytes are written to a pipe at once:
    lines of other processes never get in between.
    """
    parts: list[bytes] = []
    for text in texts:
        if parts and sum(map(len, parts)) + len(text) > select.PIPE_BUF:
            yield b"".join(parts), len(parts)
            parts = []
        parts.append(text)
    yield b"".join(parts), len(parts)


def _write(data: bytes) -> None:
    while data:
        try:
            data = data[os.write(_STDERR, data) :]
        except BlockingIOError:
            # Another process that shares standard error has made it non-blocking.
            select.select((), (_STDERR,), ())
