"""How engines are made: in threads, with one at a time that imports, and nothing that keeps the event loop."""

import asyncio
import sys
import threading
import types

import pytest

from tuneserve.server.config import ModelConfig
from tuneserve.server.engine import fork_server, hardware, making
from tuneserve.server.engine.hardware import Hardware
from tuneserve.v1 import checkpoint_pb2

CONFIG, MANIFEST = ModelConfig(path="/m"), checkpoint_pb2.Checkpoint()


@pytest.fixture
def made(monkeypatch):
    """Every VllmEngine that is made, with its arguments and its thread; vLLM itself is not imported."""
    seen: list[tuple[tuple[object, ...], threading.Thread]] = []

    class VllmEngine:
        def __init__(self, *arguments: object) -> None:
            seen.append((arguments, threading.current_thread()))

    module = types.ModuleType("tuneserve.server.engine.vllm_engine")
    module.VllmEngine = VllmEngine
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(fork_server, "start", lambda: None)
    monkeypatch.setattr(hardware, "detect", lambda *_: Hardware("bfloat16", 0, True, "computes so", ("is slow",)))
    return seen


async def test_an_engine_is_made_in_a_thread_for_this_machine(made, caplog):
    caplog.set_level("INFO")
    await making.engine_factory("http://collector")("m", CONFIG, MANIFEST)
    [((name, config, manifest, settings, endpoint), thread)] = made
    assert (name, config, manifest, endpoint) == ("m", CONFIG, MANIFEST, "http://collector")
    assert settings.dtype == "bfloat16"
    assert thread is not threading.main_thread()
    assert [record.getMessage() for record in caplog.records] == ["model m computes so", "model m: is slow"]


async def test_engines_are_made_side_by_side_and_the_loop_goes_on(made, monkeypatch):
    together = threading.Barrier(2, timeout=30)

    def detect(*_: object) -> Hardware:
        together.wait()
        return Hardware("bfloat16", 0, True)

    monkeypatch.setattr(hardware, "detect", detect)
    make = making.engine_factory()
    first = asyncio.create_task(make("one", CONFIG, MANIFEST))
    await asyncio.sleep(0.05)
    assert not first.done()
    await asyncio.gather(first, make("two", CONFIG, MANIFEST))
    assert {arguments[0] for arguments, _ in made} == {"one", "two"}


async def test_what_goes_wrong_is_the_callers(made, monkeypatch):
    def detect(*_: object) -> Hardware:
        raise ValueError("no kernels")

    monkeypatch.setattr(hardware, "detect", detect)
    with pytest.raises(ValueError, match="no kernels"):
        await making.engine_factory()("m", CONFIG, MANIFEST)
