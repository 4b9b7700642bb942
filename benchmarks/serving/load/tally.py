"""Counts calls and tokens inside the measured window, and computes figures. Knows nothing of gRPC or models."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter

import numpy as np

PERCENTILES = (50, 90, 99, 99.9)


@dataclass
class Answer:
    """The times of one call. Times are seconds of one clock."""

    started: float  # when it was sent, or when it was due
    inputs: int
    prompt_tokens: int = 0
    # The time of each message and its number of tokens; empty for classification.
    arrivals: list[tuple[float, int]] = field(default_factory=list)

    @property
    def output_tokens(self) -> int:
        """Tokens of all messages."""
        return sum(tokens for _, tokens in self.arrivals)

    def times(self, when: float) -> dict[str, float]:
        """Returns the times of a call that ended `when`, by name; those of tokens only where there are any."""
        found = {"e2el": when - self.started}
        if self.arrivals:
            found["ttft"] = self.arrivals[0][0] - self.started
            if later := self.output_tokens - self.arrivals[0][1]:
                found["tpot"] = (self.arrivals[-1][0] - self.arrivals[0][0]) / later
        return found


@dataclass
class Tally:
    """Counts calls that end between `begin` and `end`, and output tokens that arrive then.

    So the warm-up does not count, and a call that is cut off at the end counts with the tokens that it had. `by_start`
    counts calls that were due between `begin` and `end`, whenever they end: the slow ones are not left out.
    """

    begin: float
    end: float
    by_start: bool = False
    goals: Mapping[str, float] = field(default_factory=dict)  # the longest times of a good call, by name
    good: int = 0
    lags: list[float] = field(default_factory=list)  # of what was due, a call or a timer
    latencies: list[float] = field(default_factory=list)
    inputs: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    first_tokens: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)  # between the messages of an answer
    messages: int = 0
    message_tokens: int = 0  # of those messages
    per_token: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    # The server's message of the first error with each status.
    error_texts: dict[str, str] = field(default_factory=dict)

    def late(self, due: float) -> None:
        """Notes how late it is for what was due."""
        if due >= self.begin:
            self.lags.append(perf_counter() - due)

    def token(self, when: float, tokens: int) -> None:
        """Counts tokens that arrived."""
        if self.begin <= when < self.end:
            self.output_tokens += tokens

    def finish(self, answer: Answer, when: float) -> None:
        """Counts a call that was answered in full."""
        if not self.begin <= (answer.started if self.by_start else when) < self.end:
            return
        times = answer.times(when)
        self.latencies.append(times["e2el"])
        self.good += all(times.get(name, 0.0) <= longest for name, longest in self.goals.items())
        self.inputs += answer.inputs
        self.prompt_tokens += answer.prompt_tokens
        if answer.arrivals:
            self.first_tokens.append(times["ttft"])
            self.gaps.extend(now - before for (before, _), (now, _) in pairwise(answer.arrivals))
            self.messages += len(answer.arrivals)
            self.message_tokens += answer.output_tokens
            if "tpot" in times:
                self.per_token.append(times["tpot"])

    def fail(self, code: str, text: str, when: float) -> None:
        """Counts a call that ended with an error status, or was due, at that time."""
        self.error_texts.setdefault(code, text)
        if self.begin <= when < self.end:
            self.errors[code] += 1

    def join(self, other: "Tally") -> None:
        """Adds what another process counted in the same window."""
        for name in ("good", "inputs", "prompt_tokens", "output_tokens", "messages", "message_tokens", "errors"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("lags", "latencies", "first_tokens", "gaps", "per_token"):
            getattr(self, name).extend(getattr(other, name))
        self.error_texts = other.error_texts | self.error_texts


def milliseconds(
    name: str, seconds: Sequence[float], percentiles: Iterable[float] = PERCENTILES
) -> dict[str, float | None]:
    """Returns percentiles by name, in milliseconds, interpolated linearly; None where nothing was measured."""
    wanted = list(percentiles)
    values = np.percentile(seconds, wanted) * 1000 if seconds else [None] * len(wanted)
    return {
        f"{name}_ms_p{percentile:g}": None if value is None else round(float(value), 3)
        for percentile, value in zip(wanted, values, strict=True)
    }
