"""FeedbackService: checks what people think of an answer, masks it, and appends it to their tenant's files."""

from functools import cache
from typing import Any

from tuneserve.server import concurrency
from tuneserve.server.call.context import current
from tuneserve.server.call.errors import InvalidInput, Violations, WrongState
from tuneserve.server.config import FeedbackConfig
from tuneserve.server.feedback import rows
from tuneserve.server.feedback.files import Files
from tuneserve.server.metrics import Metrics
from tuneserve.server.models.aliases import Models
from tuneserve.server.text import redaction
from tuneserve.server.text.masking import redacted
from tuneserve.server.text.redaction import Redactor
from tuneserve.v1 import feedback_pb2 as pb
from tuneserve.v1.feedback_pb2_grpc import FeedbackServiceServicer


class FeedbackService(FeedbackServiceServicer):
    """Rows to train on."""

    def __init__(self, models: Models, config: FeedbackConfig | None, metrics: Metrics) -> None:
        """Raises UserError naming the key if the directory can't be written."""
        self._models = models
        self._metrics = metrics
        self._redact = tuple(config.redact) if config else ()
        redaction.check(self._redact, "feedback.redact")
        self._files = Files(config) if config else None
        self._redactor = cache(Redactor)

    async def Feedback(self, request: pb.FeedbackRequest, context: Any) -> pb.FeedbackResponse:
        """See feedback.proto."""
        if not request.model:
            raise InvalidInput("model", "is empty; a model's name is needed")
        model = self._models.get(request.model)
        if not self._files:
            raise WrongState("this server keeps no feedback: set `feedback` in its settings", "NO_FEEDBACK")
        with Violations() as wrong:
            rows.check(wrong, request, model.manifest)
        if kinds := (*model.config.redact, *self._redact):
            request = (await redacted(self._redactor(kinds), request, "", concurrency.apart)).request
        found = rows.made(request, model.manifest)
        # By the name that callers use: another version gets its feedback, too.
        name = request.model.partition("@")[0]
        await self._files.append(current().tenant.name, name, found)
        for kind in found:
            self._metrics.feedback.labels(name, kind).inc()
        return pb.FeedbackResponse(rows=len(found))
