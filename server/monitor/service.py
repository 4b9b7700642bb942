"""MonitorService: finds and counts the topic and the sentiment of each text of a stream."""

from collections.abc import AsyncGenerator, AsyncIterable, Hashable, Mapping, Sequence
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
    """What one model found in texts."""

    model: Model
    labels: Sequence[classification_pb2.Classification]
    requests: Sequence[pb.ObserveStreamRequest]  # as the model saw them
    best: Sequence[tuple[str, float]]  # label of each text, with its probability
    per_label: Mapping[str, int] | None


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
        answered = streams.answered(request_iterator, self._answers, STREAM_AHEAD, _alike)
        async with aclosing(answered) as responses:
            async for response in responses:
                yield response

    async def _answers(self, some: Sequence[Received]) -> AsyncGenerator[pb.ObserveStreamResponse, None]:
        outcomes = await streams.outcomes(some, self._one, self._observe)
        for received, outcome in zip(some, outcomes, strict=True):
            if isinstance(outcome, classification_pb2.Error):
                yield pb.ObserveStreamResponse(id=received.message.id, error=outcome)
            else:
                yield pb.ObserveStreamResponse(id=received.message.id, observation=outcome)

    async def _one(self, request: pb.ObserveStreamRequest) -> pb.Observation:
        [found] = await self._observe([request])
        return found

    async def _observe(self, requests: Sequence[pb.ObserveStreamRequest]) -> list[pb.Observation]:
        """Observes the texts of requests that are alike."""
        name = requests[0].monitor
        monitor = self._monitors.get(name)
        with Violations() as wrong:
            for request in requests:
                check_text(wrong, "text", request.text)
            long_texts = convert.LongTexts(convert.truncation(wrong, requests[0].truncation, windows=False))
        topics, sentiments = await concurrency.together(
            lambda one: self._find(*one, requests, long_texts), ((monitor.topic, True), (monitor.sentiment, False)), 2
        )
        examples = [await _masked(one, sentiments.model) for one in topics.requests] if monitor.examples else []
        # Not before: if one of them can't answer all texts, both are asked again for fewer.
        for found in (topics, sentiments):
            await answers.count(found.model.name, len(requests), found.best, found.per_label)
        observed = []
        for index, (topic, sentiment) in enumerate(zip(topics.labels, sentiments.labels, strict=True)):
            [tone] = sentiment.labels
            labels = [one.label for one in topic.labels]
            self._monitors.count(name, topics.model, labels, sentiments.model, tone.label)
            if examples:
                for label in labels:
                    cell = name, label, tone.label
                    self._examples.add(current().tenant.name, cell, examples[index].text, monitor.examples)
            observed.append(
                pb.Observation(
                    topics=topic.labels,
                    sentiment=tone,
                    usage=common_pb2.Usage(prompt_tokens=topic.token_count + sentiment.token_count),
                    topic_model_version=topics.model.id,
                    sentiment_model_version=sentiments.model.id,
                    truncated=topic.truncated or sentiment.truncated,
                )
            )
        return observed

    async def _find(
        self, alias: str, several: bool, requests: Sequence[pb.ObserveStreamRequest], long_texts: convert.LongTexts
    ) -> _Found:
        """Returns the label of each text; its labels, if there may be `several` and the model is for that."""
        with streams.part():
            model = self._models.for_task(alias, checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION)
            async with admitted(model, requests[0], requests[0].priority) as (place, first):
                others = [(await place.masked(one)).request if model.masks else one for one in requests[1:]]
                seen = [first.request, *others]
                texts = [one.text for one in seen]
                note(texts)
                results = await Classifier(place, long_texts).score(texts, "text")
            problem, temperature = convert.problem_of(model.manifest), checkpoint.temperature_of(model.manifest)
            several &= problem == checkpoint_pb2.PROBLEM_TYPE_MULTI_LABEL
            least = [answers.LIKELY] * len(model.labels) if several else None
            shown = convert.Shown(model.labels, problem, None if several else 1, False, least, temperature)
            response = classification_pb2.ClassifyResponse()
            scores, best = await answers.add(response, results, shown)
            return _Found(model, response.results, seen, best, answers.per_label(scores, shown))

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


async def _masked(seen: pb.ObserveStreamRequest, model: Model) -> pb.ObserveStreamRequest:
    """Returns a request without the personal data that another model masks, too."""
    return (await redacted(model.redactor, seen, "", model.tokenizer.apart)).request if model.masks else seen


def _alike(received: Received) -> Hashable:
    """What requests of a stream have in common that are observed together: all but the text. None for a large one."""
    request: pb.ObserveStreamRequest = received.message
    return None if received.size > streams.SMALL else (request.monitor, request.truncation, request.priority)
