"""ClassificationService: converts requests, calls the engine, converts its answers."""

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Hashable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np

from tuneserve import checkpoint
from tuneserve.server.api import classification_answers as answers
from tuneserve.server.api import classification_messages as convert
from tuneserve.server.api import streams
from tuneserve.server.api.checks import check_text, check_unset
from tuneserve.server.api.label_prompts import Question, check_question
from tuneserve.server.api.occlusion import Explanation, check_explain
from tuneserve.server.api.pooling import Classifier, encoded, note, windowed
from tuneserve.server.api.zero_shot import ZeroShot
from tuneserve.server.call.context import current
from tuneserve.server.call.errors import Violations
from tuneserve.server.call.wire import Received
from tuneserve.server.models.aliases import Models
from tuneserve.server.models.place import admitted
from tuneserve.server.text import spans, windows
from tuneserve.server.text.redaction import Masked
from tuneserve.server.text.tokenizer import Tokens
from tuneserve.v1 import checkpoint_pb2, common_pb2
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceServicer

# The tasks of models that give scores to a text, or to a pair of texts.
_SCORERS = checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION, checkpoint_pb2.TASK_RANKING
# Requests of one stream that run or whose answers are unread, at most.
STREAM_AHEAD = 64
# Spans of calls with more tokens are found in threads; of fewer on the event loop, because that is faster.
_SHORT = 256
# Bytes of one score in the answer, without its label.
_SCORE_BYTES = 12
# Bytes of a span in the answer, without its label and text; there may be one span a token.
_SPAN_BYTES = 24


