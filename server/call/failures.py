"""Exceptions as callers and the log may see them. Neither gets an exception's own text: it may contain a prompt."""

import logging
import re
from typing import NamedTuple

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from tuneserve.server.call.context import HEADER, Call
from tuneserve.server.call.errors import CallError, Full, InvalidInput, Overloaded, Unavailable, to_status
from tuneserve.server.call.request_log import Sample
from tuneserve.server.engine.interface import EngineFailed, RequestRefused

logger = logging.getLogger(__name__)


def for_caller(error: Exception) -> Exception:
    """Returns an error of the engine interface as one that callers may see; other errors unchanged."""
    if isinstance(error, RequestRefused):
        return InvalidInput(f"sampling.{error.field}" if error.field else "sampling", "the engine can't do this")
    if isinstance(error, EngineFailed):
        return Unavailable(error.told)
    return error


def status(error: Exception, call: Call) -> status_pb2.Status:
    """Returns the status for the caller of a failed call, or of a failed request of a stream.

    Logs the type and place of an unexpected exception, not its text, which may contain what the caller sent.
    """
    shown = for_caller(error)
    if not isinstance(shown, CallError):
        logger.error("request %s: %s failed: %s", call.request_id, call.method, where(error))
    return to_status(shown, call.request_id)


class Ending(NamedTuple):
    """How a failed call ends: the arguments of gRPC's `abort`."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def ending(error: Exception, status: status_pb2.Status, request_id: str) -> Ending:
    """Returns how a call ends with a status."""
    found = rpc_status.to_status(status)
    trailing = [*found.trailing_metadata, (HEADER, request_id)]
    if isinstance(error, Overloaded):
        trailing.append(("grpc-retry-pushback-ms", str(error.retry_ms)))
    elif isinstance(error, Full):
        # No retry.
        trailing.append(("grpc-retry-pushback-ms", "-1"))
    return Ending(found.code, found.details, tuple(trailing))


def forget_frames(error: BaseException) -> None:
    """Drops the tracebacks of an error and of its causes, and so the references that their frames hold."""
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__


def where(error: BaseException) -> str:
    """Returns the types of an exception and of its causes, with the lines of code they came through."""
    parts = []
    seen: BaseException | None = error
    while seen is not None:
        places, trace = [], seen.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            places.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno} {code.co_name}")
            trace = trace.tb_next
        parts.append(f"{type(seen).__name__} at {' > '.join(places[-6:])}")
        seen = seen.__cause__
    return "; from ".join(parts)


# The arguments in a log message, or the placeholders for them.
_FILLED = re.compile(r"\[.*\]|%[sdr]")


class _Redacted(logging.Filter):
    """Keeps the message of a log record and drops its arguments."""

    def filter(self, record: logging.LogRecord) -> bool:
        first = _FILLED.sub("…", str(record.msg).split("\n", 1)[0])
        error = record.exc_info[1] if record.exc_info else None
        record.msg = f"{first}: {where(error)}" if error else first
        record.args, record.exc_info, record.exc_text = (), None, None
        return True


class _Sampled(_Redacted):
    """Keeps some records: callers can cause any number of them, for example by calls that they cancel."""

    def __init__(self) -> None:
        super().__init__()
        self.sample = Sample()

    def filter(self, record: logging.LogRecord) -> bool:
        left_out = self.sample.take()
        if left_out is None:
            return False
        super().filter(record)
        record.msg += f" ({left_out} lines left out)" if left_out else ""
        return True


_FILTERS = {"asyncio": _Redacted(), "grpc._cython.cygrpc": _Sampled()}


def redact_libraries() -> None:
    """Keeps callers' headers and exceptions' texts out of the logs of gRPC and asyncio. gRPC would log a key that is
    not text, asyncio an exception that nobody caught.
    """
    for name, filter_ in _FILTERS.items():
        logging.getLogger(name).addFilter(filter_)
