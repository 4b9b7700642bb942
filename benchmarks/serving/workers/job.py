"""A job is a fixed amount of work, the same for every system of a comparison; an outcome is its result.

Prompts are random token ids, so that no system's prefix cache can answer and each prompt has its exact length; texts
are the built-in sentences in random order. The seed determines the job, so that two runs measure the same.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from tuneserve.benchmarks.serving.load.texts import SENTENCES


@dataclass(frozen=True)
class Job:
    """Texts to classify, or prompts of token ids to continue greedily by exactly `max_tokens` tokens.

    Of what answers a whole file, `max_tokens` also continue texts.
    """

    texts: Sequence[str] = ()
    prompts: Sequence[Sequence[int]] = ()
    max_tokens: int = 0
    # How it is sent; a system in the measuring process gets everything at once.
    connections: int = 1  # with one call at a time each
    batch: int = 1  # texts of one call
    stream: bool = False
    answers: bool = False  # whether the outcome has them: with one connection, in the order of the texts
    target: str = ""  # host:port
    model: str = ""

    def pieces(self) -> list[Sequence[str] | Sequence[int]]:
        """Returns the texts or token ids of each call."""
        if self.prompts:
            return list(self.prompts)
        return [self.texts[start : start + self.batch] for start in range(0, len(self.texts), self.batch)]


@dataclass
class Outcome:
    """The result of one system's job. Two systems that did the same work have equal `counts`."""

    seconds: float = 0.0
    texts: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    # Where the job asks for them: the best label of each text, or the text that follows each prompt, but for streams.
    answers: list[str] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)  # seconds from each call's start; streams only
    gaps: list[float] = field(default_factory=list)  # seconds between messages with tokens; streams only
    client_cpu: float = 0.0  # seconds of the measuring process

    @property
    def counts(self) -> tuple[int, int, int]:
        """Texts, tokens in, tokens out."""
        return self.texts, self.prompt_tokens, self.output_tokens

    @property
    def rate(self) -> float:
        """Texts, or output tokens, a second."""
        return (self.output_tokens or self.texts) / self.seconds


def prompts(count: int, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Returns prompts of `length` random tokens. The lowest ids, special tokens in most vocabularies, are left out."""
    rng = random.Random(seed)
    return [[rng.randrange(min(100, vocab_size // 2), vocab_size) for _ in range(length)] for _ in range(count)]


def texts(count: int, seed: int) -> list[str]:
    """Returns sentences; every 16 in a row contain each built-in one once, so that equal counts are equal work."""
    rng = random.Random(seed)
    found: list[str] = []
    while len(found) < count:
        found += rng.sample(SENTENCES, len(SENTENCES))
    return found[:count]
