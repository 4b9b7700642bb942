"""Environments of peers: by name, in .cache, made by uv with pinned packages, and kept until the pins change.

uv asks the registry that it is configured for. As in the Makefile, it also gets pip's find-links, which it does not
read; without one, PyTorch's own index has the build for this machine.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuneserve.errors import StepFailed
from tuneserve.machine.runtime import has_nvidia_gpu

_CACHE = Path(__file__).parents[3] / ".cache"
FOLDER = _CACHE / "peers"


def made(name: str, packages: Sequence[str]) -> Path:
    """Returns the interpreter of an environment that has these packages. Raises StepFailed."""
    folder = FOLDER / name
    python, pins = folder / "bin" / "python", folder / "pins.txt"
    wanted = "\n".join(packages)
    if not pins.exists() or pins.read_text(encoding="utf-8") != wanted:
        links = os.environ.get("PIP_FIND_LINKS", "")
        backend = [] if links else ["--torch-backend", "auto" if has_nvidia_gpu() else "cpu"]
        uv, environment = _uv(), os.environ | {"UV_FIND_LINKS": links}
        run(name, [uv, "venv", "--clear", "--python", sys.executable, str(folder)], environment)
        run(name, [uv, "pip", "install", "--python", str(python), *backend, *packages], environment)
        # Last: an environment without it is made again.
        pins.write_text(wanted, encoding="utf-8")
    return python


def run(name: str, command: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
    """Runs a program to its end. Raises StepFailed with the last lines that it printed, but for uv's hints."""
    ended = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ended.returncode:
        said = [line.strip() for line in ended.stderr.splitlines() if line.strip() and not line.startswith("hint:")]
        reason = f"{name}: {Path(command[0]).name} ended with {ended.returncode}: {' '.join(said[-3:])}"
        raise StepFailed(reason, "\n".join(said[-15:]))


def _uv() -> str:
    """The Makefile's own uv, or one on the path."""
    for uv in (str(_CACHE / "uv" / "bin" / "uv"), "uv"):
        if found := shutil.which(uv):
            return found
    raise StepFailed("no uv makes the environments of peers", "make setup")
