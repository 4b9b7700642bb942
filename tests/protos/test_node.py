"""The API from another language: a Node program that has nothing of ours but the .proto files calls every RPC.

The server is on fake engines, once open and once with keys; with them, an administrator's calls go to the public port.
"""

import asyncio
import pkgutil
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

import tuneserve.v1
from tuneserve.oip import inference_pb2
from tuneserve.server.call.tenants import hashed

from ..server.conftest import Served, serving
from ..server.models.test_administration import make_adapter
from .conftest import ROOT, Node
from .every_rpc import ADMIN, CLASSIFICATION, GENERATION, HEALTH, MODELS, PROMPT, Call, Json, every_rpc

KEY = "administrator-canary-key"
TENANTS = f'tenants: {{boss: {{keys: ["{hashed(KEY)}"], role: admin}}}}'


def like(part: Any, whole: Any) -> Any:
    """Returns as much of `whole` as `part` has."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return {key: like(value, whole.get(key)) for key, value in part.items()}
    if isinstance(part, list) and isinstance(whole, list) and len(part) == len(whole):
        return [like(*pair) for pair in zip(part, whole, strict=True)]
    return whole


@dataclass(frozen=True)
class Api:
    """A server, as Node sees it."""

    node: Node
    served: Served
    key: str | None

    async def call(self, *calls: Call, **options: Any) -> list[Json]:
        """What came of these calls; see client.js."""
        app = self.served.app
        return await self.node.calls(
            *(
                {
                    "address": app.admin_address if call.method.startswith(ADMIN) and not self.key else app.address,
                    "method": call.method,
                    "requests": call.requests,
                    "until": call.until,
                    "key": self.key,
                    **options,
                }
                for call in calls
            )
        )

    async def is_idle(self, model: str) -> None:
        for _ in range(1000):
            if not self.served.engines[model].running:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("still busy after ten seconds")


@pytest.fixture(scope="module", params=[None, KEY], ids=["open", "keyed"])
async def api(request, node, make_bert, make_llama, tmp_path_factory) -> AsyncIterator[Api]:
    root = tmp_path_factory.mktemp("root")
    make_bert().rename(root / "copy")
    make_adapter(root / "polite")
    (root / "tenants.yaml").write_text(TENANTS)
    tenants = {"tenants": root / "tenants.yaml"} if request.param else {}
    async with serving(make_bert, make_llama, models_root=root, **tenants) as served:
        yield Api(node, served, request.param)


async def test_every_rpc_answers(api):
    [sentiment] = await api.call(Call(MODELS + "GetModel", [{"model": "sentiment"}]))
    wanted = every_rpc(sentiment["answers"][0]["model"]["version"])
    for call, outcome in zip(wanted, await api.call(*wanted), strict=True):
        answers = outcome["answers"][-1:] if call.any_before else outcome["answers"]
        got = (call.method, outcome["code"], like(call.answers, answers))
        assert got == (call.method, call.code, call.answers), outcome["message"]


def test_no_rpc_is_forgotten():
    files = [import_module(f"tuneserve.v1.{module.name}") for module in pkgutil.iter_modules(tuneserve.v1.__path__)]
    files = [file.DESCRIPTOR for file in files if file.__name__.endswith("_pb2")]
    files += [inference_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR]
    services = [service for file in files for service in file.services_by_name.values()]
    rpcs = {f"{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert {call.method for call in every_rpc("")} == rpcs


@pytest.mark.parametrize("api", [KEY], indirect=True)
@pytest.mark.parametrize("key", [None, "another-canary-key"])
async def test_without_the_key_nothing_but_health_answers(api, key):
    # A connection without a key has few calls.
    wanted = [call for call in every_rpc("") if call.method.endswith(("/GetModel", "Stream", "Infer", "Check"))]
    for call, outcome in zip(wanted, await api.call(*wanted, key=key), strict=True):
        code = "OK" if call.method.startswith(HEALTH) else "UNAUTHENTICATED"
        assert (call.method, outcome["code"]) == (call.method, code)


async def test_an_error_has_its_details(api):
    missing, empty = await api.call(
        Call(MODELS + "GetModel", [{"model": "nobody"}]),
        Call(CLASSIFICATION + "Classify", [{"model": "sentiment", "inputs": [{"text": ""}]}]),
    )
    assert (missing["code"], empty["code"]) == ("NOT_FOUND", "INVALID_ARGUMENT")
    details = [
        {detail["@type"].rpartition(".")[2]: detail for detail in outcome["details"]} for outcome in (missing, empty)
    ]
    assert details[0]["ErrorInfo"].items() >= {"reason": "MODEL_NOT_FOUND", "domain": "tuneserve.dev"}.items()
    assert details[0]["ResourceInfo"]["resource_name"] == "nobody"
    assert details[0]["RequestInfo"]["request_id"] == missing["trailers"]["x-request-id"]
    assert details[1]["ErrorInfo"]["reason"] == "INVALID_FIELD"
    assert [one["field"] for one in details[1]["BadRequest"]["field_violations"]] == ["inputs[0].text"]


async def test_a_deadline_and_a_cancelled_stream_free_their_places(api, monkeypatch):
    engine = api.served.engines["chat"]
    monkeypatch.setattr(engine, "delay", 30)
    [late] = await api.call(Call(GENERATION + "Generate", [PROMPT]), timeout=0.3)
    assert (late["code"], late["answers"]) == ("DEADLINE_EXCEEDED", [])
    await api.is_idle("chat")
    monkeypatch.setattr(engine, "delay", 0.1)
    long = {**PROMPT, "sampling": {"max_tokens": 50}}
    [left] = await api.call(Call(GENERATION + "GenerateStream", [long], until={"completions": {"0": {"text": "ab"}}}))
    assert left["code"] == "CANCELLED"
    assert 1 <= len(left["answers"]) < 50
    await api.is_idle("chat")
    assert len(engine.sampled) >= 2, "both reached the engine"


async def test_the_program_of_the_documentation_works(api):
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    program = re.search(r"^    const grpc = require.*?^    }\);$", page, re.MULTILINE | re.DOTALL)[0]
    for written, here in {"localhost:8033": api.served.app.address, "Bearer KEY": f"Bearer {api.key}"}.items():
        assert written in program
        program = program.replace(written, here)
    assert "label: 'pos'" in await api.node.run("-e", program)
