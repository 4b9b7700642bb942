"""The command line, as a shell runs it."""

import os
import subprocess
import sys


def tuneserve(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tuneserve.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | {"TUNESERVE_PRELOADED": "1", "HF_HUB_OFFLINE": "1"},
    )


def refused(*arguments: object) -> str:
    """Runs a command that must refuse its input: status 2, an error, no traceback. Returns what it printed."""
    result = tuneserve(*arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert "rror: " in result.stderr
    return result.stderr
