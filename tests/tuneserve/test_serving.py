"""Starting and stopping a server as a child process. Real engines are in the tests marked `engine`."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tuneserve import serving as module
from tuneserve.errors import StepFailed
from tuneserve.machine import progress
from tuneserve.serving import serving


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that were started."""
    processes: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def remember(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        processes.append(popen(*args, **kwargs))
        return processes[-1]

    monkeypatch.setattr(module.subprocess, "Popen", remember)
    return processes


def test_a_server_that_ends_early_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StepFailed) as caught, serving({"m": tmp_path / "nothing-here"}):
        pass
    message = str(caught.value)
    assert "the server ended with status 2 before it answered: " in message
    assert "nothing-here" in message
    assert "nothing-here" in caplog.text
    assert "tuneserve serve" in caught.value.hint


def test_nothing_is_imported_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another checkout's server, started in this one, is that checkout's: `benchmarks/serving/before.py`."""
    (tmp_path / "tuneserve.py").write_text("raise SystemExit('from the working directory')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StepFailed, match="nothing-here"), serving({"m": tmp_path / "nothing-here"}):
        pass


LOG = """\
2026-11-28 15:28:25,731 INFO tuneserve.server.app: gRPC on 127.0.0.1:8033
vLLM EngineCore[77] ERROR 2026-11-28 15:29:01,004 vllm.v1.engine.core: EngineCore failed to start.
Traceback (most recent call last):
  File "/x/vllm/v1/engine/core.py", line 5, in run
ValueError: No available memory for the cache blocks.
{requests}
2026-11-28 15:29:15,327 WARNING tuneserve.server.models.supervisor: model m: its engine computes one step for over 60 s
2026-11-28 15:30:15,327 ERROR tuneserve.server.models.supervisor: model m: its engine gave no sign of life for 60 s
{requests}
2026-11-28 15:30:16,327 INFO tuneserve.server.app: draining: running calls have 30 s
"""
REQUESTS = '{"time":"2026-11-28T15:30:15.4Z","request_id":"1","status":"UNAVAILABLE","error_ms":3}\n' * 40


def test_an_error_inside_shows_what_the_server_found_wrong_and_no_request_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(process: Any, ready: Path, log: Path, seconds: float) -> Any:
        log.write_text(LOG.format(requests=REQUESTS))
        raise StepFailed("UNAVAILABLE")

    monkeypatch.setattr(module, "_wait", fail)
    with pytest.raises(StepFailed), serving({"m": tmp_path / "nothing-here"}):
        pass
    assert caplog.messages[-1].splitlines()[1:] == [
        "  EngineCore failed to start.",
        "  ValueError: No available memory for the cache blocks.",
        "  model m: its engine computes one step for over 60 s",
        "  model m: its engine gave no sign of life for 60 s",
    ]


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (
            "ValueError: No memory for the cache.\n"
            "vLLM EngineCore[7] ERROR 2026-11-28 15:29:01,004 vllm.v1.engine.core: EngineCore failed to start.\n"
            "error: model m: the engine did not start: Engine core initialization failed. See root cause above.\n"
            "hint:  its own log is above\n" + REQUESTS,
            "ValueError: No memory for the cache.",
        ),
        ("error: m: no such directory\nhint:  an error is here\n", "m: no such directory"),
        ("Killed\n", "Killed"),
        ("", "its log is empty"),
    ],
)
def test_the_cause_is_found_in_the_log(tmp_path: Path, lines: str, cause: str) -> None:
    log = tmp_path / "log"
    log.write_text(lines)
    assert module._cause(log) == cause


def test_a_server_that_takes_too_long_is_stopped(tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> None:
    with (
        pytest.raises(StepFailed, match="did not answer within 0 s"),
        serving({"m": tmp_path / "nothing-here"}, start_seconds=0.0),
    ):
        pass
    assert [process.returncode is not None for process in started] == [True]


def test_waiting_for_it_shows_how_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with progress.lines(), pytest.raises(StepFailed), serving({"m": tmp_path / "nothing-here"}):
        pass
    assert "starting the server: 00:0" in capsys.readouterr().err


def test_ctrl_c_stops_the_server(
    tmp_path: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt), serving({"m": tmp_path / "nothing-here"}):
        pass
    assert [process.returncode is not None for process in started] == [True]


SHARES = """
import os, time
block = bytes(range(256)) * (200 << 12)
if os.fork():
    print("shared", flush=True)
time.sleep(300)
"""


def test_memory_that_processes_share_counts_once() -> None:
    with subprocess.Popen([sys.executable, "-c", SHARES], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"shared\n"
        try:
            assert 200 << 20 < module.resident_bytes(process.pid) < 300 << 20
        finally:
            for one in (*psutil.Process(process.pid).children(), process):
                one.kill()
