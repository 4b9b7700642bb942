"""Bars as lines: few, whole, and of libraries too."""

import io
import subprocess
import sys
from contextlib import redirect_stderr

import pytest
from tqdm import tqdm
from tqdm.auto import tqdm as libraries

from tuneserve.machine import progress


def test_a_quick_bar_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.lines():
        for _ in tqdm(range(1000), desc="quick", dynamic_ncols=True):
            pass
        for _ in libraries(range(1000), desc="quick", leave=False):
            pass
    assert capsys.readouterr().err == ""


def test_a_slow_bar_prints_whole_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with progress.lines():
        bar = tqdm(total=4, desc="training", unit="step", mininterval=0)
        for _ in range(4):
            bar.update(1)
        bar.close()
    text = capsys.readouterr().err
    assert "\r" not in text
    lines = text.splitlines()
    assert all(line.startswith("training: ") for line in lines)
    assert lines[-1].startswith("training: 100% 4/4 [")


def test_all_bars_together_print_one_line_each_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many short ones in a row, as of llm-compressor, are one long wait."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.lines():
        for block in range(40):
            bar = libraries(total=2, desc=f"({block}/40): Calibrating", mininterval=0)
            for _ in range(2):
                now += 1
                bar.set_postfix_str("loss 1.0")
                bar.update(1)
            bar.close()
    assert len(capsys.readouterr().err.splitlines()) == 8


def test_lines_come_through_where_standard_error_is_redirected(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with progress.lines(), redirect_stderr(io.StringIO()) as redirected:
        for _ in libraries(range(3), desc="calibrating", mininterval=0):
            pass
    assert "calibrating: 100% 3/3" in capsys.readouterr().err
    assert redirected.getvalue() == ""


def test_bars_are_tqdms_own_again_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.lines():
        pass
    for _ in tqdm(range(3), desc="own"):
        pass
    assert "\rown: " in capsys.readouterr().err


CODE = """
import sys
from tuneserve import cli
from tuneserve.machine import progress

@cli.cli.command()
def wait():
    from tqdm.auto import tqdm
    progress.SECONDS = 0.0
    for _ in tqdm(range(3), desc="waiting", mininterval=0):
        pass

sys.argv = ["tuneserve", "wait"]
cli.main()
"""


def test_commands_print_lines_where_there_is_no_terminal() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, timeout=120, check=True)
    assert b"\r" not in result.stderr
    assert result.stderr.decode().splitlines()[-1].startswith("waiting: 100% 3/3 [")
