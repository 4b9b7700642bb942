"""What a run does, and which part of it one client process does."""

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tuneserve.client.endpoint import Endpoint

Item = TypeVar("Item")


@dataclass(frozen=True)
class Settings:
    """What to send, where, and for how long. Times are seconds."""

    server: Endpoint
    model: str
    api: str = "grpc"  # or "oip", "openai"
    call: str | None = None  # one of calls.CALLS; None is what the model is for
    connections: int = 8
    seconds: float = 10.0
    warmup: float = 2.0
    rate: float | None = None  # calls a second, in an open loop; None is a closed loop
    burstiness: float = 1.0  # of the arrivals: 1 is a Poisson process, less comes in bursts
    goodput: Mapping[str, float] = field(default_factory=dict)  # milliseconds that a good call takes at most, by name
    seed: int = 0  # of the arrivals
    batch: int = 1  # texts of one call; generation takes 1
    texts: Path | None = None  # one input a line; built-in ones when None
    prefix_len: int = 0  # words before each input, the same for all
    turns: int = 1  # of a chat, each with the messages before; the rate is that of chats
    trace: Path | None = None  # the lengths of inputs and answers, in place of `texts` and `max_tokens`
    self_timed: bool = False  # an open loop, with the arrivals of the trace
    max_tokens: int = 64  # of each answer
    stream: bool = True  # tokens as they come, or the whole answer at its end
    processes: int = 1  # of the client, that share the connections

    @property
    def is_open(self) -> bool:
        """Whether calls arrive independently: an open loop."""
        return self.rate is not None or self.self_timed


@dataclass(frozen=True)
class Share:
    """The calls of one of several client processes: number `index`, `index` + `of`, and so on."""

    index: int = 0
    of: int = 1
    number: int = field(default_factory=lambda: random.randrange(10**7, 9 * 10**7))  # the run's first running number

    def deal(self, items: Iterable[Item]) -> Iterator[Item]:
        """Returns those of this process."""
        return itertools.islice(items, self.index, None, self.of)
