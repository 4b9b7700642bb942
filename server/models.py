"""The models of one server: what each is, whether it answers, and who may come in.

A model is loaded once, answers until the server drains or its engine dies, and takes a bounded number of calls.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from tuneserve import checkpoint
from tuneserve.server.config import ModelConfig
from tuneserve.server.errors import Overloaded, Unavailable, UnknownModel, WrongTask
from tuneserve.server.metrics import Metrics
from tuneserve.server.seam import Engine, Sampling
from tuneserve.server.tokenizer import Tokenizer
from tuneserve.v1 import checkpoint_pb2 as pb
from tuneserve.v1 import model_pb2

logger = logging.getLogger(__name__)

METHODS = {
    pb.TASK_SEQUENCE_CLASSIFICATION: "ClassificationService.Classify",
    pb.TASK_TOKEN_CLASSIFICATION: "ClassificationService.ClassifyTokens",
    pb.TASK_GENERATION: "GenerationService.Generate, GenerateStream and Tokenize",
}
# How long a caller that was turned away should wait: about what a short queue takes to move.
_RETRY_MS = 250

EngineFactory = Callable[[str, ModelConfig, pb.Checkpoint], Awaitable[Engine]]


@dataclass
class Model:
    """A served model. `engine` and `tokenizer` are set while it is ready or draining."""

    name: str
    config: ModelConfig
    manifest: pb.Checkpoint
    metrics: Metrics
    state: model_pb2.ModelState = model_pb2.MODEL_STATE_LOADING
    _engine: Engine | None = None
    _tokenizer: Tokenizer | None = None
    _calls: int = field(default=0)

    @property
    def engine(self) -> Engine:
        """The engine of a model that was loaded."""
        assert self._engine is not None
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of a model that was loaded."""
        assert self._tokenizer is not None
        return self._tokenizer

    @property
    def labels(self) -> list[str]:
        """Label names by class index."""
        return list(self.manifest.labels)

    async def load(self, make_engine: EngineFactory) -> None:
        """Starts the engine and sends one real request through it."""
        started = time.monotonic()
        self._engine = await make_engine(self.name, self.config, self.manifest)
        self._tokenizer = await asyncio.to_thread(Tokenizer, self.config.path, self._engine.max_length)
        await self._warm_up()
        self.state = model_pb2.MODEL_STATE_READY
        self.metrics.add_engine(self.name, self._engine.registry)
        self.metrics.engine_up.labels(self.name).set(1)
        self.metrics.load_seconds.labels(self.name).set(time.monotonic() - started)
        self.metrics.model_info.labels(
            self.name,
            checkpoint.TASK_NAMES[self.manifest.task],
            checkpoint.version_of(self.manifest),
            self.manifest.quantization,
        ).set(1)

    async def _warm_up(self) -> None:
        [tokens] = await self.tokenizer.encode(["A warm-up."], truncate=True)
        if self.manifest.task == pb.TASK_GENERATION:
            sampling = Sampling(max_tokens=2, temperature=0.0, ignore_eos=True)
            async for _ in self.engine.generate("warm-up", tokens.encoded.token_ids, sampling, stream=False):
                pass
        elif self.manifest.task == pb.TASK_TOKEN_CLASSIFICATION:
            await self.engine.pool("warm-up", [tokens.encoded], "token_classify")
        else:
            await self.engine.pool("warm-up", [tokens.encoded], "classify")

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Holds one of the model's places for a call. Raises Overloaded or Unavailable."""
        if self.state != model_pb2.MODEL_STATE_READY:
            state = model_pb2.ModelState.Name(self.state).removeprefix("MODEL_STATE_").lower()
            raise Unavailable(f"model {self.name!r} is {state}")
        if self._calls >= self.config.max_queue:
            self.metrics.rejections.labels(self.name, "queue_full").inc()
            raise Overloaded(self.name, self.config.max_queue, _RETRY_MS)
        self._calls += 1
        self.metrics.queue_depth.labels(self.name).inc()
        try:
            yield
        finally:
            self._calls -= 1
            self.metrics.queue_depth.labels(self.name).dec()

    def set_alive(self, alive: bool) -> None:
        """Goes out of service when the engine does not answer, and comes back when it does again."""
        self.state = model_pb2.MODEL_STATE_READY if alive else model_pb2.MODEL_STATE_FAILED
        self.metrics.engine_up.labels(self.name).set(alive)

    async def close(self) -> None:
        """Ends the engine and the tokenizer's thread."""
        if self._engine is not None:
            await self._engine.close()
        if self._tokenizer is not None:
            self._tokenizer.close()

    def to_proto(self) -> model_pb2.Model:
        """The public description."""
        max_length = self._engine.max_length if self._engine else self.manifest.max_length
        return model_pb2.Model(
            name=self.name,
            task=self.manifest.task,
            state=self.state,
            version=checkpoint.version_of(self.manifest),
            quantization=self.manifest.quantization,
            labels=self.labels,
            limits=model_pb2.Limits(
                max_length=max_length, max_inputs=self.config.max_inputs, max_queue=self.config.max_queue
            ),
        )


class Models:
    """All models of the server, by name."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = dict(sorted(models.items()))

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def get(self, name: str) -> Model:
        """Returns a model. Raises UnknownModel."""
        if name not in self._models:
            raise UnknownModel(name, list(self._models))
        return self._models[name]

    def for_task(self, name: str, task: pb.Task) -> Model:
        """Returns a model of a task. Raises UnknownModel or WrongTask."""
        model = self.get(name)
        if model.manifest.task != task:
            raise WrongTask(name, checkpoint.TASK_NAMES[model.manifest.task], METHODS[model.manifest.task])
        return model
