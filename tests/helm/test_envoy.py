"""Scaling out, a canary and a drain through a real Envoy, which does what a Gateway does with the chart's route.

The pods are real servers, in processes of their own, without models, on loopback addresses of their own.
"""

import asyncio
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import helm_python
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tuneserve.v1 import model_pb2
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

from . import envoy
from .envoy import put_endpoints, translated
from .processes import free_port
from .rendering import MINIMAL, render

HOSTS = ("127.0.0.11", "127.0.0.12", "127.0.0.13")
STABLE, CANARY = "rel-tuneserve", "next-tuneserve"
# As long as a pod serves on after its end has begun, by default: preStopSeconds + lingerSeconds.
LINGER = 8


@dataclass(frozen=True)
class Pod:
    process: subprocess.Popen[bytes]
    address: str
    metrics: str

    def calls(self) -> float:
        """How many calls it has had, by its own metrics; health checks are not among them."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=60) as page:
            families = text_string_to_metric_families(page.read().decode())
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "grpc_server_started_total" and sample.labels["grpc_method"] == "ListModels"
        )


def start(folder: Path, host: str, port: int) -> subprocess.Popen[bytes]:
    folder.mkdir()
    listen = {"listen": f"{host}:{port}", "metrics_listen": f"{host}:0", "admin_listen": "127.0.0.1:0"}
    (folder / "server.yaml").write_text(json.dumps({**listen, "linger_seconds": LINGER, "log_requests": False}))
    command = [sys.executable, "-P", "-m", "tuneserve.cli", "serve", "--config", "server.yaml"]
    nowhere = subprocess.DEVNULL
    return subprocess.Popen([*command, "--ready-file", "ready.json"], cwd=folder, stdout=nowhere, stderr=nowhere)


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[list[Pod]]:
    """Three, as on nodes of their own: with the same ports."""
    port = free_port()
    processes = {tmp_path / host: start(tmp_path / host, host, port) for host in HOSTS}
    try:
        found = []
        for folder, process in processes.items():
            while not (folder / "ready.json").exists():
                assert process.poll() is None
                time.sleep(0.1)
            addresses = json.loads((folder / "ready.json").read_text())
            found.append(Pod(process, addresses["grpc"], addresses["metrics"]))
        yield found
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def gateway(chart: helm_python.Chart, tmp_path: Path) -> Callable[..., AsyncIterator[ModelServiceStub]]:
    """Runs Envoy with the chart's route, once it passes calls on."""

    @asynccontextmanager
    async def run(endpoints: dict[str, list[Pod]], **values: object) -> AsyncIterator[ModelServiceStub]:
        route = {"grpcRouteEnabled": True, "grpcRouteParents": [{"name": "gateway"}], **values}
        for service, pods in endpoints.items():
            put_endpoints(tmp_path, service, [pod.address for pod in pods])
        port = free_port()
        config = translated(render(chart, MINIMAL | route)["grpcroute"], tmp_path, port)
        async with envoy.gateway(config, tmp_path), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = ModelServiceStub(channel)
            for pod in (pod for pods in endpoints.values() for pod in pods):
                while not await asyncio.to_thread(pod.calls):
                    await call(stub)
                    await asyncio.sleep(0.05)
            yield stub

    return run


async def call(stub: ModelServiceStub) -> grpc.StatusCode:
    return await stub.ListModels(model_pb2.ListModelsRequest(), timeout=60).code()


async def answered(stub: ModelServiceStub, calls: int) -> None:
    for _ in range(calls // 10):
        assert {*await asyncio.gather(*(call(stub) for _ in range(10)))} == {grpc.StatusCode.OK}


async def shares(pods: list[Pod], stub: ModelServiceStub, calls: int) -> list[float]:
    """The share of so many calls that each pod gets."""
    before = [pod.calls() for pod in pods]
    await answered(stub, calls)
    return [(pod.calls() - count) / calls for pod, count in zip(pods, before, strict=True)]


async def test_a_new_pod_gets_calls(gateway, pods, tmp_path):
    async with gateway({STABLE: pods[:2]}) as stub:
        assert (await shares(pods, stub, 100))[2] == 0
        put_endpoints(tmp_path, STABLE, [pod.address for pod in pods])
        async with asyncio.timeout(15):
            while not await asyncio.to_thread(pods[2].calls):
                await answered(stub, 10)
        assert min(await shares(pods, stub, 300)) > 0.2


async def test_a_canary_gets_its_share(gateway, pods):
    endpoints = {STABLE: pods[:2], CANARY: pods[2:]}
    async with gateway(endpoints, grpcRouteWeight=80, grpcRouteCanaries={CANARY: 20}) as stub:
        *_, canary = await shares(pods, stub, 1000)
        # Four standard deviations.
        assert 0.15 < canary < 0.25


async def test_no_call_fails_while_a_pod_ends(gateway, pods):
    async with gateway({STABLE: pods}) as stub:
        ending = pods[0].process
        codes: list[grpc.StatusCode] = []

        async def keep_calling() -> None:
            while len(codes) < 2000 or ending.poll() is None:
                codes.append(await call(stub))
                if len(codes) == 200:
                    ending.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.01)

        await asyncio.gather(*(keep_calling() for _ in range(8)))
        assert ending.returncode == 0
        assert len(codes) >= 2000
        assert {*codes} == {grpc.StatusCode.OK}
