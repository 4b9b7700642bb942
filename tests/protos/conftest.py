"""Node and the packages of its client, for the tests that call the API from another language."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google.rpc
import pytest

from .. import node as nodejs

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
CLIENT = Path(__file__).with_name("node")
# Where google/rpc/*.proto are.
GOOGLE = Path(next(iter(google.rpc.__path__))).parents[1]


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
    sources = [(CLIENT / "package-lock.json").read_bytes()]
    directory = kept("node", sources, lambda directory: nodejs.install(CLIENT, directory))
    return Node(nodejs.commands()[0], directory / "node_modules")
