"""The Python API, `import tuneserve`: the commands of the command line as functions, and checkpoints as objects.

The functions raise the errors of the commands (errors.py): UserError for bad input, StepFailed if a result fails its
check. Training and quantization run in this process as it is. The command line, in contrast, restarts itself with
libraries that are faster on CPUs (runtime.py). Serving is a child process, which has these libraries.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from google.protobuf import json_format

from tuneserve import checkpoint as checkpoints
from tuneserve import serving
from tuneserve.checkpoint.rows import Row
from tuneserve.checkpoint.tasks import TASK_NAMES
from tuneserve.client import AsyncClient, Client
from tuneserve.v1 import checkpoint_pb2 as pb

if TYPE_CHECKING:
    from tuneserve.evaluation.measurement import Measurement
    from tuneserve.finetune.config import FinetuneConfig

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Step:
    """One step of a checkpoint's lineage."""

    name: str  # base, finetune, merge, quantize, compare, promote or roll back
    source: str  # name of the model or checkpoint that the step read
    config: dict[str, Any]  # the step's settings
    packages: dict[str, str]  # versions of the packages that did the work
    seed: int | None
    metrics: dict[str, float]  # quality and cost after the step
    measured_on: str  # a CPU tier, or "gpu" and its name; empty if unknown
    finished_at: datetime | None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory: a model, how it was made, and its measured quality.

    It can be used as its path wherever one is taken: `open`, `Path`, transformers' `from_pretrained`.
    """

    path: Path
    manifest: pb.Checkpoint = field(repr=False, compare=False)

    @classmethod
    def load(cls, path: AnyPath) -> Self:
        """Reads a checkpoint, and compares every file with its hash. Raises CheckpointError, naming the file."""
        return cls(Path(path), checkpoints.load(Path(path)))

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def task(self) -> str:
        """E.g. sequence-classification."""
        return TASK_NAMES.get(self.manifest.task, "unknown")

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels by class index; empty for generation."""
        return tuple(self.manifest.labels)

    @property
    def quantization(self) -> str:
        """The scheme, e.g. w8a8; empty if not quantized."""
        return self.manifest.quantization

    @cached_property
    def version(self) -> str:
        """12 hex digits, equal for equal content: the version under which the server serves it."""
        return checkpoints.version_of(self.manifest)

    @property
    def size_bytes(self) -> int:
        """Size of the weights."""
        return checkpoints.size_of(self.manifest)

    @property
    def lineage(self) -> tuple[Step, ...]:
        """The steps that made it, first to last; empty for a model that tuneserve did not make."""
        return tuple(map(_step, self.manifest.lineage))

    @property
    def metrics(self) -> dict[str, float]:
        """Quality and cost, by name, from the last step that measured them."""
        return next((step.metrics for step in reversed(self.lineage) if step.metrics), {})


def finetune(
    config: "AnyPath | Mapping[str, Any] | FinetuneConfig", *, overwrite: bool = False, resume: bool = False
) -> Checkpoint:
    """Trains a model, and returns the checkpoint, merged and measured.

    `config`: a YAML file, or its settings as a dict (docs/settings.md), where paths are relative to the working
    directory. `overwrite` replaces an existing output; `resume` continues an interrupted run.
    """
    from tuneserve.finetune import config as configs
    from tuneserve.finetune import pipeline

    if isinstance(config, Mapping):
        values = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in config.items()}
        config = configs.parse(values, Path.cwd())
    elif not isinstance(config, configs.FinetuneConfig):
        config = configs.load(Path(config))
    return Checkpoint.load(pipeline.finetune(config, overwrite=overwrite, resume=resume))


