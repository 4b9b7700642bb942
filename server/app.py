"""The server as a whole: bind, load, serve, drain.

Ports are bound and health answers NOT_SERVING before any model loads, so that a port in use fails at once and
probes see the loading. SIGTERM and SIGINT flip health first, refuse new calls, let running ones end, and stop.
"""

import asyncio
import json
import logging
import signal
import threading
import time
from pathlib import Path
from wsgiref.simple_server import WSGIServer

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from prometheus_client import disable_created_metrics, start_http_server

from tuneserve import checkpoint
from tuneserve.errors import StepFailed, UserError
from tuneserve.server.catalog import ModelService
from tuneserve.server.classification import ClassificationService
from tuneserve.server.config import ModelConfig, ServerConfig, host_and_port
from tuneserve.server.generation import GenerationService
from tuneserve.server.interceptors import CallInterceptor
from tuneserve.server.metrics import Metrics
from tuneserve.server.models import EngineFactory, Model, Models
from tuneserve.server.seam import Engine
from tuneserve.v1 import (
    checkpoint_pb2,
    classification_pb2,
    classification_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)

logger = logging.getLogger(__name__)

SERVICES = {
    checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION: classification_pb2.DESCRIPTOR.services_by_name[
        "ClassificationService"
    ].full_name,
    checkpoint_pb2.TASK_TOKEN_CLASSIFICATION: classification_pb2.DESCRIPTOR.services_by_name[
        "ClassificationService"
    ].full_name,
    checkpoint_pb2.TASK_GENERATION: generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name,
}
MODEL_SERVICE = model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
_WATCH_SECONDS = 1.0
# A step of long prompts on a small busy CPU holds the engine's loop for many seconds.
_PING_TIMEOUT_SECONDS = 60.0
# Models start side by side, but vLLM and transformers can't be imported by two threads at once.
_IMPORTING = threading.Lock()
_OPTIONS = (
    # Otherwise a second server would share the port without a word.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 32 << 20),
    ("grpc.max_send_message_length", 64 << 20),
)


async def start_engine(name: str, config: ModelConfig, manifest: checkpoint_pb2.Checkpoint) -> Engine:
    """Starts the real engine of one model in a thread: importing and starting vLLM blocks for half a minute."""

    def start() -> Engine:
        from tuneserve.server import hardware

        with _IMPORTING:
            from tuneserve.server.engine import VllmEngine

        try:
            return VllmEngine(name, config, manifest.task, hardware.detect(config, manifest))
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise StepFailed(f"model {name}: the engine did not start: {reason}", "its own log is above") from error

    return await asyncio.to_thread(start)


