"""The id of the call that is being answered, for whoever writes a log line or talks to the engine."""

import re
import secrets
from collections.abc import Sequence
from contextvars import ContextVar

HEADER = "x-request-id"

_current: ContextVar[str] = ContextVar("request_id")
# What a caller may choose: it is echoed, logged and names the request in the engine.
_ALLOWED = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id() -> str:
    """Returns the id that is unique to this call."""
    return _current.get()


def begin(metadata: Sequence[tuple[str, str | bytes]]) -> str:
    """Takes the id the caller sent, or makes one, and returns it as the caller knows it.

    The engine's id has a part of our own behind it: two calls may carry the same id of a caller's.
    """
    sent = next((value for key, value in metadata if key == HEADER), "")
    known = sent if isinstance(sent, str) and _ALLOWED.fullmatch(sent) else secrets.token_hex(8)
    _current.set(f"{known}-{secrets.token_hex(4)}")
    return known
