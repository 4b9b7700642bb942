"""The real engine's code, with vLLM's own classes, and a stub in the place of vLLM's AsyncLLM."""

import asyncio
import os
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tuneserve.server.config import ModelConfig
from tuneserve.server.engine.hardware import Hardware
from tuneserve.server.engine.interface import Encoded, Sampling, Ticket
from tuneserve.v1 import checkpoint_pb2


class Asked(Exception):
    """Ends a request that the stub was asked for."""


class Stub:
    """Keeps what it is asked for, and answers nothing."""

    errored = False
    output_handler = None

    def __init__(self) -> None:
        self.prompts: list[dict[str, Any]] = []
        self.threads: list[threading.Thread] = []

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    async def add_request(self, request_id: str, prompt: dict[str, Any], params: Any, **more: Any) -> Any:
        self.prompts.append(prompt)
        raise Asked

    async def abort(self, request_id: Any, internal: bool = False) -> None:
        pass

    def shutdown(self) -> None:
        self.threads.append(threading.current_thread())


@pytest.fixture(scope="module")
def vllm_engine(make_parsers) -> ModuleType:
    """The module; vLLM is imported as that fixture does it, without a word of its own."""
    from tuneserve.server.engine import vllm_engine

    return vllm_engine


@pytest.fixture
def engine(vllm_engine, monkeypatch) -> Any:
    config = ModelConfig(path=Path("there"))
    made = vllm_engine.VllmEngine("m", config, checkpoint_pb2.Checkpoint(), Hardware("float32", 1 << 27, True))
    made._engine = Stub()
    # It asks the real one for its settings.
    monkeypatch.setattr(made, "_verify", lambda params: None)
    return made


async def generate(engine: Any, ticket: Ticket) -> None:
    async for _ in engine.generate(ticket, [1, 2], Sampling(max_tokens=1), stream=False):
        pass


async def pool(engine: Any, ticket: Ticket) -> None:
    await engine.pool(ticket, [Encoded([1, 2]), Encoded([3])], "classify")


@pytest.mark.parametrize("ask", [generate, pool])
@pytest.mark.parametrize("salt", ["a-tenants-own", ""])
async def test_a_tenants_prompts_are_found_in_the_cache_by_that_tenant_alone(engine, ask, salt):
    """vLLM keeps prompts of different salts apart in its prefix cache."""
    with pytest.raises(Asked):
        await ask(engine, Ticket("r", salt=salt))
    [prompt] = engine._engine.prompts
    assert prompt["prompt_token_ids"] == [1, 2]
    assert prompt.get("cache_salt") == (salt or None)


async def test_an_engine_is_closed_beside_any_work_in_threads(engine):
    """asyncio's own pool of threads is full of other work: a dead engine's memory is needed for its successor."""
    done, loop, stub = threading.Event(), asyncio.get_running_loop(), engine._engine
    sleeping = [loop.run_in_executor(None, done.wait) for _ in range(2 * ((os.cpu_count() or 1) + 36))]
    try:
        async with asyncio.timeout(10):
            await engine.close()
    finally:
        done.set()
        await asyncio.gather(*sleeping)
    assert len(stub.threads) == 1


@pytest.mark.parametrize(
    ("in_pieces", "own", "length", "most"),
    [(True, 0, 8192, 256), (True, 0, 64, 64), (True, 100, 8192, 100), (False, 0, 8192, 0)],
)
def test_a_long_prompt_leaves_room_in_a_step(vllm_engine, monkeypatch, in_pieces, own, length, most):
    monkeypatch.setattr(vllm_engine.runtime, "has_nvidia_gpu", lambda: False)
    scheduler = SimpleNamespace(
        enable_chunked_prefill=in_pieces, long_prefill_token_threshold=own, max_num_batched_tokens=1024
    )
    model = SimpleNamespace(max_model_len=length)
    vllm_engine._share_steps(SimpleNamespace(scheduler_config=scheduler, model_config=model))
    assert scheduler.long_prefill_token_threshold == most