class App:
    """One server process."""

    def __init__(self, config: ServerConfig, make_engine: EngineFactory = start_engine) -> None:
        """Checks the checkpoints' content and binds both ports. Raises UserError before anything loads."""
        self.config = config
        self.metrics = Metrics()
        self.models = Models(
            {
                name: Model(name, model, checkpoint.load(model.path), self.metrics)
                for name, model in config.models.items()
            }
        )
        self._make_engine = make_engine
        self._stopping = asyncio.Event()
        self._stopped = False
        self._health = HealthServicer()
        self._server = grpc.aio.server(interceptors=[CallInterceptor(self.metrics)], options=_OPTIONS)
        classification_pb2_grpc.add_ClassificationServiceServicer_to_server(
            ClassificationService(self.models), self._server
        )
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationService(self.models), self._server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(self.models), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (*sorted(set(SERVICES.values())), MODEL_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME),
            self._server,
        )
        self.address = self._bind(config.listen)
        self.metrics_address = self._bind_metrics(config.metrics_listen)

    async def start(self) -> None:
        """Serves health and the model list, then loads every model and serves them."""
        await self._publish_health()
        await self._server.start()
        logger.info("gRPC on %s, metrics on http://%s/metrics", self.address, self.metrics_address)
        await asyncio.gather(*(self._load(model) for model in self.models))
        await self._publish_health()

    async def _load(self, model: Model) -> None:
        started = time.monotonic()
        await model.load(self._make_engine)
        task, seconds = checkpoint.TASK_NAMES[model.manifest.task], time.monotonic() - started
        logger.info("model %s: %s, ready in %.1f s", model.name, task, seconds)

    async def run(self, ready_file: Path | None = None) -> None:
        """Starts, serves until SIGTERM or SIGINT, drains and stops."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        try:
            # An engine can't be stopped while it starts: a signal during that time is obeyed right after it.
            await self.start()
            if not self._stopping.is_set():
                self._announce(ready_file)
                await self._watch()
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Flips health, refuses new calls, waits for running ones, ends the engines. The second time does nothing."""
        if self._stopped:
            return
        self._stopped = True
        logger.info("draining: running calls have %g s", self.config.drain_seconds)
        for model in self.models:
            model.state = model_pb2.MODEL_STATE_DRAINING
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self.config.drain_seconds)
        await asyncio.gather(*(model.close() for model in self.models))
        self._metrics_server.shutdown()
        self._metrics_server.server_close()
        logger.info("stopped")

    def _announce(self, ready_file: Path | None) -> None:
        logger.info("ready")
        if ready_file:
            text = json.dumps({"grpc": self.address, "metrics": self.metrics_address})
            temporary = ready_file.with_suffix(".tmp")
            temporary.write_text(text + "\n", encoding="utf-8")
            temporary.replace(ready_file)

    async def _watch(self) -> None:
        """Watches every engine until the server stops."""
        watching = [asyncio.create_task(self._watch_one(model)) for model in self.models]
        await self._stopping.wait()
        for task in watching:
            task.cancel()

    async def _watch_one(self, model: Model) -> None:
        """Pings an engine. A dead one takes its model out of service for good, one that hangs until it answers."""
        while True:
            ping = asyncio.ensure_future(model.engine.ping())
            done, _ = await asyncio.wait((ping,), timeout=_PING_TIMEOUT_SECONDS)
            if not done:
                logger.error("model %s: engine does not answer for %g s", model.name, _PING_TIMEOUT_SECONDS)
                model.set_alive(False)
                await self._publish_health()
                await asyncio.wait((ping,))
            if error := ping.exception():
                logger.error("model %s: engine is dead", model.name, exc_info=error)
                model.set_alive(False)
                await self._publish_health()
                return
            if model.state == model_pb2.MODEL_STATE_FAILED:
                logger.info("model %s: engine answers again", model.name)
                model.set_alive(True)
                await self._publish_health()
            await asyncio.sleep(_WATCH_SECONDS)

    async def _publish_health(self) -> None:
        """A service serves when all its models do; the server, when every model does."""
        ready = {
            True: health_pb2.HealthCheckResponse.SERVING,
            False: health_pb2.HealthCheckResponse.NOT_SERVING,
        }
        by_service: dict[str, list[bool]] = {"": [], **{name: [] for name in SERVICES.values()}}
        for model in self.models:
            is_ready = model.state == model_pb2.MODEL_STATE_READY
            by_service[""].append(is_ready)
            by_service[SERVICES[model.manifest.task]].append(is_ready)
        for service, states in by_service.items():
            await self._health.set(service, ready[bool(states) and all(states)])
        await self._health.set(MODEL_SERVICE, ready[True])

    def _bind(self, address: str) -> str:
        host, _ = host_and_port(address, "listen")
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            raise UserError(f"listen: can't bind {address}", "another program has the port: choose another") from None
        return f"{host}:{port}"

    def _bind_metrics(self, address: str) -> str:
        host, port = host_and_port(address, "metrics_listen")
        try:
            server, _ = start_http_server(port, addr=host, registry=self.metrics.registry)
        except OSError as error:
            raise UserError(f"metrics_listen: can't bind {address}: {error.strerror}", "choose another port") from None
        self._metrics_server: WSGIServer = server
        return f"{host}:{server.server_port}"


def serve(config: ServerConfig, ready_file: Path | None = None) -> None:
    """Runs a server until it is told to stop."""

    # One more series for each of ours, with the time it began: nobody asks for it, and each scrape would carry it.
    disable_created_metrics()

    async def run() -> None:
        await App(config).run(ready_file)

    asyncio.run(run())
