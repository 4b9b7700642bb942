"""The health service, grpc.health.v1: status per service, per alias and for the whole server.

An alias is SERVING while one of its versions answers: its calls then go to that version. A service is SERVING while one
of its aliases is, and the server while any alias is: a failed engine takes no other model out of service. At the start
nothing is SERVING before every model is warmed up.

Anybody may ask, without a key. So requests must be short and arrive soon, and a connection can watch only a few names.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from tuneserve.server.call.arrivals import Arrivals
from tuneserve.server.call.errors import InvalidInput, NotFound, Overloaded
from tuneserve.server.models.aliases import Models, Route
from tuneserve.server.models.tasks import TASKS
from tuneserve.v1 import answer_pb2, checkpoint_pb2, feedback_pb2, model_admin_pb2, model_pb2, monitor_pb2

MODEL_SERVICES = (
    model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
    model_admin_pb2.DESCRIPTOR.services_by_name["ModelAdminService"].full_name,
)
ANSWER_SERVICE = answer_pb2.DESCRIPTOR.services_by_name["AnswerService"].full_name
MONITOR_SERVICE = monitor_pb2.DESCRIPTOR.services_by_name["MonitorService"].full_name
FEEDBACK_SERVICE = feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"].full_name
HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

# Bytes of a request: all valid names are shorter.
_MOST_BYTES = 1024
_MOST_SLOW, _SLOW_SECONDS = 8, 2.0
# Watches on one connection. A client that watches once per channel has one connection per channel, too.
_MOST_WATCHES = 32
_RETRY_MS = 1000

_Response = health_pb2.HealthCheckResponse
_STATUS = {True: _Response.SERVING, False: _Response.NOT_SERVING}
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Health:
    """The health service, kept up to date with the models."""

    def __init__(self, models: Models, names: bool = True) -> None:
        """With `names`, anybody can ask for `models/ALIAS`, and so learn which aliases exist."""
        self.servicer = HealthServicer()
        self._models = models
        self._names = names

    async def publish(self) -> None:
        """Publishes the present state of the models to all watchers."""
        routes = self._models.routes
        of_service: dict[str, list[Route]] = {task.service: [] for task in TASKS.values()}
        for route in routes.values():
            of_service[TASKS[route.task].service].append(route)
        serving = {service: _any_serves(of) for service, of in of_service.items()}
        # The texts of monitors go to classifiers.
        serving[MONITOR_SERVICE] = serving[TASKS[checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION].service]
        # Queries and documents go to encoders.
        serving[ANSWER_SERVICE] = serving[TASKS[checkpoint_pb2.TASK_EMBEDDING].service]
        if self._names:
            serving |= {f"models/{alias}": route.serves for alias, route in routes.items()}
        self.servicer.show(
            {"": _any_serves(routes.values()), **dict.fromkeys((*MODEL_SERVICES, FEEDBACK_SERVICE), True), **serving}
        )

    async def drain(self) -> None:
        """Reports NOT_SERVING from now on."""
        self.servicer.end()


def _any_serves(routes: Collection[Route]) -> bool:
    return any(route.serves for route in routes) and not any(route.is_loading for route in routes)


class HealthServicer:
    """The health servicer.

    The library's own is not used: it has no limits and no way to forget a service, and when one of several watchers of
    a service leaves, the others get no more updates.
    """

    def __init__(self) -> None:
        self._serving: Mapping[str, bool] = {}
        self._changed = asyncio.Event()  # set when the state changes; each state has its own event
        self._ended = False
        self.arrivals = Arrivals(_MOST_SLOW, _SLOW_SECONDS)
        self._watches: Counter[str] = Counter()  # by connection

    def add_to(self, server: Any) -> None:
        """Adds the service to a server."""
        # Registered as request streams, because then gRPC receives the one request only when it is asked for it.
        methods: dict[str, Any] = {
            "Check": grpc.stream_unary_rpc_method_handler(self._check, None, _Response.SerializeToString),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch, None, _Response.SerializeToString),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(HEALTH_SERVICE, methods),))

    def show(self, serving: Mapping[str, bool]) -> None:
        """Replaces all states. A service that is not among them becomes unknown."""
        if not self._ended:
            self._serving = serving
            self._changed.set()
            self._changed = asyncio.Event()

    def end(self) -> None:
        """Makes every service NOT_SERVING, for good."""
        self.show(dict.fromkeys(self._serving, False))
        self._ended = True

    async def _check(self, _: Any, context: _Context) -> health_pb2.HealthCheckResponse:
        service = _service(await self.arrivals.read(context))
        if service not in self._serving:
            raise NotFound("service", service, sorted(self._serving))
        return _Response(status=_STATUS[self._serving[service]])

    async def _watch(self, _: Any, context: _Context) -> None:
        peer = context.peer()
        self._watches[peer] += 1
        try:
            if self._watches[peer] > _MOST_WATCHES:
                raise Overloaded(f"a connection can watch {_MOST_WATCHES} services", "WATCHES", _RETRY_MS)
            service, told = _service(await self.arrivals.read(context)), None
            while True:
                changed = self._changed
                serving = self._serving.get(service)
                status = _Response.SERVICE_UNKNOWN if serving is None else _STATUS[serving]
                if status != told:
                    await context.write(_Response(status=status))
                told = status
                await changed.wait()
        finally:
            self._watches[peer] -= 1
            if not self._watches[peer]:
                del self._watches[peer]


def _service(data: bytes) -> str:
    """Returns the name of the service that is asked for."""
    if len(data) > _MOST_BYTES:
        raise InvalidInput("request", f"has {len(data)} bytes; allowed: {_MOST_BYTES}")
    try:
        return str(health_pb2.HealthCheckRequest.FromString(data).service)
    except DecodeError:
        raise InvalidInput("request", "is not a message of this method's type") from None
