"""Runs the product's own server as a child process, for programs that talk to it by gRPC like any other client."""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tuneserve.errors import StepFailed

logger = logging.getLogger(__name__)

# Loading a large model from a slow disk takes minutes; one that takes longer than this hangs.
START_SECONDS = 900.0
# The server drains before it ends; what is still running after this is killed.
STOP_SECONDS = 40.0
_LOG_LINES = 25


@dataclass(frozen=True)
class Addresses:
    """Where a running server listens, each as host:port."""

    grpc: str
    metrics: str
    admin: str = ""  # empty without `admin_listen`
    health: str = ""  # empty without `health_listen`


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    addresses: Addresses
    log: Path  # what it prints; gone when it is stopped


@contextmanager
def serving(models: Mapping[str, Path], start_seconds: float = START_SECONDS) -> Iterator[Addresses]:
    """Serves checkpoints by name on free local ports while the block runs; yields when all of them answer.

    The server is stopped whatever ends the block; when that is an error, the end of the server's log is logged.
    Raises StepFailed when the server does not start.
    """
    flags = [flag for name, path in models.items() for flag in ("--model", f"{name}={path.resolve()}")]
    with launched(*flags, start_seconds=start_seconds) as server:
        yield server.addresses


@contextmanager
def launched(
    *flags: str, start_seconds: float = START_SECONDS, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """The same with the flags of `tuneserve serve`, and the process at hand. `environment` is ours when None."""
    command = [sys.executable, "-m", "tuneserve.cli", "serve", *flags]
    command += ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    with tempfile.TemporaryDirectory(prefix="tuneserve-") as scratch:
        ready, log = Path(scratch, "ready.json"), Path(scratch, "server.log")
        with log.open("wb") as output:
            # A process group of its own: Ctrl-C reaches only us, and a kill reaches the engines too.
            process = subprocess.Popen(
                [*command, "--ready-file", str(ready)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
        try:
            yield Server(process, _wait(process, ready, log, start_seconds), log)
        except Exception:
            logger.error("end of the server's log:\n%s", _tail(log))
            raise
        finally:
            _stop(process)


def resident_bytes(pid: int) -> int:
    """Returns the memory that a process and its children hold."""
    process = psutil.Process(pid)
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))


def _wait(process: subprocess.Popen[bytes], ready: Path, log: Path, seconds: float) -> Addresses:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if ready.exists():
            return Addresses(**json.loads(ready.read_text(encoding="utf-8")))
        if process.poll() is not None:
            raise StepFailed(f"the server ended with status {process.returncode} before it answered: {_last(log)}")
        time.sleep(0.1)
    raise StepFailed(f"the server did not answer within {seconds:.0f} s: {_last(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    finally:
        # Also after a clean end: an engine that outlived its server would hold memory.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_LOG_LINES:])


def _last(log: Path) -> str:
    """Returns the last line of the log that names an error, or the very last."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "no log")
