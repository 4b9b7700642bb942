"""Runs the product's own server as a child process, for programs that talk to it by gRPC like any other client."""

import json
import logging
import os
import re
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
from tqdm import tqdm

from tuneserve.errors import StepFailed

logger = logging.getLogger(__name__)

# Loading a large model from a slow disk takes minutes; one that takes longer than this hangs.
START_SECONDS = 900.0
# The server drains before it ends; what is still running after this is killed.
STOP_SECONDS = 40.0
_LOG_LINES = 8
_HINT = "tuneserve serve --model NAME=PATH shows all that the server says"
# Lines of the server's log that tell what is wrong: of its loggers and vLLM's, of the command line, and the last line
# of a traceback. Without the time and the logger's name.
_PROBLEM = re.compile(
    r"[\d-]+ [\d:,]+ (?:WARNING|ERROR|CRITICAL) [\w.]+: (.+)"
    r"|vLLM \S+ (?:WARNING|ERROR|CRITICAL) [\d-]+ [\d:,]+ [\w.]+: (.+)"
    r"|error: (.+)"
    r"|((?:\w+\.)*\w*(?:Error|Exception): .+)"
)
# What vLLM says when a process of its own has said more.
_ELSEWHERE = re.compile("root cause above|engine ?core .*failed", re.IGNORECASE)


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

    The server is stopped whatever ends the block; when that is an error, the server's own last ones are logged.
    Raises StepFailed when the server does not start.
    """
    with launched(*model_flags(models), start_seconds=start_seconds) as server:
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
            # A process group of its own: Ctrl-C reaches only us, and a kill reaches the engines too. It ends with us,
            # also when we are killed: then its input, which we never write to, is closed.
            process = subprocess.Popen(
                [*command, "--ready-file", str(ready), "--end-with-input"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
        try:
            yield Server(process, _wait(process, ready, log, start_seconds), log)
        except Exception:
            if said := _problems(log):
                logger.error("the server said:\n%s", "\n".join(f"  {line}" for line in said))
            raise
        finally:
            _stop(process)


def model_flags(models: Mapping[str, str | os.PathLike[str]]) -> list[str]:
    """Returns the flags of `tuneserve serve` for checkpoints by name."""
    return [flag for name, path in models.items() for flag in ("--model", f"{name}={Path(path).resolve()}")]


def resident_bytes(pid: int) -> int:
    """Returns the memory that a process and its children hold."""
    process = psutil.Process(pid)
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))


def _wait(process: subprocess.Popen[bytes], ready: Path, log: Path, seconds: float) -> Addresses:
    deadline = time.monotonic() + seconds
    with tqdm(desc="starting the server", bar_format="{desc}: {elapsed}", leave=False, mininterval=1) as clock:
        while time.monotonic() < deadline:
            if ready.exists():
                return Addresses(**json.loads(ready.read_text(encoding="utf-8")))
            if process.poll() is not None:
                raise StepFailed(f"the server {_end(process.returncode)} before it answered: {_cause(log)}", _HINT)
            clock.update(0)
            time.sleep(0.1)
    raise StepFailed(f"the server did not answer within {seconds:.0f} s: {_cause(log)}", _HINT)


def _stop(process: subprocess.Popen[bytes]) -> None:
    # As Ctrl-C does: nobody else calls it.
    process.send_signal(signal.SIGINT)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    finally:
        # Also after a clean end: an engine that outlived its server would hold memory.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _end(status: int) -> str:
    if status == -signal.SIGKILL:
        return "was killed, as the system does where memory is short,"
    return f"ended with status {status}"


def _problems(log: Path) -> list[str]:
    """Returns the last warnings and errors in the log, each once, the cause last."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    found = ("".join(match.groups(default="")) for match in map(_PROBLEM.match, lines) if match)
    return list(dict.fromkeys(found))[-_LOG_LINES:]


def _cause(log: Path) -> str:
    """Returns the last error in the log that does not point at another; without errors, its last line."""
    found = _problems(log)
    told = [line for line in found if not _ELSEWHERE.search(line)] or found
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return told[-1] if told else next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
