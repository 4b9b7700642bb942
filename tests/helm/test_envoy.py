"""Scaling out, a canary and a drain through a real Envoy, which does what a Gateway does with the chart's route, and
scaling out without one.

The pods are real servers with fake engines, in processes of their own, on loopback addresses of their own.
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

import dns.message
import dns.rdatatype
import dns.rrset
import grpc
import helm_python
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tuneserve.client.endpoint import Endpoint
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

from . import envoy
from .envoy import put_endpoints, translated
from .processes import free_port
from .rendering import MINIMAL, render
from .test_prometheus import CLASSIFY

HOSTS = ("127.0.0.11", "127.0.0.12", "127.0.0.13")
STABLE, CANARY = "rel-tuneserve", "next-tuneserve"
# As long as a pod serves on after its end has begun, by default: preStopSeconds + lingerSeconds.
LINGER = 8
# Of a connection, in seconds, until the server ends it; by default ten minutes.
AGE = 2


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
            if sample.name == "grpc_server_started_total" and sample.labels["grpc_method"] == "Classify"
        )


@pytest.fixture
def start(make_bert: Callable[..., Path], fakes: None, tmp_path: Path) -> Iterator[Callable[..., list[Pod]]]:
    """`start("127.0.0.11", …)` returns pods that serve, as on nodes of their own: with the same ports."""
    given = {"models": {"sentiment": {"path": str(make_bert())}}, "linger_seconds": LINGER, "log_requests": False}
    port, processes = free_port(), []

    def run(*hosts: str, **settings: object) -> list[Pod]:
        started = {tmp_path / host: process(host, settings) for host in hosts}
        processes.extend(started.values())
        return [ready(*one) for one in started.items()]

    def process(host: str, settings: dict[str, object]) -> subprocess.Popen[bytes]:
        folder = tmp_path / host
        folder.mkdir()
        listen = {"listen": f"{host}:{port}", "metrics_listen": f"{host}:0", "admin_listen": "127.0.0.1:0"}
        (folder / "server.yaml").write_text(json.dumps(given | listen | settings))
        command = [sys.executable, "-P", "-m", "tuneserve.cli", "serve", "--config", "server.yaml"]
        nowhere = subprocess.DEVNULL
        return subprocess.Popen([*command, "--ready-file", "ready.json"], cwd=folder, stdout=nowhere, stderr=nowhere)

    yield run
    for one in processes:
        one.kill()
        one.wait()


def ready(folder: Path, process: subprocess.Popen[bytes]) -> Pod:
    while not (folder / "ready.json").exists():
        assert process.poll() is None
        time.sleep(0.1)
    addresses = json.loads((folder / "ready.json").read_text())
    return Pod(process, addresses["grpc"], addresses["metrics"])


@pytest.fixture
def gateway(chart: helm_python.Chart, tmp_path: Path) -> Callable[..., AsyncIterator[ClassificationServiceStub]]:
    """Runs Envoy with the chart's route, once it passes calls on."""

    @asynccontextmanager
    async def run(endpoints: dict[str, list[Pod]], **values: object) -> AsyncIterator[ClassificationServiceStub]:
        route = {"grpcRouteEnabled": True, "grpcRouteParents": [{"name": "gateway"}], **values}
        for service, pods in endpoints.items():
            put_endpoints(tmp_path, service, [pod.address for pod in pods])
        port = free_port()
        config = translated(render(chart, MINIMAL | route)["grpcroute"], tmp_path, port)
        async with envoy.gateway(config, tmp_path), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = ClassificationServiceStub(channel)
            for pod in (pod for pods in endpoints.values() for pod in pods):
                while not await asyncio.to_thread(pod.calls):
                    await call(stub)
                    await asyncio.sleep(0.05)
            yield stub

    return run


async def call(stub: ClassificationServiceStub) -> grpc.StatusCode:
    return await stub.Classify(CLASSIFY, timeout=60).code()


async def shares(pods: list[Pod], stub: ClassificationServiceStub, calls: int) -> list[float]:
    """The share of so many calls that each pod gets."""
    before = [pod.calls() for pod in pods]
    for _ in range(calls // 10):
        assert {*await asyncio.gather(*(call(stub) for _ in range(10)))} == {grpc.StatusCode.OK}
    return [(pod.calls() - count) / calls for pod, count in zip(pods, before, strict=True)]


async def test_a_new_pod_gets_calls(gateway, start, tmp_path):
    pods = start(*HOSTS[:2])
    async with gateway({STABLE: pods}) as stub:
        pods += start(HOSTS[2])
        async with asyncio.timeout(15):
            put_endpoints(tmp_path, STABLE, [pod.address for pod in pods])
            while min(await shares(pods, stub, 100)) <= 0.2:
                pass


class Names(asyncio.DatagramProtocol):
    """A cluster's DNS, as far as it goes for a headless Service: any name has the addresses of these hosts."""

    def __init__(self, hosts: list[str]) -> None:
        self.hosts = hosts

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, caller: tuple[str, int]) -> None:
        answer = dns.message.make_response(dns.message.from_wire(data))
        [question] = answer.question
        if question.rdtype == dns.rdatatype.A:
            answer.answer.append(dns.rrset.from_text(question.name, 0, "IN", "A", *self.hosts))
        self.transport.sendto(answer.to_wire(), caller)


async def test_a_connected_client_reaches_a_new_pod(start):
    """Without a proxy: the pods end connections of some age, and the client then looks the Service's name up again."""
    pods, hosts = start(*HOSTS[:2], max_connection_age_seconds=AGE), [*HOSTS[:2]]
    loop = asyncio.get_running_loop()
    names, _ = await loop.create_datagram_endpoint(lambda: Names(hosts), ("127.0.0.1", 0))
    host, port = names.get_extra_info("sockname")
    target = f"dns://{host}:{port}/{STABLE}-headless.ml.svc:{pods[0].address.split(':')[1]}"
    # By default, gRPC looks a name up twice a minute at most.
    often = ("grpc.dns_min_time_between_resolutions_ms", 1000)
    async with Endpoint(target).open_async(often) as channel:
        stub = ClassificationServiceStub(channel)
        assert min(await shares(pods, stub, 100)) > 0.2
        pods += await asyncio.to_thread(start, HOSTS[2], max_connection_age_seconds=AGE)
        hosts.append(HOSTS[2])
        async with asyncio.timeout(15):
            while min(await shares(pods, stub, 100)) <= 0.2:
                pass
    names.close()


async def test_a_canary_gets_its_share(gateway, start):
    pods = start(*HOSTS)
    endpoints = {STABLE: pods[:2], CANARY: pods[2:]}
    async with gateway(endpoints, grpcRouteWeight=80, grpcRouteCanaries={CANARY: 20}) as stub:
        *_, canary = await shares(pods, stub, 1000)
        # Four standard deviations.
        assert 0.15 < canary < 0.25


async def test_no_call_fails_while_a_pod_ends(gateway, start):
    pods = start(*HOSTS)
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