def quantize(
    checkpoint: AnyPath,
    output: AnyPath,
    scheme: str,
    *,
    max_drop: float | None = 0.01,
    data: AnyPath | Sequence[Row] | None = None,
    overwrite: bool = False,
    method: str | None = None,
    calibration: AnyPath | None = None,
    fp8_cache: bool = False,
    reduce_range: bool = False,
    point_estimate: bool = False,
) -> Checkpoint:
    """Writes a checkpoint with 8-bit or 4-bit weights to `output`, and returns it; both are measured through vLLM.

    `scheme`: w8a8, w8a16, w4a16, fp8, nf4, int8, or auto. `max_drop`: the most quality that may be lost, with 95 %
    confidence, as a share; a result that may lose more is not written (StepFailed), and None allows any loss. `data`:
    rows to measure on, or a file of them (JSON Lines), in place of the checkpoint's own held-out ones. The other
    arguments are the flags of `tuneserve quantize`.
    """
    from tuneserve.quantize import run

    run.quantize(
        Path(checkpoint),
        Path(output),
        scheme,
        max_drop=max_drop,
        data=_rows(data),
        overwrite=overwrite,
        method=method,
        calibration_file=None if calibration is None else Path(calibration),
        fp8_cache=fp8_cache,
        reduce_range=reduce_range,
        point_estimate=point_estimate,
    )
    return Checkpoint.load(output)


def evaluate(checkpoint: AnyPath, data: AnyPath | Sequence[Row] | None = None) -> "Measurement":
    """Measures quality and speed through the server and vLLM.

    Measures on the checkpoint's own held-out rows, or on `data`: rows, or a file of them (JSON Lines). Rows that it was
    trained on are left out.
    """
    from tuneserve.checkpoint import seen
    from tuneserve.evaluation.evaluate import measure

    rows, directory = _rows(data), Path(checkpoint)
    return measure(directory, None if rows is None else seen.unseen(rows, [directory]))


class Server:
    """A server as a child process, on free ports of this machine: for tests and notebooks.

        with tuneserve.Server({"sentiment": "checkpoints/reviews"}) as server, server.client() as client:
            client.classify("sentiment", "A lovely film.")

    Entering the block waits until every model answers; leaving it stops the server. The server also ends with this
    process, however that ends. Without a block, as between the cells of a notebook, use `start` and `stop`.
    """

    def __init__(
        self,
        models: Mapping[str, AnyPath] | None = None,
        *,
        config: AnyPath | None = None,
        start_seconds: float = serving.START_SECONDS,
    ) -> None:
        """`models`: checkpoints by the names to serve them as; or `config`, a file of the server's settings."""
        if (models is None) == (config is None):
            raise ValueError("give either models or config")
        self._flags = serving.model_flags(models) if models is not None else ["--config", str(config)]
        self._start_seconds = start_seconds
        self._stack = ExitStack()
        self._running: serving.Server | None = None

    def start(self) -> Self:
        """Starts the server; returns when every model answers. Raises StepFailed with the reason if it does not
        start.
        """
        if self._running:
            raise RuntimeError("the server is already running")
        server = serving.launched(*self._flags, start_seconds=self._start_seconds)
        self._running = self._stack.enter_context(server)
        return self

    def stop(self) -> None:
        """Ends running calls, and the server with its engines. Does nothing if it is not running."""
        self.__exit__(None, None, None)

    @property
    def address(self) -> str:
        """The address of gRPC, as host:port."""
        return self._server().addresses.grpc

    @property
    def metrics_address(self) -> str:
        """The address of /metrics over HTTP, as host:port."""
        return self._server().addresses.metrics

    def client(self, **options: Any) -> Client:
        """Returns a client of this server. `options` are those of Client."""
        return Client(self.address, **options)

    def async_client(self, **options: Any) -> AsyncClient:
        """The same for asyncio."""
        return AsyncClient(self.address, **options)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._running = None
        # After an error inside the block, the server's own last errors are logged.
        self._stack.__exit__(kind, error, traceback)

    def _server(self) -> serving.Server:
        if not self._running:
            raise RuntimeError("the server is not running: use it in a with block, or call start")
        return self._running


def _rows(data: AnyPath | Sequence[Row] | None) -> Sequence[Row] | None:
    from tuneserve.checkpoint import rows

    return rows.read(Path(data)) if isinstance(data, str | os.PathLike) else data


def _step(step: pb.Step) -> Step:
    return Step(
        name=step.name,
        source=step.source,
        config=json_format.MessageToDict(step.config),
        packages=dict(step.packages),
        seed=step.seed if step.HasField("seed") else None,
        metrics=dict(step.metrics),
        measured_on=step.measured_on,
        finished_at=step.finished_at.ToDatetime(UTC) if step.HasField("finished_at") else None,
    )
