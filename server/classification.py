"""ClassificationService: convert, engine, convert."""

from collections.abc import Sequence
from typing import Any

from tuneserve.server import convert, spans
from tuneserve.server.context import request_id
from tuneserve.server.models import Model, Models
from tuneserve.server.tokenizer import Tokens
from tuneserve.v1 import checkpoint_pb2, common_pb2
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceServicer


class ClassificationService(ClassificationServiceServicer):
    """Labels for texts and for spans inside texts."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def Classify(self, request: pb.ClassifyRequest, context: Any) -> pb.ClassifyResponse:
        """See classification.proto."""
        model = self._models.for_task(request.model, checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION)
        texts = convert.pairs(request, model.config.max_inputs)
        with model.admitted():
            tokens = await _encode(model, texts, request.truncation, "inputs[{}].text")
            logits = await model.engine.pool(request_id(), [one.encoded for one in tokens], "classify")
        top_k = request.top_k if request.HasField("top_k") else None
        results = []
        for row, one in zip(logits, tokens, strict=True):
            scores = convert.probabilities(row, model.manifest.problem_type)
            best = int(scores.argmax())
            _count(model, [(model.labels[best], float(scores[best]))])
            results.append(convert.classification(row if request.raw_scores else scores, model.labels, top_k, one))
        return pb.ClassifyResponse(results=results, usage=_usage(model, tokens))

    async def ClassifyTokens(self, request: pb.ClassifyTokensRequest, context: Any) -> pb.ClassifyTokensResponse:
        """See classification.proto."""
        model = self._models.for_task(request.model, checkpoint_pb2.TASK_TOKEN_CLASSIFICATION)
        texts = convert.texts(request, model.config.max_inputs)
        with model.admitted():
            tokens = await _encode(model, texts, request.truncation, "texts[{}]")
            logits = await model.engine.pool(request_id(), [one.encoded for one in tokens], "token_classify")
        results = []
        for text, rows, one in zip(texts, logits, tokens, strict=True):
            scores = convert.probabilities(rows, checkpoint_pb2.PROBLEM_TYPE_SINGLE_LABEL)
            found = spans.find(scores, one.offsets, one.words, model.labels, convert.AGGREGATIONS[request.aggregation])
            _count(model, [(span.label, span.score) for span in found])
            results.append(convert.token_classification(text, found, convert.UNITS[request.offset_unit], one))
        return pb.ClassifyTokensResponse(results=results, usage=_usage(model, tokens))


async def _encode(model: Model, texts: Sequence[str | tuple[str, str]], truncation: int, field: str) -> list[Tokens]:
    truncate = truncation == pb.TRUNCATION_END
    tokens = await model.tokenizer.encode(texts, truncate=truncate)
    convert.check_lengths(field, tokens, model.engine.max_length)
    return tokens


def _count(model: Model, predictions: Sequence[tuple[str, float]]) -> None:
    model.metrics.texts.labels(model.name).inc()
    for label, score in predictions:
        model.metrics.predictions.labels(model.name, label).inc()
        model.metrics.confidence.labels(model.name).observe(score)


def _usage(model: Model, tokens: Sequence[Tokens]) -> common_pb2.Usage:
    total = sum(one.length for one in tokens)
    model.metrics.tokens_in.labels(model.name).inc(total)
    return common_pb2.Usage(prompt_tokens=total)
