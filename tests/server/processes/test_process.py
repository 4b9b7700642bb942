import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from tuneserve.server.config import ModelConfig, ServerConfig, TlsConfig
from tuneserve.server.processes.process import Process

PORTS = dict.fromkeys(("listen", "metrics_listen", "admin_listen"), "127.0.0.1:0")
LOCAL = ServerConfig(**PORTS, processes=2, linger_seconds=0)


@pytest.fixture
def process(tmp_path):
    made = Process(0, LOCAL, tmp_path, {min(os.sched_getaffinity(0))})
    yield made
    made.kill()


async def test_it_is_started_again_and_again(process):
    pids = set()
    for _ in range(2):
        before = os.sched_getaffinity(0)
        process.start(os.environ)
        assert os.sched_getaffinity(0) == before
        addresses = await asyncio.wait_for(process.ready(), 60)
        assert process.addresses == addresses
        assert os.sched_getaffinity(process.pid) == {min(before)}
        assert os.getpgid(process.pid) == process.pid, "Ctrl-C does not reach it"
        pids.add(process.pid)
        process.send(signal.SIGTERM)
        assert await asyncio.wait_for(process.ended(), 60) == 0
        assert process.addresses is None
    assert len(pids) == 2


async def test_how_it_ended(process):
    process.start(os.environ)
    process.kill()
    assert await process.ended() == -signal.SIGKILL


def test_its_settings_are_the_same_from_another_file(tmp_path, monkeypatch):
    """Paths are those of this directory, not of the file's."""
    from tuneserve.server import config as server_config

    monkeypatch.chdir(tmp_path)
    for folder in ("shared", "models", "adapters"):
        Path(folder).mkdir()
    for file in ("tenants.yaml", "tls.crt", "tls.key"):
        Path(file).touch()
    model = ModelConfig(
        path=Path("models"),
        redact=("email",),
        adapters={"legal": Path("adapters")},
        max_adapters=1,
        gpu_memory_utilization=0.1 / 3,
        engine={"seed": 1, "compilation_config": {"mode": 0}},
    )
    tls = TlsConfig(certificate=Path("tls.crt"), key=Path("tls.key"))
    config = ServerConfig(models={"a": model}, tenants=Path("tenants.yaml"), tls=tls, processes=2)
    Process(1, config, Path("shared"), {0})
    assert "models" in json.loads(Path("shared/1.yaml").read_text())
    loaded = server_config.load(Path("shared/1.yaml"))
    assert (
        loaded.model_dump()
        == server_config.ServerConfig.model_validate(
            config.model_copy(
                update={
                    "models": {
                        "a": model.model_copy(
                            update={"path": tmp_path / "models", "adapters": {"legal": tmp_path / "adapters"}}
                        )
                    },
                    "tenants": tmp_path / "tenants.yaml",
                    "tls": TlsConfig(certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key"),
                }
            ).model_dump()
        ).model_dump()
    )
