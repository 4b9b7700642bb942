"""The parent of a server's processes: starts them, passes signals on, starts those again that end, and answers for all
of them on the ports of health and metrics. It never sees a call.

Each process binds the ports of callers and administrators itself (SO_REUSEPORT) once its models are loaded, and Linux
gives it its share of the new connections. The parent keeps these ports bound, without listening: they stay ours while
no process listens.
"""

import asyncio
import logging
import os
import signal
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import disable_created_metrics

from tuneserve.server.call import logs
from tuneserve.server.config import ServerConfig, host_and_port
from tuneserve.server.models.health import MODEL_SERVICES, HealthServicer
from tuneserve.server.models.tasks import TASKS
from tuneserve.server.processes import sharing
from tuneserve.server.processes.journal import Entry, Journal
from tuneserve.server.processes.merged_metrics import MergedMetrics, Source
from tuneserve.server.processes.process import Process
from tuneserve.server.transport import connections
from tuneserve.server.transport import servers as ports
from tuneserve.server.transport.metrics_http import MetricsServer
from tuneserve.server.transport.wakeups import Loop
from tuneserve.serving import Addresses

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ASK_SECONDS = 0.5
# The pause before a process is started again: doubled each time it does not become ready, from the first value up to
# the second.
_BACK_OFF_SECONDS = (1.0, 60.0)
_NO_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


class Parent:
    """The processes of one server."""

    def __init__(self, config: ServerConfig, folder: Path, stack: ExitStack) -> None:
        """Binds all ports. Raises UserError before anything starts. `stack` closes what this opens."""
        self._config = config
        self._health = HealthServicer()
        self._metrics = MergedMetrics(self._sources)
        bound = connections.sockets(config.metrics_listen, "metrics_listen")
        self._page = MetricsServer(self._metrics.page, bound)
        metrics = connections.shown(host_and_port(config.metrics_listen)[0], bound[0].getsockname()[1])
        listen = _kept(stack, config.listen, "listen")
        admin = config.admin_listen and _kept(stack, config.admin_listen, "admin_listen")
        self._probes = ports.health_only(self._health, config)
        health = config.health_listen and ports.bind(self._probes, config.health_listen, "health_listen")
        self.addresses = Addresses(listen, metrics, admin or "", health or "")
        own = sharing.settings(config.model_copy(update={"listen": listen, "admin_listen": admin}))
        cores = sharing.cores(sharing.available_cores(), config.processes)
        self._environment = sharing.environment(os.environ, min(map(len, cores)), config.processes)
        self._journal = Journal(folder)
        self._processes = [Process(number, own, folder, mine) for number, mine in enumerate(cores)]
        # What health is asked for. Without `health_listen`, only whether a process answers.
        names = [*MODEL_SERVICES, *(task.service for task in TASKS.values())]
        names += [] if config.tenants else [f"models/{name}" for name in config.models]
        self._names = ["", *dict.fromkeys(names)] if health else [""]
        self._serving: dict[int, set[str]] = {}  # the names that serve, by the processes that are ready
        self._all_ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._status = 0

    async def run(self, ready_file: Path | None) -> int:
        """Runs until it is told to stop, or a process ends that is not started again. Returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            # SIGHUP stays ignored if it was, here and in the processes: see App.run.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                loop.add_signal_handler(number, self._end, number)
        self._show()
        await self._page.start()
        if self.addresses.health:
            await self._probes.start()
        announcing = asyncio.create_task(self._announce(ready_file))
        try:
            await asyncio.gather(*map(self._keep, self._processes))
        finally:
            announcing.cancel()
            for process in self._processes:
                process.kill()
            self._page.close()
            await self._probes.stop(0)
        return self._status

    def _end(self, number: int) -> None:
        self._stopping.set()
        self._health.end()
        for process in self._processes:
            process.send(number)

    async def _keep(self, process: Process) -> None:
        """Runs a process until the server stops."""
        pause, longest = _BACK_OFF_SECONDS
        while not self._stopping.is_set():
            process.start(self._environment)
            watching = asyncio.create_task(self._watch(process))
            status = await process.ended()
            watching.cancel()
            self._journal.append(Entry("left", process.pid))
            was_ready = self._serving.pop(process.number, None) is not None
            self._show()
            if self._stopping.is_set():
                # One that only just started does not handle the signal yet.
                self._status = self._status or (0 if -status in _SIGNALS else _exit_status(status))
                return
            logger.error("process %d ended with status %d", process.number, status)
            if not self._all_ready.is_set() or self._config.on_engine_failure == "exit":
                self._status = _exit_status(status)
                self._end(signal.SIGTERM)
                return
            pause = _BACK_OFF_SECONDS[0] if was_ready else min(2 * pause, longest)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
                return
            self._metrics.restarts.labels(process.number).inc()

    async def _watch(self, process: Process) -> None:
        """Asks a process for its health, again and again. Kills it when it does not answer."""
        addresses = await process.ready()
        async with grpc.aio.insecure_channel(addresses.health, _NO_CONNECTION) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while True:
                try:
                    self._serving[process.number] = {name for name in self._names if await self._serves(stub, name)}
                except grpc.aio.AioRpcError as error:
                    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                        logger.error(
                            "process %d gave no sign of life for %g s", process.number, self._config.watchdog_seconds
                        )
                        process.kill()
                        return
                self._show()
                await asyncio.sleep(_ASK_SECONDS)

    async def _serves(self, stub: Any, name: str) -> bool:
        request = health_pb2.HealthCheckRequest(service=name)
        answer = await stub.Check(request, timeout=self._config.watchdog_seconds, wait_for_ready=True)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _show(self) -> None:
        """Publishes what serves: a name serves while it does in any process."""
        self._health.show({name: any(name in one for one in self._serving.values()) for name in self._names})
        for process in self._processes:
            self._metrics.up.labels(process.number).set(process.number in self._serving)
        if len(self._serving) == len(self._processes):
            self._all_ready.set()

    def _sources(self) -> list[Source]:
        return [
            Source(process.number, process.pid, process.addresses.metrics)
            for process in self._processes
            if process.addresses
        ]

    async def _announce(self, ready_file: Path | None) -> None:
        await self._all_ready.wait()
        logger.info("ready: %d processes, gRPC on %s", len(self._processes), self.addresses.grpc)
        if ready_file:
            self.addresses.write(ready_file)


def _exit_status(status: int) -> int:
    return status if status >= 0 else 1  # a signal


def _kept(stack: ExitStack, address: str, key: str) -> str:
    """Keeps a port for the processes, and returns its address. Raises UserError if it is not free."""
    for one in connections.sockets(address, key):
        one.close()
    bound = connections.sockets(address, key, shared=True)
    for one in bound:
        stack.enter_context(one)
    return connections.shown(host_and_port(address)[0], bound[0].getsockname()[1])


def serve(config: ServerConfig, ready_file: Path | None = None) -> None:
    """Runs a server of several processes until it is told to stop."""
    disable_created_metrics()
    logs.never_wait()
    with ExitStack() as stack, asyncio.Runner(loop_factory=Loop) as runner:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tuneserve-")))

        async def run() -> int:
            return await Parent(config, folder, stack).run(ready_file)

        sys.exit(runner.run(run()))
