"""The server as a whole: bind, load, serve, drain.

Ports are bound and health answers NOT_SERVING before any model loads, so that probes can see the loading. On CPUs that
is after seconds of imports (engine/fork_server.py). One of several processes binds the ports that it shares once its
models are loaded: until then, the others get all calls. On SIGTERM, SIGINT and SIGHUP the server first sets health to
NOT_SERVING, then refuses new calls, lets running calls end, and stops. After SIGTERM it still accepts new calls for
`linger_seconds`, because proxies that poll health keep sending calls until they notice.
"""

import asyncio
import logging
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import disable_created_metrics

from tuneserve.checkpoint.tasks import TASK_NAMES
from tuneserve.errors import StepFailed, UserError
from tuneserve.server import concurrency, garbage, turns
from tuneserve.server.answer.service import AnswerService
from tuneserve.server.call import arrivals, failures, logs
from tuneserve.server.call.arrivals import Arrivals
from tuneserve.server.call.departures import Departures
from tuneserve.server.call.draining import Running
from tuneserve.server.call.records import Records
from tuneserve.server.call.shares import Shares
from tuneserve.server.call.tenants import ADMINISTRATOR, Tenants
from tuneserve.server.call.tracing import Tracing
from tuneserve.server.config import ConfigFile, ServerConfig, check_directories, host_and_port
from tuneserve.server.engine import fork_server, hardware, making
from tuneserve.server.engine.making import EngineFactory
from tuneserve.server.feedback.service import FeedbackService
from tuneserve.server.ledger import Ledger
from tuneserve.server.metrics import Metrics
from tuneserve.server.models.administration import Operations
from tuneserve.server.models.aliases import Models
from tuneserve.server.models.health import Health
from tuneserve.server.models.model import Model
from tuneserve.server.models.reloading import Reloading, routes
from tuneserve.server.models.shadow import Shadows
from tuneserve.server.models.supervisor import Supervisor
from tuneserve.server.monitor.monitors import Monitors
from tuneserve.server.processes.administration import JointOperations
from tuneserve.server.transport import connections, tls
from tuneserve.server.transport import servers as ports
from tuneserve.server.transport.accepting import Server, Services
from tuneserve.server.transport.authentication import Authentication
from tuneserve.server.transport.intake import Intake
from tuneserve.server.transport.interceptor import CallInterceptor
from tuneserve.server.transport.metrics_http import MetricsServer
from tuneserve.server.transport.unauthenticated import UnauthenticatedConnections
from tuneserve.server.transport.wakeups import Loop
from tuneserve.serving import Addresses

logger = logging.getLogger(__name__)

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Slow incoming messages at once, on all ports: of each, all bytes but the last may be buffered.
_MOST_SLOW = 16
# Bytes of requests that run or wait for their turn. Parsed and tokenized they take about six times as much.
_MOST_REQUESTS = 128 << 20
# Reflection is open to everybody: few calls at once, each with a time limit.
_MOST_REFLECTING, _REFLECTION_SECONDS = 8, 30.0
# How often the server's file and the tenants file are checked for changes.
_RELOAD_SECONDS = 1.0
# The last part of the drain, after the remaining calls were ended: for their statuses to reach the callers.
_GOODBYE_SECONDS = 2.0


