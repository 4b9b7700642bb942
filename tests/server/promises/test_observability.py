"""Observability never blocks serving: a pipe of log lines that nobody reads stops no call, no probe and no SIGTERM."""

import asyncio
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tuneserve.v1 import model_pb2
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

from ..conftest import PORTS

# Twice as many lines as a pipe holds.
CALLS = 600
PROGRAM = """
import sys
import time
from tuneserve import cli
from tuneserve.server.call import logs
logs._MOST_BYTES = int(sys.argv.pop())
cli.main()
"""


@dataclass(frozen=True)
class Server:
    """The real command in a process of its own, without models."""

    process: subprocess.Popen
    addresses: dict[str, str]


@contextmanager
def running(folder, most_bytes: int) -> Iterator[Server]:
    config, ready = folder / "server.yaml", folder / "ready.json"
    config.write_text(json.dumps({**PORTS, "drain_seconds": 5}))
    command = [sys.executable, "-P", "-c", PROGRAM, "serve", "--config", config, "--ready-file", ready, str(most_bytes)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            for _ in range(1200):
                if ready.exists() or process.poll() is not None:
                    break
                time.sleep(0.05)
            yield Server(process, json.loads(ready.read_text()))
        finally:
            process.kill()


async def call(server: Server) -> None:
    """Makes the calls, one after the other, and asks for health."""
    async with grpc.aio.insecure_channel(server.addresses["grpc"]) as channel:
        for number in range(CALLS):
            metadata = (("x-request-id", f"{number}-" + "x" * 100),)
            await ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest(), metadata=metadata, timeout=30)
        # NOT_SERVING, as it has no models; but an answer.
        assert (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)).status


def dropped(server: Server) -> int:
    with urllib.request.urlopen(f"http://{server.addresses['metrics']}/metrics", timeout=30) as page:
        [line] = [line for line in page.read().decode().splitlines() if line.startswith("tuneserve_log_lines_dropped_")]
    return int(float(line.split()[1]))


def test_a_pipe_that_nobody_reads_stops_nothing(tmp_path):
    with running(tmp_path, most_bytes=20_000) as server:
        asyncio.run(call(server))
        assert dropped(server) > 0
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


def test_a_caller_can_not_make_grpc_log(tmp_path):
    """Its core writes to standard error itself, in the threads that serve connections."""

    async def refused(server: Server) -> None:
        async with grpc.aio.insecure_channel(server.addresses["grpc"], compression=grpc.Compression.Gzip) as channel:
            call = ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest(page_token="a" * 5000), timeout=30)
            assert await call.code() == grpc.StatusCode.UNIMPLEMENTED

    with running(tmp_path, most_bytes=4 << 20) as server:
        asyncio.run(refused(server))
        server.process.send_signal(signal.SIGTERM)
        _, stderr = server.process.communicate(timeout=60)
        assert b"Compression algorithm" not in stderr


def test_lines_that_somebody_reads_late_are_all_there(tmp_path):
    with running(tmp_path, most_bytes=4 << 20) as server:
        asyncio.run(call(server))
        assert dropped(server) == 0
        server.process.send_signal(signal.SIGTERM)
        _, stderr = server.process.communicate(timeout=60)
        lines = stderr.decode().splitlines()
        assert server.process.returncode == 0
    calls = [json.loads(line)["request_id"] for line in lines if line.startswith("{")]
    assert [one.partition("-")[0] for one in calls] == [str(number) for number in range(CALLS)]
    assert lines[-1].endswith("stopped")


def test_the_last_words_come_out(tmp_path):
    """Also those of a program that fails."""
    code = """
import logging
from tuneserve.server.call import logs
logging.basicConfig(level=logging.INFO)
logs.never_wait()
for number in range(1000):
    logging.info("line %d", number)
raise SystemError("the end")
"""
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    lines = result.stderr.splitlines()
    assert lines[:1000] == [f"INFO:root:line {number}" for number in range(1000)]
    assert lines[-1] == "SystemError: the end"


def test_a_reader_that_is_gone_loses_lines_and_nothing_else(tmp_path):
    with running(tmp_path, most_bytes=4 << 20) as server:
        assert server.process.stderr
        server.process.stderr.close()
        asyncio.run(call(server))
        # The last lines go out together, a moment later.
        deadline = time.monotonic() + 30
        while dropped(server) < CALLS and time.monotonic() < deadline:
            time.sleep(0.05)
        assert dropped(server) >= CALLS
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