class ClassificationService(ClassificationServiceServicer):
    """Labels for texts and for spans inside texts."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def Classify(self, request: pb.ClassifyRequest, context: Any) -> pb.ClassifyResponse:
        """See classification.proto."""
        model = self._models.for_task(request.model, *_SCORERS, checkpoint_pb2.TASK_GENERATION)
        most, is_zero_shot = model.config.max_inputs, model.manifest.task == checkpoint_pb2.TASK_GENERATION
        with Violations() as wrong:
            texts = convert.checked_pairs(wrong, request, most)
            if is_zero_shot:
                check_question(wrong, request, most)
                long_texts = convert.only_truncation(wrong, request)
                shown = convert.shown(wrong, request, list(request.labels), checkpoint_pb2.PROBLEM_TYPE_SINGLE_LABEL)
            else:
                check_unset(wrong, request, ["labels", "examples", "instruction"], "is for generation models only")
                long_texts = convert.long_texts(wrong, request, model.engine.max_length, most)
                problem, temperature = convert.problem_of(model.manifest), checkpoint.temperature_of(model.manifest)
                shown = convert.shown(wrong, request, model.labels, problem, temperature)
            if request.HasField("explain"):
                check_explain(wrong, request, model.config)
        current().hold(len(texts) * shown.width(_SCORE_BYTES))
        async with admitted(model, request, request.priority) as (place, seen):
            if model.masks:
                texts = convert.pairs(seen.request)
            note(texts)
            explanation = await Explanation.of(request, seen, model) if request.HasField("explain") else None
            scorer: ZeroShot | Classifier = Classifier(place, long_texts)
            if is_zero_shot:
                scorer = await ZeroShot.of(place, Question.of(seen.request), long_texts.truncate)
            results = await scorer.score(texts, "inputs[{}].text")
            if explanation:
                without = await explanation.score(scorer.score)
        usage = common_pb2.Usage(prompt_tokens=place.prompt_tokens)
        response = pb.ClassifyResponse(usage=usage, model_version=model.id)
        scores = await answers.add_counted(response, results, shown, model.name, named=not is_zero_shot)
        if explanation:
            explanation.add_weights(response.results, scores, without, shown)
        return response

    async def ClassifyTokens(self, request: pb.ClassifyTokensRequest, context: Any) -> pb.ClassifyTokensResponse:
        """See classification.proto."""
        model = self._models.for_task(request.model, checkpoint_pb2.TASK_TOKEN_CLASSIFICATION)
        with Violations() as wrong:
            texts = convert.texts(wrong, request, model.config.max_inputs)
            long_texts = convert.long_texts(wrong, request, model.engine.max_length, model.config.max_inputs)
        async with admitted(model, request, request.priority) as (place, seen):
            masked = [seen.original(f"texts[{index}]", text) for index, text in enumerate(texts)]
            note(seen.request.texts)
            tokens, split = await windowed(place, long_texts, list(seen.request.texts), "texts[{}]")
            rows = iter(await place.pool([one.encoded for part in split for one in part], "token_classify"))
        current_call = current()
        how, unit = convert.AGGREGATIONS[request.aggregation], convert.UNITS[request.offset_unit]
        usage = common_pb2.Usage(prompt_tokens=place.prompt_tokens)
        response = pb.ClassifyTokensResponse(usage=usage, model_version=model.id)
        # Not kept as span objects: half a million of them take the garbage collector long to traverse.
        labels, sure, noted = list[str](), list[float](), list[str]()

        def decode() -> Iterator[None]:
            for text, mask, one, its_windows in zip(texts, masked, tokens, split, strict=True):
                logits = windows.stitch(one, its_windows, [next(rows) for _ in its_windows])
                yield
                scores = yield from answers.token_probabilities(logits)
                places = yield from _places(one, mask)
                new = yield from spans.find(text, scores, places, one.words, model.labels, how)
                yield from answers.add_spans(response, text, new, unit, one)
                labels.extend(span.label for span in new)
                sure.extend(span.score for span in new)
                if current_call.content is not None:
                    noted.extend(f"{span.label} {span.start}-{span.end}" for span in new)
                yield

        total = sum(one.length for one in tokens)
        current().hold(_SPAN_BYTES * total)
        if total < _SHORT:
            for _ in decode():
                pass
        else:
            await model.tokenizer.in_steps(decode())
        current_call.note("output", *noted)
        await answers.count(model.name, len(texts), zip(labels, sure, strict=True))
        return response

    async def ClassifyStream(
        self, request_iterator: AsyncIterable[Received], context: Any
    ) -> AsyncGenerator[pb.ClassifyStreamResponse, None]:
        """See classification.proto."""
        answered = streams.answered(request_iterator, self._answers, STREAM_AHEAD, _alike)
        async with aclosing(answered) as responses:
            async for response in responses:
                yield response

    async def _answers(self, some: Sequence[Received]) -> AsyncGenerator[pb.ClassifyStreamResponse, None]:
        outcomes = await streams.outcomes(some, lambda item: self.Classify(item.request, None), self._together)
        for received, outcome in zip(some, outcomes, strict=True):
            if isinstance(outcome, pb.Error):
                yield pb.ClassifyStreamResponse(id=received.message.id, error=outcome)
            else:
                yield pb.ClassifyStreamResponse(id=received.message.id, response=outcome)

    async def _together(self, items: Sequence[pb.ClassifyStreamRequest]) -> list[pb.ClassifyResponse]:
        """Classifies the texts of requests that are alike as one call does."""
        request = pb.ClassifyRequest()
        request.CopyFrom(items[0].request)
        for item in items[1:]:
            request.inputs.extend(item.request.inputs)
        whole = await self.Classify(request, None)
        return [
            pb.ClassifyResponse(
                results=[one],
                usage=common_pb2.Usage(prompt_tokens=one.token_count),
                model_version=whole.model_version,
            )
            for one in whole.results
        ]

    async def Rank(self, request: pb.RankRequest, context: Any) -> pb.RankResponse:
        """See classification.proto."""
        model = self._models.for_task(request.model, *_SCORERS)
        with Violations() as wrong:
            check_text(wrong, "query", request.query)
            convert.plain_texts(wrong, "candidates", request.candidates, model.config.max_inputs)
            label = convert.rank_label(wrong, request, model.labels)
            truncate = convert.truncation(wrong, request.truncation, windows=False)
        async with admitted(model, request, request.priority) as (place, seen):
            # Read once: each access to a field of a message makes a new string.
            query, candidates = seen.request.query, list(seen.request.candidates)
            pairs = [(query, candidate) for candidate in candidates]
            note([query, *candidates])
            tokens = await encoded(place, pairs, "candidates[{}]", truncate=truncate)
            rows = np.stack(await place.pool([one.encoded for one in tokens], "classify"))
        problem, temperature = convert.problem_of(model.manifest), checkpoint.temperature_of(model.manifest)
        scores = answers.probabilities(rows, problem, temperature)
        shown = (rows if request.raw_scores else scores)[:, label]
        # Sorted by what is returned: probabilities may be equal where logits are not.
        order = np.argsort(-shown, kind="stable")[: request.top_k if request.HasField("top_k") else None]
        return pb.RankResponse(
            results=[pb.RankedCandidate(index=int(index), score=float(shown[index])) for index in order],
            usage=common_pb2.Usage(prompt_tokens=place.prompt_tokens),
            model_version=model.id,
        )


def _alike(received: Received) -> Hashable:
    """What requests of a stream have in common that are classified together: all but the text. None for a large one,
    and for one that costs the model something else than to read a text.
    """
    request: pb.ClassifyRequest = received.message.request
    is_plain = len(request.inputs) == 1 and not (request.labels or request.HasField("explain"))
    if not is_plain or request.truncation == common_pb2.TRUNCATION_WINDOWS or received.size > streams.SMALL:
        return None
    rest = pb.ClassifyRequest()
    rest.CopyFrom(request)
    rest.ClearField("inputs")
    return rest.SerializeToString(deterministic=True)


def _places(tokens: Tokens, mask: Masked) -> Generator[None, None, list[tuple[int, int]]]:
    """Returns where tokens are in the caller's text, in steps of some milliseconds."""
    found: list[tuple[int, int]] = []
    for start in range(0, len(tokens.offsets), spans.STEP):
        found += [mask.original(*place) for place in tokens.offsets[start : start + spans.STEP]]
        yield
    return found
