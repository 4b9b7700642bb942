"""Worker: does jobs by calling `vllm serve` over HTTP; each caller has a session with a connection of its own.

It is as light as its gRPC counterpart: one event loop that only reads and decodes every message. aiohttp comes with
vLLM.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp

from tuneserve.benchmarks.serving.load.apis.openai import events, posted, session
from tuneserve.benchmarks.serving.workers.job import Job, Outcome
from tuneserve.benchmarks.serving.workers.worker import drive, watch, work
from tuneserve.client.endpoint import Endpoint

# A job may be one long call.
_TIMEOUT_SECONDS = 3600.0


@asynccontextmanager
async def connected(job: Job) -> AsyncIterator[Sequence[aiohttp.ClientSession]]:
    """Yields sessions with an open connection each."""
    async with AsyncExitStack() as stack:
        sessions = [
            await stack.enter_async_context(session(Endpoint(job.target, timeout=_TIMEOUT_SECONDS)))
            for _ in range(job.connections)
        ]
        await asyncio.gather(*(_touch(one) for one in sessions))
        yield sessions


async def _touch(connection: aiohttp.ClientSession) -> None:
    async with connection.get("/health") as response:
        await response.read()


async def send(
    connection: aiohttp.ClientSession, job: Job, piece: Sequence[str] | Sequence[int], outcome: Outcome
) -> None:
    """Makes one call."""
    if job.texts:
        answer = await _post(connection, "/classify", {"model": job.model, "input": list(piece)})
        outcome.texts += len(answer["data"])
        outcome.prompt_tokens += answer["usage"]["prompt_tokens"]
        outcome.answers += map(_label, answer["data"]) if job.answers else []
        return
    body = {
        "model": job.model,
        "prompt": list(piece),
        "max_tokens": job.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    if not job.stream:
        answer = await _post(connection, "/v1/completions", body)
        outcome.output_tokens += answer["usage"]["completion_tokens"]
        outcome.prompt_tokens += answer["usage"]["prompt_tokens"]
        outcome.answers += [answer["choices"][0]["text"]] if job.answers else []
        return
    body |= {"stream": True, "stream_options": {"include_usage": True}}

    async def tokens() -> AsyncIterator[int]:
        async with posted(connection, "/v1/completions", body) as response:
            async for message in events(response):
                # Messages don't say how many tokens they carry; the last one has the total.
                if usage := message.get("usage"):
                    outcome.prompt_tokens += usage["prompt_tokens"]
                    outcome.output_tokens += usage["completion_tokens"]
                yield len(message["choices"])

    await watch(tokens(), outcome)


def _label(answer: Any) -> str:
    """The best label of a text: vLLM tells that one, Infinity all with their scores, in no order."""
    best = max(answer, key=lambda one: one["score"]) if isinstance(answer, list) else answer
    return str(best["label"])


async def _post(connection: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> dict[str, Any]:
    async with posted(connection, path, body) as response:
        answer: dict[str, Any] = await response.json()
        return answer


if __name__ == "__main__":
    work(lambda: lambda job: asyncio.run(drive(job, connected, send)))
