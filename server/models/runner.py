"""What runs one version of a model: its engine, its tokenizer, and what checks and masks texts for it.

It is started after its files were verified, once or anew after its engine died: all but the engine is kept then.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuneserve import checkpoint
from tuneserve.errors import StepFailed
from tuneserve.server import concurrency, files, garbage
from tuneserve.server.config import ModelConfig
from tuneserve.server.engine.interface import Engine, Sampling, Ticket
from tuneserve.server.engine.making import EngineFactory
from tuneserve.server.files import Stamp
from tuneserve.server.models.tasks import TASKS
from tuneserve.server.text.constraints import Constraints
from tuneserve.server.text.redaction import Redactor
from tuneserve.server.text.tokenizer import Tokenizer
from tuneserve.v1 import checkpoint_pb2 as pb

logger = logging.getLogger(__name__)


@dataclass
class Runner:
    """The attributes exist once it has started; `redactor` only if the model masks."""

    name: str
    config: ModelConfig
    manifest: pb.Checkpoint
    # The stamps of its files when they were verified; None before that.
    verified: Mapping[Path, Stamp] | None = None
    max_length: int = 0  # the engine's; 0 until the first engine has started
    _reads: bool = False  # whether the server reads the model's files, while the engine is idle
    _engine: Engine | None = None
    _tokenizer: Tokenizer | None = None
    _redactor: Redactor | None = None
    _constraints: Constraints | None = None

    @property
    def engine(self) -> Engine:
        """The engine."""
        assert self._engine is not None
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        assert self._tokenizer is not None
        return self._tokenizer

    @property
    def redactor(self) -> Redactor:
        """Masks personal data."""
        assert self._redactor is not None
        return self._redactor

    @property
    def constraints(self) -> Constraints:
        """Checks the constraints of calls."""
        if self._constraints is None:
            size = max(self.engine.vocab_size, self.tokenizer.size)
            self._constraints = Constraints(self.tokenizer.text, size, self.tokenizer.end_token)
        return self._constraints

    async def verify(self) -> None:
        """Raises CheckpointError if the files are no longer those of this version."""
        await concurrency.apart(self._verify)

    async def start(self, make_engine: EngineFactory) -> Engine:
        """Starts an engine; if that fails or is cancelled, `end_engine` must follow. Raises StepFailed."""
        try:
            engine = self._engine = await make_engine(self.name, self.config, self.manifest)
            await engine.start()
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            told = f"model {self.name}: the engine did not start: {reason}"
            raise StepFailed(told, "its own log is above") from error
        self.max_length = engine.max_length
        self._log_trained_length()
        self._reads = True
        try:
            if self._tokenizer is None:
                self._tokenizer = await concurrency.apart(Tokenizer, self.config.path, engine.max_length)
                # Half a gigabyte, after a vocabulary of 250,000 tokens.
                await concurrency.apart(garbage.give_back)
            if self._redactor is None and self.config.redact:
                self._redactor = await concurrency.apart(Redactor, self.config.redact)
        finally:
            self._reads = False
        return engine

    async def warm_up(self) -> None:
        """Sends one real request through the engine."""
        [tokens] = await self.tokenizer.encode(["A warm-up."], truncate=True)
        ticket = Ticket("warm-up")
        if pooling := TASKS[self.manifest.task].pooling:
            await self.engine.pool(ticket, [tokens.encoded], pooling)
        else:
            sampling = Sampling(max_tokens=2, temperature=0.0, ignore_eos=True)
            async for _ in self.engine.generate(ticket, tokens.encoded.token_ids, sampling, stream=False):
                pass

    def cpu_seconds(self) -> Mapping[int, float]:
        """See interface.Engine; empty while the engine is idle because the server reads files, or there is no engine
        yet.
        """
        return {} if self._engine is None or self._reads else self._engine.cpu_seconds()

    async def end_engine(self) -> None:
        """Ends the processes of a dead, hung or unfinished engine, if there are any, so that another can be started."""
        if self._engine is not None:
            self._engine.kill()
            await self._engine.close()

    async def close(self) -> None:
        """Ends the engine, the tokenizer's thread and the process that checks constraints."""
        if self._engine is not None:
            await self._engine.close()
        if self._tokenizer is not None:
            self._tokenizer.close()
        if self._constraints is not None:
            await self._constraints.close()

    def _verify(self) -> None:
        now = files.stamps(self.config.path)
        # Just verified, unless it had to wait for its turn: gigabytes are not read twice.
        if now != self.verified:
            checkpoint.refuse_unsafe(self.config.path)
            checkpoint.verify_files(self.config.path, self.manifest)
            self.verified = now

    def _log_trained_length(self) -> None:
        trained = checkpoint.trained_length(self.manifest)
        if 0 < trained < self.max_length:
            # By default a generation model reads more than its trained length: not worth a warning.
            level = logging.WARNING if self.config.max_length else logging.INFO
            text = "%s reads %d tokens; it was trained and measured at %d"
            logger.log(level, text, self.name, self.max_length, trained)
