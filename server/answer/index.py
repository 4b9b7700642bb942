"""One index: its settings, its documents, and the models that read them.

Models are called as callers call them, through their services: with the call's deadline, quota and priority, and with a
place in the model's queue.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneserve.checkpoint.tasks import TASK_NAMES
from tuneserve.errors import UserError
from tuneserve.server.answer import chunks, messages, profile, scores
from tuneserve.server.answer.rows import Row, Size
from tuneserve.server.answer.store import EVERYBODY, Documents, OtherVectors, Snapshot, Store
from tuneserve.server.api.classification import ClassificationService
from tuneserve.server.api.classification_messages import UNITS
from tuneserve.server.api.embedding import EmbeddingService
from tuneserve.server.call.context import current
from tuneserve.server.call.errors import Changed, InvalidInput, NotFound, WrongState
from tuneserve.server.config import IndexConfig
from tuneserve.server.metrics import Metrics
from tuneserve.server.models.aliases import Models
from tuneserve.server.models.model import Model
from tuneserve.server.turns import in_turns
from tuneserve.v1 import answer_pb2 as pb
from tuneserve.v1 import checkpoint_pb2, classification_pb2, common_pb2, embedding_pb2

# Candidates by vector, and as many by words; of both together, so many are ranked.
_CANDIDATES = 50
# The title leaves so many tokens to a passage.
_LEAST_TOKENS = 8
# Bytes of a passage in memory, beside its text: its vector, in the model's answer and as it is stored.
_PASSAGE_BYTES = 1 << 14
_ANY = 1 << 30
_PLACE = re.compile(r"texts\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class _Passage:
    """A part of a document's text that becomes a row."""

    document: int  # its index in the request
    number: int
    start: int
    end: int
    passage: str  # what the model reads


