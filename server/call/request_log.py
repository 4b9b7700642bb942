"""One JSON log line a call, and the same timings for its caller.

Anybody can make any number of calls without a valid key, so the log lines of such calls are sampled.

A line has no prompt, output, key or address: only the tenant, the model, and what the call cost. It has `content` only
if the server's settings ask for it. Lines are written without a logger's prefix, so that a log collector can parse
them.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

from tuneserve.server.call.context import Call
from tuneserve.server.call.quota import Bucket

logger = logging.getLogger("tuneserve.requests")

_write: Callable[[str], object] = logger.info
_encode = json.JSONEncoder(separators=(",", ":")).encode
_AT_ONCE = 10
STAGES = ("queue", "tokenize", "engine")


def to_stderr() -> None:
    """Writes the lines to standard error. Without this they go where the process's other log lines go."""
    global _write
    # Standard error takes each line whole, see logs.py. These lines need nothing else that a logger does.
    _write = lambda line: sys.stderr.write(f"{line}\n")  # noqa: E731


class Sample:
    """Chooses which log lines of unauthenticated calls are written: bursts of ten, and one a second. The others are
    counted, in the next line that is written and by `dropped`.
    """

    def __init__(
        self, dropped: Callable[[], object] = lambda: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._dropped = dropped
        self._clock = clock
        self._room = Bucket(1.0, _AT_ONCE)
        self._left_out = 0

    def take(self) -> int | None:
        """Returns how many lines were left out since the last one written, or None if this one is left out, too."""
        now = round(self._clock() * 1e9)
        if self._room.wait(1, now):
            self._left_out += 1
            self._dropped()
            return None
        self._room.take(1, now)
        left_out, self._left_out = self._left_out, 0
        return left_out


def log(call: Call, code_name: str, seconds: float, left_out: int = 0) -> None:
    """Writes the line of a call that ended, with the number of lines left out before it."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "request_id": call.request_id,
        "method": call.method,
        "tenant": call.tenant.name,
        "model": call.model,
        "version": call.version,
        "status": code_name,
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": call.completion_tokens,
        "ms": _ms(seconds * 1e9),
        **{f"{stage}_ms": _ms(call.stage_ns.get(stage, 0)) for stage in STAGES},
    }
    if left_out:
        line["left_out"] = left_out
    if call.content is not None:
        line["content"] = call.content
    _write(_encode(line))


def server_timing(call: Call) -> str:
    """Returns where a call's time went, in milliseconds, as W3C Server-Timing writes it: `queue;dur=1.2, …`."""
    return ", ".join(f"{stage};dur={_ms(call.stage_ns[stage])}" for stage in STAGES if stage in call.stage_ns)


def _ms(nanoseconds: float) -> float:
    # To the microsecond: a stage of a small classifier takes a few hundred of them.
    return round(nanoseconds / 1e6, 3)
