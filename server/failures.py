"""Exceptions as callers and as the log may know them. Neither gets an exception's own text: it may repeat a prompt."""

from tuneserve.server.errors import InvalidInput, Unavailable
from tuneserve.server.seam import EngineFailed, RequestRefused


def for_caller(error: Exception) -> Exception:
    """Returns what the seam raises as one of the errors that callers may see; others as they are."""
    if isinstance(error, RequestRefused):
        return InvalidInput(f"sampling.{error.field}" if error.field else "sampling", "the engine can't do this")
    if isinstance(error, EngineFailed):
        return Unavailable("the model's engine failed")
    return error


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
