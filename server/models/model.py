"""One version of a model: its checkpoint, its state, its queue, and the access to what runs it (`runner.py`).

A version is loaded, answers until it is drained or its engine dies, and may be loaded again after that. It does not
know the aliases that point at it (`aliases.py`), nor the supervisor of its engine (`supervisor.py`).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from pathlib import Path

from tuneserve import checkpoint
from tuneserve.server.call.context import current
from tuneserve.server.call.errors import Unavailable, WrongState
from tuneserve.server.config import ModelConfig
from tuneserve.server.engine.interface import Engine
from tuneserve.server.engine.making import EngineFactory
from tuneserve.server.files import Stamp
from tuneserve.server.metrics import Metrics
from tuneserve.server.models.adapters import Adapters
from tuneserve.server.models.admission import Admission
from tuneserve.server.models.runner import Runner
from tuneserve.server.models.tasks import TASKS
from tuneserve.server.text.constraints import Constraints
from tuneserve.server.text.redaction import Redactor
from tuneserve.server.text.tokenizer import Tokenizer
from tuneserve.v1 import checkpoint_pb2 as pb
from tuneserve.v1 import model_pb2

logger = logging.getLogger(__name__)

# Sequences given to an encoder's engine for each one that it runs in a step, so that the next step is always ready.
_POOL_AHEAD = 2
# Answers that are parsed in threads at a time.
_PARSING = 2


@dataclass
class Model:
    """A version of a model. What its runner has exists once it has been loaded."""

    name: str
    config: ModelConfig
    manifest: pb.Checkpoint
    _metrics: Metrics
    verified: InitVar[Mapping[Path, Stamp] | None] = None  # see Runner
    state: model_pb2.ModelState = model_pb2.MODEL_STATE_LOADING
    load_step: model_pb2.LoadStep = model_pb2.LOAD_STEP_STARTING
    adapters: Adapters = field(default_factory=Adapters)
    failure: str = ""  # why its engine failed, until another one is ready
    parsing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_PARSING))  # limits answers.Answers
    runner: Runner = field(init=False)
    _admission: Admission | None = None
    _has_served: bool = False
    # Set when the state changes; each state has its own event.
    _shown: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self, verified: Mapping[Path, Stamp] | None) -> None:
        self.runner = Runner(self.name, self.config, self.manifest, verified)

    @cached_property
    def version(self) -> str:
        """12 hex digits, equal for equal content."""
        return checkpoint.version_of(self.manifest)

    @property
    def id(self) -> str:
        """NAME@VERSION."""
        return f"{self.name}@{self.version}"

    # Passed on from the runner: who answers a call knows its model, and not how that is run.

    @property
    def engine(self) -> Engine:
        """The engine of a model that was loaded."""
        return self.runner.engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of a model that was loaded."""
        return self.runner.tokenizer

    @property
    def constraints(self) -> Constraints:
        """Checks the constraints of calls to a model that was loaded."""
        return self.runner.constraints

    @property
    def redactor(self) -> Redactor:
        """The redactor of a model that masks, and was loaded."""
        return self.runner.redactor

    @property
    def admission(self) -> Admission:
        """The queue of a model that was loaded."""
        assert self._admission is not None
        return self._admission

    @property
    def queue(self) -> Admission | None:
        """The queue; None before the model was loaded."""
        return self._admission

    @property
    def masks(self) -> bool:
        """Whether it masks personal data in requests."""
        return bool(self.config.redact)

    @property
    def labels(self) -> list[str]:
        """Label names by class index."""
        return list(self.manifest.labels)

    @property
    def is_ready(self) -> bool:
        """Whether it answers calls."""
        return self.state == model_pb2.MODEL_STATE_READY

    @property
    def load_failed(self) -> bool:
        """Whether its first load failed; it is not being tried again."""
        return not self._has_served and self.state == model_pb2.MODEL_STATE_FAILED

    def show(self, state: model_pb2.ModelState, step: model_pb2.LoadStep = model_pb2.LOAD_STEP_UNSPECIFIED) -> None:
        """Sets the state, or the step of loading, and notifies the watchers."""
        self.state, self.load_step = state, step
        self._shown.set()
        self._shown = asyncio.Event()

    async def watch(self) -> AsyncIterator[model_pb2.Model]:
        """Yields its description, at once and at each change, until it is no longer loading."""
        while True:
            shown, seen = self._shown, self.to_proto()
            yield seen
            # A state that changed meanwhile is yielded next.
            if seen.state != model_pb2.MODEL_STATE_LOADING:
                return
            await shown.wait()

    async def load(self, make_engine: EngineFactory) -> None:
        """Starts the engine and sends one real request through it. Also used after an engine died. `serve` comes next.

        If it fails or is cancelled, no engine is left behind. Raises StepFailed if the engine does not start, and
        CheckpointError if the files are no longer those of this version.
        """
        started = time.monotonic()
        if self._admission is None:
            self.show(model_pb2.MODEL_STATE_LOADING, model_pb2.LOAD_STEP_STARTING)
        else:
            self._metrics.restarts.labels(self.name).inc()
            self.runner.verified = None
        await self.runner.verify()
        try:
            engine = await self.runner.start(make_engine)
            await self.adapters.start(engine)
            if self._admission is None:
                self.show(model_pb2.MODEL_STATE_LOADING, model_pb2.LOAD_STEP_WARMING_UP)
            await self.runner.warm_up()
        except BaseException:
            await self.runner.end_engine()
            raise
        if self._admission is None:
            self._admission = Admission(
                self.name,
                slots=engine.max_num_seqs * (_POOL_AHEAD if TASKS[self.manifest.task].pooling else 1),
                max_calls=self.config.max_queue,
                max_tokens=self.config.max_queue_tokens,
                max_wait=self.config.max_wait_seconds,
                long_prompts=engine.long_prompts,
                rejected=lambda reason: current().metrics.rejections.labels(self.name, reason.lower()).inc(),
            )
        self._metrics.loaded(self.name, self.version, self.manifest, engine.registry, time.monotonic() - started)

    def serve(self) -> None:
        """Puts a loaded model into service."""
        self.failure, self._has_served = "", True
        self.show(model_pb2.MODEL_STATE_READY)

    def check_ready(self) -> None:
        """Raises Unavailable, with the reason, while the model does not answer."""
        if self.state == model_pb2.MODEL_STATE_FAILED:
            raise Unavailable(self.told)
        if not self.is_ready:
            state = model_pb2.ModelState.Name(self.state).removeprefix("MODEL_STATE_").lower()
            raise Unavailable(f"model {self.name!r} is {state}")

    @property
    def told(self) -> str:
        """The message for callers about a failed engine; until the supervisor knows more, only that it died."""
        return f"model {self.name!r}: its engine {self.failure or 'died'}"

    def unparsed(self, reason: str) -> None:
        """Records that an answer is returned as plain text, because its parser was slow or failed."""
        current().metrics.unparsed.labels(self.name).inc()
        logger.warning("model %s: an answer was not parsed, and is returned as text: %s", self.id, reason)

    def failed(self, failure: str) -> None:
        """Takes the model out of service: its engine died, hangs or did not start. Callers are told `failure`."""
        self.failure = failure
        self.show(model_pb2.MODEL_STATE_FAILED)
        self._metrics.failed(self.name, self.version)

    async def drain(self, seconds: float) -> bool:
        """Accepts no more calls and waits for the running ones. Returns whether all of them ended in time.

        If cancelled, it restores the version's previous state.
        """
        before = self.state
        self.show(model_pb2.MODEL_STATE_DRAINING)
        if self._admission is None:
            return True
        try:
            await asyncio.wait_for(self._admission.empty.wait(), seconds)
        except TimeoutError:
            return False
        except asyncio.CancelledError:
            # Unless the state changed meanwhile, because its engine failed.
            if self.state == model_pb2.MODEL_STATE_DRAINING:
                self.show(before)
            raise
        return True

    async def close(self) -> None:
        """Ends what runs it, and releases its adapters."""
        await self.runner.close()
        await self.adapters.close()

    def check_takes_adapters(self) -> None:
        """Raises WrongState if the model accepts no LoRA adapters, and Unavailable while it does not answer."""
        if not self.config.max_adapters:
            raise WrongState(
                f"model {self.name!r} takes no adapters: set max_adapters in its settings", "NO_ADAPTERS", self.name
            )
        self.check_ready()

    def to_proto(self) -> model_pb2.Model:
        """The public description, for the current caller."""
        has_failed = self.state == model_pb2.MODEL_STATE_FAILED and self.failure
        return model_pb2.Model(
            name=self.name,
            task=self.manifest.task,
            state=self.state,
            load_step=self.load_step,
            failure=f"its engine {self.failure}" if has_failed else "",
            version=self.version,
            id=self.id,
            quantization=self.manifest.quantization,
            labels=self.labels,
            limits=model_pb2.Limits(
                max_length=self.runner.max_length,
                max_inputs=self.config.max_inputs,
                max_queue=self.config.max_queue,
                max_explained_words=self.config.max_explained_words,
            ),
            adapters=[
                model_pb2.Adapter(name=name, version=adapter.version) for name, adapter in self.adapters.known().items()
            ],
        )
