"""OpenAI's API over HTTP, and what `vllm serve` adds to it: /classify, /pooling and /score. aiohttp comes with vLLM.

The server does not tell its model's task: `call` names it, or the model generates. Streams tell the number of tokens in
each message if the server knows `continuous_usage_stats`, as vLLM does. Otherwise a message counts as one token, and
those that are missing in the total at the end are added to the last message.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp

from tuneserve.benchmarks.serving.load.calls import CALLS, Message, Refused, Send, Served
from tuneserve.benchmarks.serving.load.inputs import Request
from tuneserve.benchmarks.serving.load.settings import Settings
from tuneserve.call.channel import HINTS, CallFailed, CallRefused
from tuneserve.client.endpoint import Endpoint
from tuneserve.errors import UserError

_DATA, _END = b"data: ", b"[DONE]"
_PATHS = {
    "classify": "/classify",
    "tokens": "/pooling",
    "rank": "/score",
    "embed": "/v1/embeddings",
    "chat": "/v1/chat/completions",
    "generate": "/v1/completions",
}
_STREAM = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[Served, list[Send]]]:
    """See the package."""
    async with AsyncExitStack() as stack:
        # A connection has one call at a time: an open loop, in which calls do not wait for each other, opens more.
        limit = 0 if settings.is_open else 1
        sessions = [
            await stack.enter_async_context(session(settings.server, limit)) for _ in range(settings.connections)
        ]
        await asyncio.gather(*(_check(one, settings) for one in sessions))
        call = settings.call or "generate"
        served = Served(task=CALLS[call], call=call)
        send = _generating if served.generates else _pooling
        yield served, [send(one, call, settings) for one in sessions]


def session(server: Endpoint, limit: int = 1) -> aiohttp.ClientSession:
    """Returns a session with at most `limit` connections; 0 is no limit."""
    scheme, secure = "http", None
    if server.secure:
        scheme, secure = "https", ssl.create_default_context(cafile=server.ca)
        if server.certificate:
            secure.load_cert_chain(server.certificate, server.certificate_key)
    return aiohttp.ClientSession(
        f"{scheme}://{server.target}",
        connector=aiohttp.TCPConnector(limit=limit, ssl=secure or True),
        timeout=aiohttp.ClientTimeout(total=server.timeout),
        headers={"Authorization": f"Bearer {server.key}"} if server.key else {},
    )


@asynccontextmanager
async def posted(session: aiohttp.ClientSession, path: str, body: Any) -> AsyncIterator[aiohttp.ClientResponse]:
    """Yields the response to a request. Raises Refused for any failure, in the block, too."""
    try:
        async with session.post(path, json=body) as response:
            if response.status != 200:
                raise Refused(f"HTTP {response.status}", _reason(await response.text()))
            yield response
    except TimeoutError:
        raise Refused("DEADLINE_EXCEEDED", "no answer in time") from None
    except aiohttp.ClientError as error:
        raise Refused("UNAVAILABLE", str(error)) from None


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """Yields the messages of a stream. Raises Refused if one is an error."""
    async for line in response.content:
        if line.startswith(_DATA) and not line.startswith(_END, len(_DATA)):
            event = json.loads(line[len(_DATA) :])
            if "error" in event:
                raise Refused("ERROR", _reason(event))
            yield event


async def _check(session: aiohttp.ClientSession, settings: Settings) -> None:
    """Opens the connection, and checks that the server accepts the key and has the model, where it lists models."""
    try:
        async with session.get("/v1/models") as response:
            if response.status in (401, 403):
                raise CallRefused(f"HTTP {response.status}: {_reason(await response.text())}", HINTS["UNAUTHENTICATED"])
            models = [one["id"] for one in (await response.json())["data"]] if response.status == 200 else []
    except (aiohttp.ClientError, TimeoutError) as error:
        raise CallFailed(f"no server answers at {settings.server.target}: {error}", "set --target HOST:PORT") from None
    if models and settings.model not in models:
        raise UserError(f"model {settings.model} is not served", f"served: {', '.join(models)}")


def _pooling(session: aiohttp.ClientSession, call: str, settings: Settings) -> Send:
    async def send(request: Request) -> AsyncIterator[Message]:
        texts = list(request.texts)
        body: dict[str, Any] = {"model": settings.model}
        body |= {"text_1": request.query, "text_2": texts} if call == "rank" else {"input": texts}
        if call == "tokens":
            body["task"] = "token_classify"
        async with posted(session, _PATHS[call], body) as response:
            answer = await response.json()
        yield Message((answer.get("usage") or {}).get("prompt_tokens", 0))

    return send


def _generating(session: aiohttp.ClientSession, call: str, settings: Settings) -> Send:
    async def send(request: Request) -> AsyncIterator[Message]:
        body: dict[str, Any] = {"model": settings.model, "max_tokens": request.max_tokens}
        body |= {"temperature": 0, "ignore_eos": True, **(_STREAM if settings.stream else {})}
        if call == "chat":
            body["messages"] = [{"role": role, "content": text} for role, text in request.messages]
        else:
            body["prompt"] = request.texts[0]
        async with posted(session, _PATHS[call], body) as response:
            if not settings.stream:
                answer = await response.json()
                usage = answer["usage"]
                yield Message(usage["prompt_tokens"], usage["completion_tokens"], _text(answer))
                return
            prompt_tokens = tokens = 0
            async for event in events(response):
                text, usage = _text(event), event.get("usage") or {}
                all_prompt = usage.get("prompt_tokens", prompt_tokens)
                all_tokens = usage.get("completion_tokens", tokens + bool(text))
                yield Message(all_prompt - prompt_tokens, all_tokens - tokens, text, late=not event["choices"])
                prompt_tokens, tokens = all_prompt, all_tokens

    return send


def _text(answer: dict[str, Any]) -> str:
    """Returns the text of an answer or of one message of it, reasoning included."""
    text = ""
    for choice in answer["choices"]:
        message = choice.get("delta") or choice.get("message") or choice
        text += message.get("reasoning_content") or message.get("reasoning") or ""
        text += message.get("content") or message.get("text") or ""
    return text


def _reason(answer: str | dict[str, Any]) -> str:
    """Returns the message of an error: of its JSON, or as it is."""
    try:
        found = json.loads(answer) if isinstance(answer, str) else answer
        error = found.get("error", found)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        return str(answer)
