"""Signals to the real command, in a process of its own, or in several, without models: what is served after them; its
exit status.
"""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tuneserve.server.engine import fork_server
from tuneserve.v1 import model_pb2
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

from ..conftest import PORTS

FOREVER = 600
SERVICE = "tuneserve.v1.ModelService"


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: subprocess.Popen
    address: str

    async def exit_status(self) -> int:
        return await asyncio.wait_for(asyncio.to_thread(self.process.wait), 120)


@pytest.fixture(params=[1, 2])
def processes(request: pytest.FixtureRequest) -> int:
    """How many the server has."""
    count: int = request.param
    return count


@contextmanager
def running(folder: Path, processes: int, linger: float, *before: str) -> Iterator[Server]:
    """The server, started by a command when one is given."""
    config, ready = folder / "server.yaml", folder / "ready.json"
    config.write_text(
        json.dumps({**PORTS, "drain_seconds": 5, "linger_seconds": linger, "processes": processes}),
    )
    command = [*before, sys.executable, "-P", "-m", "tuneserve.cli", "serve", "--config", str(config)]
    # Its own session: what is sent to it is not sent to us.
    with subprocess.Popen(
        [*command, "--ready-file", str(ready)],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        # Where the tests run under nohup, what they start would ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    ) as process:
        try:
            for _ in range(2400):
                if ready.exists() or process.poll() is not None:
                    break
                time.sleep(0.05)
            yield Server(process, json.loads(ready.read_text())["grpc"])
        finally:
            process.kill()


async def models(channel: grpc.aio.Channel) -> grpc.StatusCode:
    return await ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest(), timeout=30).code()


async def serving(channel: grpc.aio.Channel) -> bool:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=30)
    return answer.status == health_pb2.HealthCheckResponse.SERVING


async def not_serving(channel: grpc.aio.Channel) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    async for answer in watch:
        if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
            watch.cancel()
            return


async def test_sigterm_serves_on_while_health_says_no(tmp_path, processes):
    with running(tmp_path, processes, FOREVER) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            assert await serving(channel)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(not_serving(channel), 60)
            for _ in range(50):
                assert await models(channel) == grpc.StatusCode.OK
            async with grpc.aio.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as new:
                assert await models(new) == grpc.StatusCode.OK, "on a new connection, too"
            assert server.process.poll() is None
            server.process.send_signal(signal.SIGTERM)
            assert await server.exit_status() == 0, "whoever says it twice does not wait"


async def test_lingering_ends(tmp_path, processes):
    with running(tmp_path, processes, 0.5) as server:
        server.process.send_signal(signal.SIGTERM)
        assert await server.exit_status() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
async def test_who_sits_at_the_terminal_waits_for_no_proxy(tmp_path, processes, number):
    with running(tmp_path, processes, FOREVER) as server:
        server.process.send_signal(number)
        assert await server.exit_status() == 0


async def test_nohup(tmp_path, processes):
    with running(tmp_path, processes, 0, "nohup") as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            server.process.send_signal(signal.SIGHUP)
            assert await models(channel) == grpc.StatusCode.OK
            assert await serving(channel)
        server.process.send_signal(signal.SIGTERM)
        assert await server.exit_status() == 0


@pytest.mark.skipif(not fork_server.is_used(), reason="it imports later")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_still_imports_ends_at_once(tmp_path, number):
    """Before it has ports."""
    command = [sys.executable, "-P", "-m", "tuneserve.cli", "serve", "--model", f"m={tmp_path}"]
    for flag in ("--listen", "--metrics-listen"):
        command += [flag, "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            maps = Path(f"/proc/{process.pid}/maps")
            while "libtorch_python" not in maps.read_text():
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(number)
            assert process.wait(60) == 0
        finally:
            process.kill()
