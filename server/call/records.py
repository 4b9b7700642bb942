"""What is recorded of each call: metrics, a span if it is traced, and a log line."""

import time
from dataclasses import dataclass, field

import grpc

from tuneserve.server.call import request_log
from tuneserve.server.call.context import Call
from tuneserve.server.call.tracing import Tracing
from tuneserve.server.metrics import Metrics


@dataclass(frozen=True)
class Records:
    """The records of one server's calls."""

    metrics: Metrics
    tracing: Tracing | None = None
    log_requests: bool = False
    log_content: bool = False
    _unknown: request_log.Sample = field(init=False)  # log lines of unauthenticated calls

    def __post_init__(self) -> None:
        object.__setattr__(self, "_unknown", request_log.Sample(self.metrics.log_lines_dropped.inc))

    def begin(self, call: Call) -> None:
        """A call begins, authenticated or not. `end` must follow."""
        call.content = {} if self.log_content else None
        self.metrics.started.labels(call.kind, call.service, call.method).inc()

    def trace(self, call: Call) -> None:
        """Starts the span of a call whose caller is known and that may run; the span covers the call from its start."""
        if self.tracing:
            self.tracing.start(call, call.service)

    def end(self, call: Call, code: grpc.StatusCode | None) -> None:
        """A call ended. `code` is None if its caller cancelled it or its deadline passed."""
        ended = code or (grpc.StatusCode.DEADLINE_EXCEEDED if call.expired() else grpc.StatusCode.CANCELLED)
        labels, seconds = (call.kind, call.service, call.method), time.monotonic() - call.began
        self.metrics.handled.labels(*labels, ended.name).inc()
        self.metrics.handling.labels(*labels).observe(seconds)
        self.metrics.count_tenant(call.tenant.name, call.model, ended.name, call.prompt_tokens, call.completion_tokens)
        self.metrics.count_version(call.model, call.version, ended.name)
        if self.tracing:
            self.tracing.end(call, ended.name)
        if self.log_requests:
            left_out = self._unknown.take() if ended == grpc.StatusCode.UNAUTHENTICATED else 0
            if left_out is not None:
                request_log.log(call, ended.name, seconds, left_out)
