"""Programs of Debian's packages: this machine's own, or unpacked, not installed, into the tests' cache."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


def program(name: str, package: str, kept: Callable[..., Path]) -> Path:
    """Returns a program of a package. Skips the test where there is neither the program nor Debian's packages."""
    if found := shutil.which(name):
        return Path(found)
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        pytest.skip(f"this machine lacks {name}: apt-get install {package}")
    return kept(package, [], lambda directory: _unpack(package, directory)) / "usr" / "bin" / name


def _unpack(package: str, directory: Path) -> None:
    download = ["apt-get", "-q", "download", package]
    fetched = subprocess.run(download, cwd=directory, capture_output=True, text=True, timeout=300, check=False)
    if fetched.returncode:
        pytest.skip(f"apt-get can't download {package}: {fetched.stderr[-500:]}")
    for archive in directory.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", archive, directory], check=True, timeout=300)
        archive.unlink()
