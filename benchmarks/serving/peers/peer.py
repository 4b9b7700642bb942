"""What every peer has: a name, how it starts, and what it can be asked."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tuneserve.benchmarks.serving.systems import Engine, System
from tuneserve.benchmarks.serving.workers.worker import Worker

SINGLE, BATCHES, STREAMS = "single texts", "batches", "streamed"


@dataclass(frozen=True)
class Setting:
    """What a peer is started with."""

    checkpoint: Path
    scratch: Path
    http: Worker
    engine: Engine  # of those that are vLLM
    pooling: bool = True  # a classifier; otherwise it generates


@dataclass(frozen=True)
class Peer:
    """`start` raises StepFailed where the peer can't run."""

    name: str
    start: Callable[[Setting], AbstractContextManager[System]]
    kinds: Sequence[str] = (SINGLE, BATCHES)
    counts_tokens: bool = True  # see Scenario
    is_int8: bool = False  # also compared with our checkpoint in w8a8
