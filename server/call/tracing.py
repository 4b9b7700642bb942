"""OpenTelemetry spans: one for each call of our services, with its stages and the engine's own spans as children.

The caller's `traceparent` is the parent, and decides whether the call is traced. Attributes give the tenant, the model
and the token counts, never a prompt or an output. OpenTelemetry is imported only when a Tracing is made, and nothing is
registered globally: the engine has a tracer provider of its own.
"""

import logging
import threading
from typing import TYPE_CHECKING

import grpc

from tuneserve import __version__
from tuneserve.server.call.context import Call

if TYPE_CHECKING:
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

# Codes that count as server errors by OpenTelemetry's conventions; the others leave a span's status unset.
_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


class Tracing:
    """Sends spans to a collector, in batches and in a thread. If the collector is down, spans are lost; calls go on."""

    def __init__(self, endpoint: str, service_name: str = "tuneserve") -> None:
        """`endpoint` is OTLP over gRPC; http:// for plain text, https:// for TLS."""
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        self._exporter = OTLPSpanExporter(endpoint=endpoint)
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: service_name, SERVICE_VERSION: __version__}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("tuneserve.server", __version__)
        self._spans: dict[int, Span] = {}

    def start(self, call: Call, service: str) -> None:
        """Begins a span at its call's start, and passes it to the engine in `call.trace`. `end` must follow."""
        span = self._tracer.start_span(
            f"{service}/{call.method}",
            context=self._propagator.extract(call.metadata),
            kind=self._trace.SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": call.method},
            start_time=call.started_ns,
        )
        headers: dict[str, str] = {}
        self._propagator.inject(headers, context=self._trace.set_span_in_context(span))
        call.trace = headers
        self._spans[id(call)] = span

    def end(self, call: Call, code_name: str) -> None:
        """Ends a call's span and records its stages, if it has a span."""
        span = self._spans.pop(id(call), None)
        if span is None:
            return
        if span.is_recording():
            self._describe(span, call, code_name)
            context = self._trace.set_span_in_context(span)
            for stage in call.stages:
                part = self._tracer.start_span(stage.name, context=context, start_time=stage.start_ns)
                part.end(end_time=stage.end_ns)
        span.end(end_time=call.now_ns())

    def shutdown(self, seconds: float = 5.0) -> None:
        """Sends the remaining spans, waiting at most `seconds`. Blocks."""
        # In a thread, because the library's own limits are half a minute and more.
        thread = threading.Thread(target=self._provider.shutdown, name="tracing-shutdown", daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            logger.warning("the last spans were not sent: no answer from the collector for %g s", seconds)
            self._exporter.shutdown()

    def _describe(self, span: "Span", call: Call, code_name: str) -> None:
        span.set_attributes(
            {
                "rpc.grpc.status_code": grpc.StatusCode[code_name].value[0],
                "tuneserve.request_id": call.request_id,
                "tuneserve.tenant": call.tenant.name,
            }
        )
        if call.model:
            span.set_attributes(
                {
                    "gen_ai.request.model": call.model,
                    "tuneserve.model.version": call.version,
                    "gen_ai.usage.input_tokens": call.prompt_tokens,
                    "gen_ai.usage.output_tokens": call.completion_tokens,
                }
            )
        if code_name in _FAULTS:
            span.set_attribute("error.type", code_name)
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))
