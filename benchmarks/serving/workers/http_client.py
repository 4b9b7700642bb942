"""Worker: does jobs by calling `vllm serve` over HTTP; each caller has a session with a connection of its own.

It is as light as its gRPC counterpart: one event loop that only reads and decodes every message. aiohttp comes with
vLLM.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp

from tuneserve.benchmarks.serving.workers.job import Job, Outcome
from tuneserve.benchmarks.serving.workers.worker import drive, watch, work

_DATA = b"data: "
_END = b"[DONE]"


@asynccontextmanager
async def connected(job: Job) -> AsyncIterator[Sequence[aiohttp.ClientSession]]:
    """Yields sessions with an open connection each."""
    async with AsyncExitStack() as stack:
        sessions = [
            await stack.enter_async_context(
                aiohttp.ClientSession(
                    f"http://{job.target}",
                    connector=aiohttp.TCPConnector(limit=1),
                    timeout=aiohttp.ClientTimeout(total=None),
                    raise_for_status=True,
                )
            )
            for _ in range(job.connections)
        ]
        await asyncio.gather(*(_touch(session) for session in sessions))
        yield sessions


async def _touch(session: aiohttp.ClientSession) -> None:
    async with session.get("/health") as response:
        await response.read()


async def send(
    session: aiohttp.ClientSession, job: Job, piece: Sequence[str] | Sequence[int], outcome: Outcome
) -> None:
    """Makes one call."""
    if job.texts:
        answer = await _post(session, "/classify", {"model": job.model, "input": list(piece)})
        outcome.texts += len(answer["data"])
        outcome.prompt_tokens += answer["usage"]["prompt_tokens"]
        return
    body = {
        "model": job.model,
        "prompt": list(piece),
        "max_tokens": job.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    if not job.stream:
        answer = await _post(session, "/v1/completions", body)
        outcome.output_tokens += answer["usage"]["completion_tokens"]
        outcome.prompt_tokens += answer["usage"]["prompt_tokens"]
        return
    body |= {"stream": True, "stream_options": {"include_usage": True}}

    async def tokens() -> AsyncIterator[int]:
        async with session.post("/v1/completions", json=body) as response:
            async for line in response.content:
                if not line.startswith(_DATA) or line.startswith(_END, len(_DATA)):
                    continue
                message = json.loads(line[len(_DATA) :])
                # Messages don't say how many tokens they carry; the last one has the total.
                if usage := message.get("usage"):
                    outcome.prompt_tokens += usage["prompt_tokens"]
                    outcome.output_tokens += usage["completion_tokens"]
                yield len(message["choices"])

    await watch(tokens(), outcome)


async def _post(session: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> dict[str, Any]:
    async with session.post(path, json=body) as response:
        answer: dict[str, Any] = await response.json()
        return answer


if __name__ == "__main__":
    work(lambda: lambda job: asyncio.run(drive(job, connected, send)))
