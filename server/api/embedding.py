"""EmbeddingService: converts requests, calls the engine, converts its answers."""

from typing import Any

from tuneserve.server.api import classification_answers as answers
from tuneserve.server.api import classification_messages as convert
from tuneserve.server.api.pooling import encoded, note
from tuneserve.server.call.errors import Violations
from tuneserve.server.models.aliases import Models
from tuneserve.server.models.model import Model
from tuneserve.server.models.place import admitted
from tuneserve.server.turns import in_turns
from tuneserve.v1 import checkpoint_pb2, common_pb2
from tuneserve.v1 import embedding_pb2 as pb
from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceServicer


class EmbeddingService(EmbeddingServiceServicer):
    """Texts as vectors."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        """See embedding.proto."""
        model: Model = self._models.for_task(request.model, checkpoint_pb2.TASK_EMBEDDING)
        with Violations() as wrong:
            texts = convert.plain_texts(wrong, "texts", request.texts, model.config.max_inputs)
            truncate = convert.truncation(wrong, request.truncation, windows=False)
            prompt = convert.prompt(wrong, request, model.manifest.prompts)
            dimensions = convert.dimensions(wrong, request)
        normalize = request.normalize if request.HasField("normalize") else True
        async with admitted(model, request, request.priority) as (place, seen):
            texts = [prompt + text for text in seen.request.texts]
            note(texts)
            tokens = await encoded(place, texts, "texts[{}]", truncate=truncate)
            vectors = await place.pool([one.encoded for one in tokens], "embed")
        rows = in_turns(zip(vectors, tokens, strict=True))
        results = [answers.embedding(vector, one, dimensions, normalize) async for vector, one in rows]
        usage = common_pb2.Usage(prompt_tokens=place.prompt_tokens)
        return pb.EmbedResponse(results=results, usage=usage, model_version=model.id)
