"""What the server knows about each task that a model may have."""

from collections.abc import Mapping
from dataclasses import dataclass

from tuneserve.server.engine.interface import PoolTask
from tuneserve.v1 import checkpoint_pb2 as pb
from tuneserve.v1 import classification_pb2, embedding_pb2, generation_pb2


@dataclass(frozen=True)
class Task:
    """One task."""

    service: str  # full name, as in health
    methods: str  # the methods that serve it
    pooling: PoolTask | None  # the engine's pooling task; None for generation


_CLASSIFICATION = classification_pb2.DESCRIPTOR.services_by_name["ClassificationService"].full_name
_EMBEDDING = embedding_pb2.DESCRIPTOR.services_by_name["EmbeddingService"].full_name
_GENERATION = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name

TASKS: Mapping[int, Task] = {
    pb.TASK_SEQUENCE_CLASSIFICATION: Task(
        _CLASSIFICATION, "ClassificationService.Classify, ClassifyStream and Rank", "classify"
    ),
    pb.TASK_TOKEN_CLASSIFICATION: Task(_CLASSIFICATION, "ClassificationService.ClassifyTokens", "token_classify"),
    pb.TASK_RANKING: Task(_CLASSIFICATION, "ClassificationService.Rank, Classify and ClassifyStream", "classify"),
    pb.TASK_EMBEDDING: Task(_EMBEDDING, "EmbeddingService.Embed", "embed"),
    pb.TASK_GENERATION: Task(
        _GENERATION, "GenerationService.Generate, GenerateStream and Tokenize, and Classify with labels", None
    ),
}