class Index:
    """One index."""

    def __init__(self, name: str, config: IndexConfig, models: Models, metrics: Metrics) -> None:
        """Raises UserError if a model can't be used for it, or its directory can't be made."""
        self.name = name
        self.config = config
        self._models = models
        self._metrics = metrics
        self._embedding = EmbeddingService(models)
        self._classification = ClassificationService(models)
        self._check_model("embedding", config.embedding, checkpoint_pb2.TASK_EMBEDDING)
        if config.ranking:
            self._check_model("ranking", config.ranking, checkpoint_pb2.TASK_RANKING)
        if config.generation:
            self._check_model("generation", config.generation, checkpoint_pb2.TASK_GENERATION)
        try:
            self._store = Store(config.path)
        except OSError as error:
            raise UserError(f"indexes.{name}.path: {config.path} can't be made: {error.strerror}") from None
        # They start at 0, so that a rate includes the first one.
        for part in ("search", "upsert", "read", "write"):
            metrics.index_work.labels(name, part)

    def _timed(self, part: str) -> AbstractContextManager[Any]:
        """A part of the index's work: how long it takes is counted."""
        return self._metrics.index_work.labels(self.name, part).time()

    async def upsert(self, request: pb.UpsertDocumentsRequest) -> pb.UpsertDocumentsResponse:
        """See AnswerService.UpsertDocuments. The request is checked."""
        with self._timed("upsert"):
            return await self._upsert(request)

    async def _upsert(self, request: pb.UpsertDocumentsRequest) -> pb.UpsertDocumentsResponse:
        documents = await self._documents()
        seen = await documents.snapshot()
        model = self._embedder(seen)
        given = list(request.documents)
        digests = [self._digest(one) async for one in in_turns(given)]
        known = await seen.digests([one.id for one in given]) if seen else {}
        changed = [index for index, one in enumerate(given) if known.get(one.id) != digests[index]]
        version, tokens = seen.version if seen else 0, 0
        if changed:
            parts = [part for index in changed for part in await self._split(model, index, given[index])]
            current().hold(_PASSAGE_BYTES * len(parts))
            vectors, tokens = await self._vectors(
                model,
                [part.passage for part in parts],
                self._prompt(model, "passage"),
                request.priority,
                lambda place: f"documents[{parts[place].document}].text",
            )
            pairs = in_turns(zip(parts, vectors, strict=True))
            rows = [_row(part, given[part.document], digests[part.document], vector) async for part, vector in pairs]
            try:
                with self._timed("write"):
                    version = await documents.replace(model.id, [given[index].id for index in changed], rows)
            except OtherVectors:
                raise Changed(f"index {self.name!r} was made by another version meanwhile; repeat the call") from None
            self._written()
        return pb.UpsertDocumentsResponse(
            written=len(changed),
            unchanged=len(given) - len(changed),
            index_version=version,
            usage=common_pb2.Usage(prompt_tokens=tokens),
            model_version=model.id,
        )

    async def delete(self, ids: Sequence[str]) -> pb.DeleteDocumentsResponse:
        """See AnswerService.DeleteDocuments. The ids are checked."""
        deleted, version = await (await self._documents()).delete(ids)
        if deleted:
            self._written()
        return pb.DeleteDocumentsResponse(deleted=deleted, index_version=version)

    async def search(self, request: pb.SearchRequest) -> pb.SearchResponse:
        """See AnswerService.Search. The request is checked."""
        with self._timed("search"):
            return await self._search(request)

    async def _search(self, request: pb.SearchRequest) -> pb.SearchResponse:
        seen = await (await self._documents()).snapshot()
        model = self._embedder(seen)
        if seen is None:
            return pb.SearchResponse(model_version=model.id)
        vector, tokens = await self._wanted(model, seen, request)
        best, ranking_version = list[scores.Scored](), ""
        if vector is not None:
            filters = [(one.key, list(one.values)) for one in request.filters]
            known = [*request.liked, *request.disliked]
            with self._timed("read"):
                found = await seen.search(vector, request.query, list(request.readers), filters, _CANDIDATES, known)
            best = scores.scored(vector, found, self.config.keyword_weight if request.query else 0.0)
        if best and self.config.ranking and messages.is_ranked(request):
            ranked = await self._classification.Rank(
                classification_pb2.RankRequest(
                    model=self.config.ranking,
                    query=request.query,
                    candidates=[one.row.passage for one in best[:_CANDIDATES]],
                    truncation=common_pb2.TRUNCATION_END,
                    priority=request.priority,
                ),
                None,
            )
            best = scores.ranked(best, [(one.index, one.score) for one in ranked.results])
            tokens, ranking_version = tokens + ranked.usage.prompt_tokens, ranked.model_version
        unit = UNITS[request.offset_unit]
        return pb.SearchResponse(
            passages=[messages.passage(one, unit) for one in best[: messages.limit(request)]],
            index_version=seen.version,
            usage=common_pb2.Usage(prompt_tokens=tokens),
            model_version=model.id,
            ranking_model_version=ranking_version,
        )

    async def sizes(self) -> dict[str, Size]:
        """Returns how much each tenant has."""
        return await self._store.sizes()

    async def close(self) -> None:
        """Ends the work in the background."""
        await self._store.close()

    def _check_model(self, key: str, name: str, task: checkpoint_pb2.Task) -> None:
        model = self._models.latest(name)
        if model is None or model.manifest.task != task:
            does = TASK_NAMES[model.manifest.task] if model else "not loaded"
            raise UserError(f"indexes.{self.name}.{key}: {name} is {does}", f"allowed: a model for {TASK_NAMES[task]}")

    def _written(self) -> None:
        self._metrics.index_written.labels(self.name, current().tenant.name).set_to_current_time()

    async def _documents(self) -> Documents:
        return await self._store.documents(current().tenant.name)

    def _embedder(self, seen: Snapshot | None) -> Model:
        """Returns the version that made the index: vectors of another one can't be compared with its own."""
        if seen is None:
            return self._models.for_task(self.config.embedding, checkpoint_pb2.TASK_EMBEDDING)
        try:
            return self._models.for_task(seen.made_by, checkpoint_pb2.TASK_EMBEDDING)
        except NotFound:
            told = f"index {self.name!r} was made by {seen.made_by}, which is not served: serve it, or index all again"
            raise WrongState(f"{told} under another path", "EMBEDDING_CHANGED", self.name) from None

    def _prompt(self, model: Model, kind: str) -> str | None:
        """Returns the name of the model's prompt for queries or passages; None if there is none."""
        name: str | None = getattr(self.config, f"{kind}_prompt")
        return name or (kind if kind in model.manifest.prompts else None)

    def _digest(self, document: pb.Document) -> str:
        """Returns what differs when a document, or how it is split and read, does."""
        settings = f"{self.config.chunk_tokens} {self.config.passage_prompt}\n".encode()
        return hashlib.sha256(settings + document.SerializeToString(deterministic=True)).hexdigest()

    async def _wanted(
        self, model: Model, seen: Snapshot, request: pb.SearchRequest
    ) -> tuple[NDArray[np.float32] | None, int]:
        """Returns the vector that a search looks for, if there is one, and the tokens read."""
        query, tokens = None, 0
        if request.query:
            prompt = self._prompt(model, "query")
            [query], tokens = await self._vectors(model, [request.query], prompt, request.priority, lambda _: "query")
        if not (ids := [*request.liked, *request.disliked]):
            return query, tokens
        current().hold(_PASSAGE_BYTES * len(ids))
        vectors = await seen.vectors(ids, list(request.readers))
        liked, disliked = (
            [vectors[one] for one in some if one in vectors] for some in (request.liked, request.disliked)
        )
        return profile.wanted(query, liked, disliked), tokens

    async def _split(self, model: Model, index: int, document: pb.Document) -> list[_Passage]:
        # Read once: each access to a field of a message makes a new string.
        text, title = document.text, f"{document.title}\n" if document.title else ""
        prompt = model.manifest.prompts[name] if (name := self._prompt(model, "passage")) else ""
        call, tokenizer = current(), model.tokenizer
        with call.stage("tokenize"):
            [before] = await tokenizer.encode([prompt + title], hold=call.hold)
            most = min(self.config.chunk_tokens, model.engine.max_length - before.length)
            if most < _LEAST_TOKENS:
                told = f"leaves {max(0, most)} of the model's {model.engine.max_length} tokens to a passage"
                raise InvalidInput(f"documents[{index}].title", f"{told}; allowed: {_LEAST_TOKENS} or more")
            [tokens] = await tokenizer.encode([text], special_tokens=False, most=_ANY, hold=call.hold)
            places = await tokenizer.apart(lambda: chunks.split(text, tokens.offsets, most))
        return [_Passage(index, number, *place, title + text[slice(*place)]) for number, place in enumerate(places)]

    async def _vectors(
        self, model: Model, texts: Sequence[str], prompt: str | None, priority: int, field: Callable[[int], str]
    ) -> tuple[list[NDArray[np.float32]], int]:
        """Returns the texts' vectors, and the tokens read. `field` is where a text comes from, by its place."""
        vectors, tokens = list[NDArray[np.float32]](), 0
        for start in range(0, len(texts), model.config.max_inputs):
            request = embedding_pb2.EmbedRequest(
                model=model.id,
                texts=texts[start : start + model.config.max_inputs],
                truncation=common_pb2.TRUNCATION_END,
                priority=priority,
                prompt_name=prompt,
            )
            try:
                response = await self._embedding.Embed(request, None)
            except InvalidInput as error:
                raise error.renamed(partial(_named, field, start)) from None
            vectors += [np.array(one.values, np.float32) async for one in in_turns(response.results)]
            tokens += response.usage.prompt_tokens
        return vectors, tokens


def opened(configs: Mapping[str, IndexConfig], models: Models, metrics: Metrics) -> dict[str, Index]:
    """Returns the indexes of a server, by name. Raises UserError as Index does."""
    return {name: Index(name, config, models, metrics) for name, config in sorted(configs.items())}


def _named(field: Callable[[int], str], start: int, name: str) -> str:
    place = _PLACE.fullmatch(name)
    return field(start + int(place[1])) if place else name


def _row(part: _Passage, document: pb.Document, digest: str, vector: NDArray[np.float32]) -> Row:
    before = document.text[: part.start]
    return Row(
        document=document.id,
        number=part.number,
        digest=digest,
        title=document.title,
        passage=part.passage,
        start=part.start,
        start_utf8=messages.width(before, "utf8"),
        start_utf16=messages.width(before, "utf16"),
        tags=[f"{key}={value}" for key, value in document.metadata.items()],
        readers=list(document.readers) or [EVERYBODY],
        reply=document.reply if document.HasField("reply") else None,
        vector=vector,
    )
