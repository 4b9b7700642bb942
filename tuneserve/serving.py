"""Runs tuneserve's own server as a child process, for code that calls it over gRPC like any other client."""

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
from tuneserve.machine import disk

logger = logging.getLogger(__name__)

# Loading a large model from a slow disk takes minutes; after this time the server is taken to hang.
START_SECONDS = 900.0
# The server drains before it ends; if it still runs after this time, it is killed.
STOP_SECONDS = 40.0
_LOG_LINES = 8
_HINT = "tuneserve serve --model NAME=PATH shows the server's whole log"
# Lines of the server's log that report a problem: warnings and errors of its loggers and vLLM's, errors of the command
# line, and the last line of a traceback. Without the time and the logger's name.
_PROBLEM = re.compile(
    r"[\d-]+ [\d:,]+ (?:WARNING|ERROR|CRITICAL) [\w.]+: (.+)"
    r"|vLLM \S+ (?:WARNING|ERROR|CRITICAL) [\d-]+ [\d:,]+ [\w.]+: (.+)"
    r"|error: (.+)"
    r"|((?:\w+\.)*\w*(?:Error|Exception): .+)"
)
# vLLM's messages that refer to the error of another process.
_ELSEWHERE = re.compile("root cause above|engine ?core .*failed", re.IGNORECASE)


@dataclass(frozen=True)
class Addresses:
    """The addresses of a running server, each as host:port."""

    grpc: str
    metrics: str
    admin: str = ""  # empty without `admin_listen`
    health: str = ""  # empty without `health_listen`

    @classmethod
    def read(cls, file: Path) -> "Addresses":
        """Reads a ready file."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))

    def write(self, file: Path) -> None:
        """Writes a ready file, whole or not at all."""
        temporary = file.with_suffix(".tmp")
        with disk.watched(file):
            temporary.write_text(json.dumps(vars(self)) + "\n", encoding="utf-8")
            temporary.replace(file)


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    addresses: Addresses
    log: Path  # its output; deleted when it is stopped


@contextmanager
def serving(models: Mapping[str, Path], start_seconds: float = START_SECONDS) -> Iterator[Addresses]:
    """Serves checkpoints by name on free local ports while the block runs; yields when all of them answer.

    The server is stopped however the block ends; if it ends with an error, the server's own last errors are logged.
    Raises StepFailed if the server does not start.
    """
    with launched(*model_flags(models), start_seconds=start_seconds) as server:
        yield server.addresses


@contextmanager
def launched(
    *flags: str,
    start_seconds: float = START_SECONDS,
    environment: Mapping[str, str] | None = None,
    python: Path | None = None,
) -> Iterator[Server]:
    """The same with flags of `tuneserve serve`; yields the process, too. `environment` and `python` are this process's
    own if None.
    """
    # -P: nothing is imported from the working directory.
    command = [str(python or sys.executable), "-P", "-m", "tuneserve.cli", "serve", *flags]
    command += ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    with tempfile.TemporaryDirectory(prefix="tuneserve-") as scratch:
        ready, log = Path(scratch, "ready.json"), Path(scratch, "server.log")
        with log.open("wb") as output:
            # A process group of its own: Ctrl-C reaches only this process, and a kill reaches the engines, too. The
            # server ends with this process even if that is killed: its standard input is closed then.
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
    """Returns the resident memory of a process and its children. What they share counts once, if the system tells."""
    process = psutil.Process(pid)
    found = [one.memory_full_info() for one in (process, *process.children(recursive=True))]
    return sum(getattr(one, "pss", one.rss) for one in found)


def _wait(process: subprocess.Popen[bytes], ready: Path, log: Path, seconds: float) -> Addresses:
    deadline = time.monotonic() + seconds
    with tqdm(desc="starting the server", bar_format="{desc}: {elapsed}", leave=False, mininterval=1) as clock:
        while time.monotonic() < deadline:
            if ready.exists():
                return Addresses.read(ready)
            if process.poll() is not None:
                raise StepFailed(f"the server {_end(process.returncode)} before it answered: {_cause(log)}", _HINT)
            clock.update(0)
            time.sleep(0.1)
    raise StepFailed(f"the server did not answer within {seconds:.0f} s: {_cause(log)}", _HINT)


def _stop(process: subprocess.Popen[bytes]) -> None:
    # Like Ctrl-C, without lingering: it has no other callers.
    process.send_signal(signal.SIGINT)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    finally:
        # Also after a clean end: an engine that outlives its server would keep its memory.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _end(status: int) -> str:
    if status == -signal.SIGKILL:
        return "was killed, perhaps because memory ran out,"
    return f"ended with status {status}"


def _problems(log: Path) -> list[str]:
    """Returns the last warnings and errors in the log, each once, the cause last."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    found = ("".join(match.groups(default="")) for match in map(_PROBLEM.match, lines) if match)
    return list(dict.fromkeys(found))[-_LOG_LINES:]


def _cause(log: Path) -> str:
    """Returns the last error in the log that does not refer to another; without errors, its last line."""
    found = _problems(log)
    told = [line for line in found if not _ELSEWHERE.search(line)] or found
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return told[-1] if told else next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
