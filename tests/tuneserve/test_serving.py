"""Starting and stopping a server as a child process. Real engines are in the tests marked `engine`."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tuneserve import serving as module
from tuneserve.errors import StepFailed
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
    assert "the server ended with status 2 before it answered: error:" in message
    assert "nothing-here" in message
    assert "hint:" in caplog.text


def test_a_server_that_takes_too_long_is_stopped(tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> None:
    with (
        pytest.raises(StepFailed, match="did not answer within 0 s"),
        serving({"m": tmp_path / "nothing-here"}, start_seconds=0.0),
    ):
        pass
    assert [process.returncode is not None for process in started] == [True]


def test_ctrl_c_stops_the_server(
    tmp_path: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt), serving({"m": tmp_path / "nothing-here"}):
        pass
    assert [process.returncode is not None for process in started] == [True]
