"""OpenAI's API, and vLLM's additions, against a server in this process that answers without a model."""

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tuneserve.benchmarks.serving.load import apis
from tuneserve.benchmarks.serving.load.apis import openai
from tuneserve.benchmarks.serving.load.bench import measure
from tuneserve.benchmarks.serving.load.processes import run
from tuneserve.call.channel import CallFailed, CallRefused
from tuneserve.client.endpoint import Endpoint
from tuneserve.errors import StepFailed, UserError

from ...conftest import SECONDS, Engine, settings


class Http(Engine):
    """Answers with 3 tokens a text; a stream has one token, then messages of at most two."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.peers: set[str] = set()
        self.refuse = self.breaks = False
        self.tells_tokens = True  # in each message of a stream

    async def models(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") == "Bearer wrong":
            return web.json_response({"error": {"message": "who are you?"}}, status=401)
        return web.json_response({"data": [{"id": "m"}]})

    async def pool(self, request: web.Request) -> web.Response:
        body = await self._take(request)
        size = len(body.get("input") or body["text_2"])
        return web.json_response({"data": [{}] * size, "usage": {"prompt_tokens": 3 * size}})

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await self._take(request)
        usage = {"prompt_tokens": 5, "completion_tokens": body["max_tokens"]}
        key = "message" if "messages" in body else ""
        if not body.get("stream"):
            return web.json_response({"choices": [_choice("ab", key)], "usage": usage})
        response = web.StreamResponse()
        await response.prepare(request)
        key, sent = key and "delta", 0
        if key:
            # As vLLM begins a chat: with the role.
            await _write(response, {"choices": [_choice("", key)], "usage": usage | {"completion_tokens": 0}})
        while sent < body["max_tokens"]:
            if self.breaks and sent:
                await _write(response, {"error": {"message": "engine dead"}})
                return response
            sent += min(2, body["max_tokens"] - sent) if sent else 1
            told = {"usage": usage | {"completion_tokens": sent}} if self.tells_tokens else {}
            await _write(response, {"choices": [_choice("ab", key)]} | told)
            await asyncio.sleep(0.002)
        await _write(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _take(self, request: web.Request) -> dict[str, Any]:
        body = await request.json()
        self.bodies.append((request.path, body))
        self.peers.add(str(request.transport.get_extra_info("peername")))
        if self.refuse:
            text = json.dumps({"error": {"message": "queue full"}})
            raise web.HTTPTooManyRequests(text=text, content_type="application/json")
        await self.work()
        return body


def _choice(text: str, key: str) -> dict[str, Any]:
    return {key: {"content": text}} if key else {"text": text}


async def _write(response: web.StreamResponse, message: dict[str, Any]) -> None:
    await response.write(f"data: {json.dumps(message)}\n\n".encode())


@asynccontextmanager
async def serving(secure: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Http, str]]:
    http, app = Http(), web.Application()
    app.add_routes([web.get("/v1/models", http.models)])
    app.add_routes([web.post(path, http.pool) for path in ("/classify", "/pooling", "/score", "/v1/embeddings")])
    app.add_routes([web.post(path, http.generate) for path in ("/v1/completions", "/v1/chat/completions")])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await (site := web.TCPSite(runner, "127.0.0.1", 0, ssl_context=secure)).start()
    yield http, f"127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    await runner.cleanup()


@pytest.fixture
async def http() -> AsyncIterator[tuple[Http, str]]:
    async with serving() as found:
        yield found


@pytest.mark.parametrize(
    ("call", "path"),
    [("classify", "/classify"), ("tokens", "/pooling"), ("rank", "/score"), ("embed", "/v1/embeddings")],
)
async def test_pooling(http: tuple[Http, str], call: str, path: str) -> None:
    server, target = http
    result = await measure(settings(target, "m", api="openai", call=call, batch=3))
    assert result.served.call == call
    assert result.figures["texts_per_s"] == pytest.approx(3 * result.calls / SECONDS, abs=0.01)
    assert result.figures["input_tokens_per_s"] == pytest.approx(9 * result.calls / SECONDS, abs=0.1)
    assert {one for one, _ in server.bodies} == {path}
    assert len(server.peers) == server.most_running == 4
    body = server.bodies[0][1]
    assert body["model"] == "m"
    assert len(body["text_2" if call == "rank" else "input"]) == 3


@pytest.mark.parametrize("tells_tokens", [True, False])
@pytest.mark.parametrize(("call", "path"), [(None, "/v1/completions"), ("chat", "/v1/chat/completions")])
async def test_streams(http: tuple[Http, str], call: str | None, path: str, tells_tokens: bool) -> None:
    server, target = http
    server.tells_tokens = tells_tokens
    result = await measure(settings(target, "m", api="openai", call=call))
    figures = result.figures
    assert figures["output_tokens_per_s"] * SECONDS == pytest.approx(6 * result.calls, abs=6 * 4)
    assert figures["input_tokens_per_s"] == pytest.approx(5 * result.calls / SECONDS, abs=0.1)
    # One token, then messages of two, two and one.
    assert figures["tokens_per_message"] == 1.5
    assert figures["ttft_ms_p50"] >= 5
    assert figures["tpot_ms_p50"] > 0
    assert {one for one, _ in server.bodies} == {path}
    body = server.bodies[0][1]
    assert (body["max_tokens"], body["temperature"], body["ignore_eos"]) == (6, 0, True)
    assert body["messages"][0]["role"] == "user" if call else body["prompt"]


async def test_whole_answers(http: tuple[Http, str]) -> None:
    result = await measure(settings(http[1], "m", api="openai", call="chat", stream=False))
    assert result.figures["output_tokens_per_s"] * SECONDS == pytest.approx(6 * result.calls, abs=6 * 4)
    assert "ttft_ms_p50" not in result.figures


async def test_calls_of_an_open_loop_do_not_wait_for_a_connection(http: tuple[Http, str]) -> None:
    server, target = http
    server.delay = 0.5
    await measure(settings(target, "m", api="openai", call="classify", rate=100.0, connections=2))
    assert server.most_running > 10


async def test_several_processes(http: tuple[Http, str]) -> None:
    server, target = http
    chosen = settings(target, "m", api="openai", connections=3, processes=2)
    result = await asyncio.to_thread(run, chosen)
    assert result.calls > 0
    assert len(server.peers) == 3


async def test_errors(http: tuple[Http, str]) -> None:
    server, target = http
    with pytest.raises(UserError, match="model other is not served"):
        await measure(settings(target, "other", api="openai"))
    with pytest.raises(CallRefused, match="HTTP 401: who are you"):
        await measure(settings(target, "m", api="openai", server=Endpoint(target, key="wrong")))
    with pytest.raises(CallFailed, match=r"no server answers at 127\.0\.0\.1:1"):
        await measure(settings("127.0.0.1:1", "m", api="openai"))
    server.breaks = True
    with pytest.raises(StepFailed, match="ERROR: engine dead"):
        await measure(settings(target, "m", api="openai"))
    server.refuse = True
    with pytest.raises(StepFailed, match="HTTP 429: queue full"):
        await measure(settings(target, "m", api="openai"))
    server.refuse, server.delay = False, 30.0
    slow = Endpoint(target, timeout=0.1)
    with pytest.raises(StepFailed, match="DEADLINE_EXCEEDED: no answer in time"):
        await measure(settings(target, "m", api="openai", server=slow))


async def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, openai.__name__, raising=False)
    monkeypatch.delattr(apis, "openai")
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(UserError, match="--api openai needs aiohttp"):
        await measure(settings("127.0.0.1:1", "m", api="openai"))


async def test_tls_with_client_certificates(certified: tuple[Path, Path]) -> None:
    key, certificate = certified
    secure = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate)
    secure.load_cert_chain(certificate, key)
    secure.verify_mode = ssl.CERT_REQUIRED
    async with serving(secure) as (server, target):
        endpoint = Endpoint(target, ca=certificate, certificate=certificate, certificate_key=key)
        result = await measure(settings(target, "m", api="openai", call="classify", server=endpoint))
        assert result.calls > 0
        for wrong in (Endpoint(target, tls=True), Endpoint(target)):
            with pytest.raises(CallFailed, match="no server answers"):
                await measure(settings(target, "m", api="openai", server=wrong))
    assert {path for path, _ in server.bodies} == {"/classify"}
