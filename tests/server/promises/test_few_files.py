"""A process that may have few files open, and clients that open all the connections they can and say nothing."""

import asyncio
import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

FILES, CONNECTIONS = 256, 256
# What HTTP/2 begins with, and settings that change nothing: the connection is idle then, and not in its handshake.
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5)


@pytest.fixture(params=[1, 2])
def addresses(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Those of a server in a process of its own, or in two, without models."""
    config, ready = tmp_path / "server.yaml", tmp_path / "ready.json"
    ports = {f"{name}listen": "127.0.0.1:0" for name in ("", "metrics_", "health_", "admin_")}
    config.write_text(json.dumps({**ports, "processes": request.param}))
    command = [sys.executable, "-P", "-m", "tuneserve.cli", "serve", "--config", str(config)]
    with subprocess.Popen(
        [*command, "--ready-file", str(ready)],
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES)),
    ) as process:
        try:
            while not ready.exists() and process.poll() is None:
                time.sleep(0.05)
            yield json.loads(ready.read_text())
        finally:
            process.kill()


def page(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        return str(answer.read())


async def test_silent_connections_leave_files_for_probes_and_metrics(addresses):
    host, port = addresses["grpc"].rsplit(":", 1)
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            silent = stack.enter_context(socket.create_connection((host, int(port))))
            with contextlib.suppress(ConnectionError):
                silent.sendall(GREETING)
        # They are accepted, or not.
        await asyncio.sleep(1)
        for _ in range(3):
            async with grpc.aio.insecure_channel(addresses["health"]) as channel:
                request = health_pb2.HealthCheckRequest(service="tuneserve.v1.ModelService")
                answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert "grpc_server_started" in await asyncio.to_thread(page, addresses["metrics"])