class App:
    """One server process."""

    def __init__(
        self,
        config: ServerConfig,
        make_engine: EngineFactory | None = None,
        file: ConfigFile | None = None,
        shared: Path | None = None,
    ) -> None:
        """Checks every setting and checkpoint and binds all ports. Raises UserError before anything loads. Changes of
        `file` are followed, if the settings say so. With `processes`, `shared` is the folder of all of them.
        """
        failures.redact_libraries()
        self.config = config
        self._shares = config.processes > 1  # its ports, with other processes
        self.metrics = Metrics()
        self.models = Models()
        # A copy, because the exposition runs in a thread of its own.
        self.metrics.queues = lambda: [(model.name, model.queue) for model in list(self.models) if model.queue]
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._stopped = False
        self._reloading: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._guarding: asyncio.Task[None] | None = None
        self._collecting: asyncio.Task[None] | None = None
        self._keeping_few: asyncio.Task[None] | None = None
        self._agreeing: asyncio.Task[None] | None = None
        # A thread of its own, so that no other work can delay the removal of a revoked key.
        self._reading_keys = ThreadPoolExecutor(1, thread_name_prefix="keys")
        # Health needs no key, so on a server with keys it does not reveal model names.
        self._health = Health(self.models, names=config.tenants is None)
        rejected = self.metrics.rejections.labels
        self._running = Running(config.max_calls, rejected("", "calls").inc)
        self._departures = Departures(rejected("", "unread").inc)
        self._requests = Shares(
            _MOST_REQUESTS, _MOST_REQUESTS // 2, "large requests run", "REQUESTS", rejected("", "requests").inc
        )
        self.metrics.requests.set_function(lambda: self._requests.bytes)
        self.metrics.unread.set_function(lambda: self._departures.shares.bytes)
        self._shadows = Shadows(self.models, self.metrics)
        ledger = Ledger(shared) if shared else None
        self._tenants = Tenants(config.tenants, ledger=ledger) if config.tenants else None
        if self._tenants and self._tenants.by_certificate and not (config.tls and config.tls.client_ca):
            raise UserError(
                "tenants: some have `certificates`, which need tls.client_ca", "set it to the CA of these certificates"
            )
        if self._tenants:
            self.metrics.key_expiry.set_function(self._tenants.next_expiry)
        self._tracing = Tracing(config.otlp_endpoint) if config.otlp_endpoint else None
        self.supervisor = Supervisor(
            make_engine or making.engine_factory(config.otlp_endpoint),
            config.watchdog_seconds,
            config.load_seconds,
            config.on_engine_failure == "restart",
            self._health.publish,
        )
        given = config, self.models, self.metrics, self.supervisor, self._health
        self._joint = JointOperations(shared, *given) if shared else None
        self.operations = self._joint or Operations(*given)
        versions = {
            name: self.operations.prepare(name, model, f"models.{name}") for name, model in config.models.items()
        }
        for version in versions.values():
            self.models.add(version)
        for alias, route in routes(config, versions).items():
            self.models.set_route(alias, route)
        self._monitors = Monitors(config.monitors, self.models, self.metrics)
        self._answers = AnswerService(self.models, config.indexes, self.metrics)
        self._feedback = FeedbackService(self.models, config.feedback, self.metrics)
        self._config_file = (
            Reloading(file, config, versions, self.models, self.operations) if file and config.reload_models else None
        )
        for name, followed in (("config", self._config_file), ("tenants", self._tenants)):
            if followed:
                self.metrics.reloaded.labels(name).set_function(partial(getattr, followed, "is_current"))
        self._bind()

    def _bind(self) -> None:
        config = self.config
        requests = Arrivals(_MOST_SLOW, config.stall_seconds)
        reflecting = Arrivals(_MOST_REFLECTING, _REFLECTION_SECONDS)
        self._arrivals = (requests, reflecting, self._health.servicer.arrivals)

        entrance = turns.Entrance()
        records = Records(self.metrics, self._tracing, config.log_requests, config.log_content)

        interceptor = CallInterceptor(
            records,
            self._running,
            self._shadows,
            config.stall_seconds,
            requests,
            reflecting,
            self._departures,
            self._requests,
        )

        def services(**who: Any) -> Services:
            return Services(interceptor.wrap, Intake(self.metrics, self._running, entrance, **who))

        authentication = self._authentication = (
            Authentication(
                self._tenants, UnauthenticatedConnections(self.metrics.hung_up.inc, self.metrics.ignored.set)
            )
            if self._tenants
            else None
        )
        public = ports.public(
            services(authentication=authentication),
            self.models,
            self._answers,
            self._monitors,
            self._feedback,
            self.operations,
            self._health,
            config,
        )
        self._credentials = tls.credentials(config.tls, self.metrics.certificate_expiry.set) if config.tls else None
        self.address = self.admin_address = self.health_address = ""
        self._servers, self._beside = [public], list[Server]()
        if config.admin_listen:
            admin = services(everybody=ADMINISTRATOR)
            self._servers.append(ports.admin(admin, self.models, self.operations, self._health, config))
        if config.health_listen:
            plain = ports.health_only(self._health.servicer, config)
            self.health_address = ports.bind(plain, config.health_listen, "health_listen")
            self._beside.append(plain)
        if not self._shares:
            self._bind_for_callers()
        bound = connections.sockets(config.metrics_listen, "metrics_listen")
        host, _ = host_and_port(config.metrics_listen)
        self.metrics_address = connections.shown(host, bound[0].getsockname()[1])
        self._metrics_server = MetricsServer(self.metrics.page, bound)

    def _bind_for_callers(self) -> None:
        config, (public, *admin) = self.config, self._servers
        self.address = ports.bind(public, config.listen, "listen", self._credentials, self._shares)
        if self._authentication:
            self._authentication.unauthenticated.port = host_and_port(self.address)[1]
        if config.admin_listen:
            self.admin_address = ports.bind(admin[0], config.admin_listen, "admin_listen", shared=self._shares)
            if host_and_port(config.admin_listen)[0] not in _LOOPBACK:
                logger.warning("admin_listen: anybody who can reach %s is an administrator", self.admin_address)

    async def start(self) -> None:
        """Serves health and the model list, then loads every model and puts it into service."""
        await self._health.publish()
        for server in self._beside:
            await server.start()
        if not self._shares:
            await self._accept()
        await self._metrics_server.start()
        self._reloading = asyncio.create_task(self._reload())
        if self._authentication:
            self._keeping_few = asyncio.create_task(self._authentication.unauthenticated.keep_few())
        self._guarding = asyncio.create_task(arrivals.guard(self._arrivals, hardware.available_memory))
        models = list(self.models)
        await concurrency.together(self._load, models, len(models))
        self._answers.start()
        await garbage.keep_what_there_is()
        self._collecting = asyncio.create_task(garbage.collect(self._running))
        await self._health.publish()
        if self._config_file:
            self._following = asyncio.create_task(self._follow(self._config_file))
        if self._joint:
            await self._joint.join()
            self._agreeing = asyncio.create_task(self._joint.follow())
        if self._shares:
            self._bind_for_callers()
            await self._accept()

    async def _accept(self) -> None:
        for server in self._servers:
            await server.start()
        logger.info("gRPC on %s, metrics on http://%s/metrics", self.address, self.metrics_address)

    async def _load(self, model: Model) -> None:
        started = time.monotonic()
        await self.operations.loading.start(model)
        task, seconds = TASK_NAMES[model.manifest.task], time.monotonic() - started
        logger.info("model %s: %s, ready in %.1f s", model.id, task, seconds)

    async def run(self, ready_file: Path | None = None) -> None:
        """Starts, serves until SIGTERM, SIGINT or SIGHUP, drains and stops.

        Raises StepFailed when an engine failed and `on_engine_failure` is exit.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # SIGHUP stays ignored if it was: nohup lets the server outlive its terminal.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                loop.add_signal_handler(number, self._end, number)
        try:
            if await self._started():
                self._announce(ready_file)
                await self._serve()
                await self._linger()
        finally:
            await self.stop()

    def _end(self, number: signal.Signals) -> None:
        # A user at a terminal does not want to wait for proxies; nor does anybody who sends the signal twice.
        if number != signal.SIGTERM or self._stopping.is_set():
            self._hurrying.set()
        self._stopping.set()

    async def _linger(self) -> None:
        """Reports NOT_SERVING, and goes on serving until clients that poll health have noticed."""
        seconds = self.config.linger_seconds
        if seconds and not self._hurrying.is_set():
            logger.info("NOT_SERVING: accepting new calls for %g s more", seconds)
            await self._health.drain()
            await asyncio.wait((asyncio.create_task(self._hurrying.wait()),), timeout=seconds)
            self._hurrying.set()

    async def _started(self) -> bool:
        """Starts; returns False if told to stop meanwhile. Engines that are starting then are killed, not awaited."""
        starting = asyncio.create_task(self.start())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if self._stopping.is_set():
            await concurrency.end([starting])
            return False
        stopping.cancel()
        await starting
        return True

    async def _serve(self) -> None:
        """Serves until the server is told to stop, or an engine failed for good."""
        stopping = asyncio.create_task(self._stopping.wait())
        given_up = asyncio.create_task(self.supervisor.given_up.wait())
        try:
            await asyncio.wait((stopping, given_up), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stopping, given_up):
                task.cancel()
        if self.supervisor.given_up.is_set():
            failed = "; ".join(f"model {one.id}: its engine {one.failure}" for one in self.models if one.failure)
            raise StepFailed(failed, "see the engine's log above")

    async def _reload(self) -> None:
        while self._tenants is not None:
            await asyncio.sleep(_RELOAD_SECONDS)
            await asyncio.get_running_loop().run_in_executor(self._reading_keys, self._tenants.reload_if_changed)

    async def _follow(self, file: Reloading) -> None:
        while True:
            await asyncio.sleep(_RELOAD_SECONDS)
            await file.reload_if_changed()

    async def stop(self) -> None:
        """Sets health to NOT_SERVING, refuses new calls, waits for running ones, ends the engines. Does nothing if
        called again.
        """
        if self._stopped:
            return
        self._stopped = True
        seconds = self.config.drain_seconds
        logger.info("draining: running calls have %g s", seconds)
        await self._health.drain()
        if self._following:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self.operations.loading.stop()
        calls = asyncio.create_task(self._drain(max(0.0, seconds - _GOODBYE_SECONDS)))
        await asyncio.gather(*(model.drain(seconds) for model in self.models), asyncio.wait((calls,), timeout=seconds))
        calls.cancel()
        await self._running.hold()
        closing = asyncio.gather(*(server.stop(_GOODBYE_SECONDS) for server in self._servers + self._beside))
        asyncio.get_running_loop().call_soon(self._running.release)
        await closing
        for task in (self._reloading, self._guarding, self._collecting, self._keeping_few, self._agreeing):
            if task:
                task.cancel()
        self._reading_keys.shutdown(wait=False)
        await self._shadows.stop()
        await self._answers.close()
        await self.supervisor.stop()
        await asyncio.gather(*(model.close() for model in self.models))
        self.operations.close()
        if self._tracing:
            await concurrency.apart(self._tracing.shutdown)
        self._metrics_server.close()
        logger.info("stopped")

    async def _drain(self, seconds: float) -> None:
        """Waits until no call runs, and all answers have been read."""
        await self._running.drain(seconds)
        await self._departures.shares.none.wait()

    def _announce(self, ready_file: Path | None) -> None:
        logger.info("ready")
        if ready_file:
            Addresses(self.address, self.metrics_address, self.admin_address, self.health_address).write(ready_file)


def _check(config: ServerConfig) -> None:
    """Raises UserError, at once, for mistakes that are easily made and that App finds only after the imports."""
    for name, model in config.models.items():
        check_directories(model, f"models.{name}")
    for key in ("listen", "metrics_listen", "admin_listen", "health_listen"):
        if address := getattr(config, key):
            for one in connections.sockets(address, key, shared=config.processes > 1):
                one.close()


def serve(
    config: ServerConfig, ready_file: Path | None = None, file: ConfigFile | None = None, shared: Path | None = None
) -> None:
    """Runs a server until it is told to stop. `file` is where the config is from, to follow its changes. With
    `processes`, `shared` is the folder of all of them.
    """
    if config.models:
        _check(config)
        for number in (signal.SIGTERM, signal.SIGINT):
            # Until App.run handles them, there is nothing to drain.
            signal.signal(number, lambda *_: os._exit(0))
        fork_server.fork()
    # Disables the `_created` series of each metric: nobody uses them, and they would be in every scrape.
    disable_created_metrics()
    stderr = logs.never_wait()

    async def run() -> None:
        app = App(config, file=file, shared=shared)
        stderr.dropped = app.metrics.log_lines_dropped.inc
        await app.run(ready_file)

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(run())
