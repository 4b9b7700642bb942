"""MonitorService: finds and counts the topic and the sentiment of each text of a stream."""

from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from typing import Any, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from tuneserve import checkpoint
from tuneserve.server import concurrency
from tuneserve.server.api import classification_answers as answers
from tuneserve.server.api import classification_messages as convert
from tuneserve.server.api import streams
from tuneserve.server.api.checks import check_text, listed
from tuneserve.server.api.classification import STREAM_AHEAD
from tuneserve.server.api.pooling import Classifier, note
from tuneserve.server.call.context import current
from tuneserve.server.call.errors import Violations, WrongState
from tuneserve.server.call.wire import Received
from tuneserve.server.models.aliases import Models
from tuneserve.server.models.model import Model
from tuneserve.server.models.place import admitted
from tuneserve.server.monitor.examples import Examples
from tuneserve.server.monitor.monitors import Monitors
from tuneserve.server.text.masking import redacted
from tuneserve.v1 import checkpoint_pb2, classification_pb2, common_pb2
from tuneserve.v1 import monitor_pb2 as pb
from tuneserve.v1.monitor_pb2_grpc import MonitorServiceServicer


class _Found(NamedTuple):
    """What one model found in a text."""

    model: Model
    labels: classification_pb2.Classification
    request: pb.ObserveStreamRequest  # as the model saw it


class MonitorService(MonitorServiceServicer):
    """Topics and sentiments of streams of texts."""

    def __init__(self, models: Models, monitors: Monitors) -> None:
        self._models = models
        self._monitors = monitors
        self._examples = Examples()

    async def ObserveStream(
        self, request_iterator: AsyncIterable[Received], context: Any
    ) -> AsyncGenerator[pb.ObserveStreamResponse, None]:
        """See monitor.proto."""
        async with aclosing(streams.answered(request_iterator, self._one, STREAM_AHEAD)) as responses:
            async for response in responses:
                yield response

    async def _one(self, received: Received) -> AsyncGenerator[pb.ObserveStreamResponse, None]:
        request: pb.ObserveStreamRequest = received.message
        outcome = await streams.outcome(received, self._observe)
        if isinstance(outcome, classification_pb2.Error):
            yield pb.ObserveStreamResponse(id=request.id, error=outcome)
        else:
            yield pb.ObserveStreamResponse(id=request.id, observation=outcome)

    async def _observe(self, request: pb.ObserveStreamRequest) -> pb.Observation:
        monitor = self._monitors.get(request.monitor)
        with Violations() as wrong:
            check_text(wrong, "text", request.text)
            long_texts = convert.LongTexts(convert.truncation(wrong, request.truncation, windows=False))
        topic, sentiment = await concurrency.together(
            lambda one: self._find(*one, request, long_texts), ((monitor.topic, True), (monitor.sentiment, False)), 2
        )
        topics, [found] = topic.labels.labels, sentiment.labels.labels
        self._monitors.count(request.monitor, topic.model, [one.label for one in topics], sentiment.model, found.label)
        if monitor.examples:
            await self._keep(request.monitor, topic, sentiment, monitor.examples)
        return pb.Observation(
            topics=topics,
            sentiment=found,
            usage=common_pb2.Usage(prompt_tokens=current().prompt_tokens),
            topic_model_version=topic.model.id,
            sentiment_model_version=sentiment.model.id,
            truncated=topic.labels.truncated or sentiment.labels.truncated,
        )

    async def _find(
        self, alias: str, several: bool, request: pb.ObserveStreamRequest, long_texts: convert.LongTexts
    ) -> _Found:
        """Returns the label of a text; the labels, if there may be `several` and the model is for that."""
        with streams.part():
            model = self._models.for_task(alias, checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION)
            async with admitted(model, request, request.priority) as (place, seen):
                note([seen.request.text])
                results = await Classifier(place, long_texts).score([seen.request.text], "text")
            problem, temperature = convert.problem_of(model.manifest), checkpoint.temperature_of(model.manifest)
            several &= problem == checkpoint_pb2.PROBLEM_TYPE_MULTI_LABEL
            least = [answers.LIKELY] * len(model.labels) if several else None
            shown = convert.Shown(model.labels, problem, None if several else 1, False, least, temperature)
            response = classification_pb2.ClassifyResponse()
            await answers.add_counted(response, results, shown, model.name)
            return _Found(model, response.results[0], seen.request)

    async def _keep(self, monitor: str, topic: _Found, sentiment: _Found, most: int) -> None:
        """Keeps a text as an example, without the personal data that one of the models masks."""
        seen, model = topic.request, sentiment.model
        if model.masks:
            seen = (await redacted(model.redactor, seen, "", model.tokenizer.apart)).request
        [found] = sentiment.labels.labels
        for one in topic.labels.labels:
            self._examples.add(current().tenant.name, (monitor, one.label, found.label), seen.text, most)

    async def Examples(self, request: pb.ExamplesRequest, context: Any) -> pb.ExamplesResponse:
        """See monitor.proto."""
        monitor = self._monitors.get(request.monitor)
        with Violations() as wrong:
            for field, alias in (("topic", monitor.topic), ("sentiment", monitor.sentiment)):
                labels = list(dict.fromkeys(label for model in self._models.all(alias) for label in model.labels))
                if getattr(request, field) not in labels:
                    wrong.add(field, f"is not a {field} of the monitor; {field}s: {listed(labels)}")
        if not monitor.examples:
            what = f"monitor {request.monitor!r} keeps no examples: set `examples` in its settings"
            raise WrongState(what, "NO_EXAMPLES", request.monitor)
        found = self._examples.last(current().tenant.name, (request.monitor, request.topic, request.sentiment))
        response = pb.ExamplesResponse()
        for example in found:
            time = Timestamp()
            time.FromNanoseconds(example.time_ns)
            response.examples.add(text=example.text, time=time)
        return response
