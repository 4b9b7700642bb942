"""A disk that is full costs what had to be written, and no call. /dev/full is one that always is."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from tuneserve.server.config import ModelConfig
from tuneserve.server.models import adapters
from tuneserve.v1 import generation_pb2, model_admin_pb2, model_pb2
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub
from tuneserve.v1.model_admin_pb2_grpc import ModelAdminServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

from ..conftest import PORTS, loopback

FULL = Path("/dev/full")
CHAT = generation_pb2.GenerateRequest(model="chat", prompt=generation_pb2.Prompt(text="the"))


@pytest.fixture
def command(tmp_path) -> list[str]:
    """The real server, without models."""
    (tmp_path / "server.yaml").write_text(json.dumps({**PORTS, "drain_seconds": 5}))
    program = [sys.executable, "-P", "-c", "from tuneserve import cli; cli.main()"]
    return [*program, "serve", "--config", str(tmp_path / "server.yaml"), "--ready-file", str(tmp_path / "ready.json")]


def call(address: str, count: int) -> None:
    with grpc.insecure_channel(address) as channel:
        for _ in range(count):
            ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest(), timeout=30)


def test_log_lines_that_have_no_room_stop_nothing(command, tmp_path):
    ready = tmp_path / "ready.json"
    with FULL.open("w") as full, subprocess.Popen(command, stderr=full) as process:
        try:
            for _ in range(1200):
                if ready.exists() or process.poll() is not None:
                    break
                time.sleep(0.05)
            call(json.loads(ready.read_text())["grpc"], 200)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_a_ready_file_that_has_no_room_is_said_in_one_line(command, tmp_path):
    (tmp_path / "ready.tmp").symlink_to(FULL)
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert f"error: {tmp_path}/ready.json: the disk is full" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "ready.json").exists()


async def test_an_adapter_that_has_no_room_is_refused(serve_config, make_llama, tmp_path, refused, monkeypatch):
    (tmp_path / "polite").mkdir()
    (tmp_path / "polite" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    (tmp_path / "polite" / "adapter_model.safetensors").write_bytes(b"any")
    config = loopback({"chat": ModelConfig(path=make_llama(), max_adapters=2)}, models_root=tmp_path)
    async with serve_config(config) as server:
        admin = ModelAdminServiceStub(server.admin)
        load = model_admin_pb2.LoadAdapterRequest(model="chat", adapter="polite", path="polite")
        copy = adapters._copy
        with monkeypatch.context() as patch:
            patch.setattr(adapters, "_copy", lambda source, target: copy(source, FULL))
            error = await refused(admin.LoadAdapter(load), grpc.StatusCode.FAILED_PRECONDITION)
            assert "disk for adapters is full" in error.details()
            assert str(tmp_path) not in error.details()
        assert (await GenerationServiceStub(server.channel).Generate(CHAT)).completions
        assert (await admin.LoadAdapter(load)).adapter.name == "polite"
