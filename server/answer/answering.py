"""How an index answers: it searches, judges what it found, and gives a reply, quotes, or what a model writes from it.

Knows nothing of how passages are found and stored.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple

from tuneserve.errors import UserError
from tuneserve.evaluation import gate, words
from tuneserve.server import concurrency
from tuneserve.server.answer import citations, messages
from tuneserve.server.answer.extraction import extracted
from tuneserve.server.answer.markers import Marked
from tuneserve.server.answer.writing import Writer
from tuneserve.server.api.classification_messages import UNITS
from tuneserve.server.call.context import current
from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.config import IndexConfig
from tuneserve.server.metrics import Metrics
from tuneserve.server.models.aliases import Models
from tuneserve.server.text.spans import Unit
from tuneserve.v1 import answer_pb2 as pb

if TYPE_CHECKING:
    from tuneserve.server.answer.index import Index


# Marks of a written answer that are looked at.
_MOST_CITED = 256


class Answering:
    """The answers of one index."""

    def __init__(self, index: "Index", models: Models, metrics: Metrics) -> None:
        """Raises UserError for a gate that can't judge this index's searches."""
        self._index = index
        self._gate = _loaded_gate(index.name, index.config)
        self._writer = Writer(models, index.config.generation) if index.config.generation else None
        # They start at 0, so that a rate includes the first one.
        self._counted = {
            outcome: metrics.answers.labels(index.name, name.removeprefix("ANSWER_OUTCOME_").lower())
            for name, outcome in pb.AnswerOutcome.items()
            if outcome
        }
        self._kept, self._dropped = (metrics.citations.labels(index.name, one) for one in ("kept", "dropped"))

    async def answer(self, request: pb.AnswerRequest) -> AsyncGenerator[pb.AnswerResponse, None]:
        """See AnswerService.Answer. The request is checked."""
        unit = UNITS[request.offset_unit]
        query = await self._writer.query(request) if self._writer else request.messages[-1].content
        found = await self._found(request, query)
        judged = await concurrency.apart(_judged, self._gate, query, found.passages)
        del found.passages[_limit(request) :]
        yield pb.AnswerResponse(retrieval=pb.Retrieval(query=query, found=found, answerable=judged.answerable))
        end, passages = pb.AnswerEnd(outcome=pb.ANSWER_OUTCOME_NOT_FOUND), found.passages
        if judged.replies:
            reply = passages[0].reply
            yield pb.AnswerResponse(text=reply)
            end.outcome = pb.ANSWER_OUTCOME_REPLY
            end.citations.append(_citation(passages[0], messages.width(reply, unit)))
        elif judged.passes and self._writer:
            async with aclosing(self._written(self._writer, request, query, passages, end)) as texts:
                async for text in texts:
                    yield pb.AnswerResponse(text=text)
        elif judged.passes:
            end.outcome = pb.ANSWER_OUTCOME_ANSWERED
            for text, citation in await concurrency.apart(_quoted, query, passages, unit):
                yield pb.AnswerResponse(text=text)
                end.citations.append(citation)
        call = current()
        end.usage.prompt_tokens, end.usage.completion_tokens = call.prompt_tokens, call.completion_tokens
        self._counted[end.outcome].inc()
        yield pb.AnswerResponse(end=end)

    async def _written(
        self,
        writer: Writer,
        request: pb.AnswerRequest,
        query: str,
        passages: Sequence[pb.Passage],
        end: pb.AnswerEnd,
    ) -> AsyncGenerator[str, None]:
        """Yields what the model writes, without its markers. Adds to `end` how it ended and which citations hold."""
        marked = Marked()
        async with aclosing(writer.write(request, query, passages)) as responses:
            async for response in responses:
                end.generation_model_version = response.model_version or end.generation_model_version
                if text := marked.add("".join(one.text for one in response.completions)):
                    yield text
                if marked.is_not_found:
                    break
        if text := marked.end():
            yield text
        if not marked.text.strip():
            return
        unit = UNITS[request.offset_unit]
        held, end.citations_dropped = await concurrency.apart(_cited, marked, passages, unit)
        end.citations.extend(held)
        end.outcome = pb.ANSWER_OUTCOME_ANSWERED if held else pb.ANSWER_OUTCOME_UNGROUNDED
        self._kept.inc(len(held))
        self._dropped.inc(end.citations_dropped)

    async def _found(self, request: pb.AnswerRequest, query: str) -> pb.SearchResponse:
        last = f"messages[{len(request.messages) - 1}].content"
        try:
            return await self._index.search(
                pb.SearchRequest(
                    index=request.index,
                    query=query,
                    readers=request.readers,
                    filters=request.filters,
                    limit=max(_limit(request), gate.DEPTH),
                    offset_unit=request.offset_unit,
                    priority=request.priority,
                )
            )
        except InvalidInput as error:
            raise error.renamed(lambda field: last if field == "query" else field) from None


class _Judged(NamedTuple):
    """What is to be done with the passages of a query."""

    passes: bool  # answer from them
    replies: bool  # give the first one's reply
    answerable: float | None = None


def _judged(judge: gate.Gate | None, query: str, passages: Sequence[pb.Passage]) -> _Judged:
    if not passages:
        return _Judged(passes=False, replies=False)
    best = passages[0]
    is_same = best.HasField("reply") and words.words(query) == words.words(best.title)
    if judge is None:
        return _Judged(passes=True, replies=is_same)
    features = gate.features(query, passages)
    answerable = judge.answerable.probability(features)
    is_sure = best.HasField("reply") and judge.reply.probability(features) >= judge.reply.threshold
    return _Judged(answerable >= judge.answerable.threshold, is_same or is_sure, answerable)


def _loaded_gate(name: str, config: IndexConfig) -> gate.Gate | None:
    if config.gate is None:
        return None
    loaded = gate.load(config.gate)
    if bool(loaded.ranking_model) != bool(config.ranking):
        was = "with" if loaded.ranking_model else "without"
        told = f"indexes.{name}.gate: {config.gate} was fitted {was} a ranking model, and the index is not"
        raise UserError(told, "fit it again: tuneserve call evaluate --gate FILE")
    return loaded


def _limit(request: pb.AnswerRequest) -> int:
    return request.limit if request.HasField("limit") else messages.ANSWERED_FROM


def _quoted(query: str, passages: Sequence[pb.Passage], unit: Unit) -> list[tuple[str, pb.Citation]]:
    """Returns the parts of an answer that quotes the passages, each with its citation."""
    parts, place, last = list[tuple[str, pb.Citation]](), 0, None
    for quote in extracted(query, passages):
        passage = passages[quote.passage]
        between = ""
        if last:
            goes_on = quote.passage == last.passage and not passage.text[last.end : quote.start].strip()
            between = passage.text[last.end : quote.start] if goes_on else "\n"
        text = passage.text[quote.start : quote.end]
        start = place + messages.width(between, unit)
        place = start + messages.width(text, unit)
        before = messages.width(passage.text[: quote.start], unit)
        parts.append(
            (
                between + text,
                pb.Citation(
                    start=start,
                    end=place,
                    document_id=passage.document_id,
                    document_start=passage.start + before,
                    document_end=passage.start + before + place - start,
                ),
            )
        )
        last = quote
    return parts


def _cited(marked: Marked, passages: Sequence[pb.Passage], unit: Unit) -> tuple[list[pb.Citation], int]:
    """Returns the citations of a written answer that hold, and how many do not."""
    held, dropped = list[pb.Citation](), 0
    for (start, end), number in citations.cited(marked.text, marked.cited[:_MOST_CITED]):
        passage = passages[number - 1] if number <= len(passages) else None
        span = citations.support(marked.text[start:end], passage) if passage else None
        if passage is None or span is None:
            dropped += 1
            continue
        place = messages.width(marked.text[:start], unit)
        before, after = (passage.start + messages.width(passage.text[:one], unit) for one in span)
        held.append(
            pb.Citation(
                start=place,
                end=place + messages.width(marked.text[start:end], unit),
                document_id=passage.document_id,
                document_start=before,
                document_end=after,
            )
        )
    return held, dropped


def _citation(passage: pb.Passage, end: int) -> pb.Citation:
    """Returns the citation of a whole passage for a whole answer."""
    return pb.Citation(end=end, document_id=passage.document_id, document_start=passage.start, document_end=passage.end)
