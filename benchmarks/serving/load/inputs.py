"""What is sent. No input is sent twice, in this run or another, so that no prefix cache can answer for the model: each
begins with a running number of eight digits, which starts at random. That costs a few tokens per input.

A prefix, if asked for, comes before that: the same for all inputs of a run, and another one in another run.

Inputs of a trace have its lengths, in words of about one token each. Those that share blocks in the trace begin with
one number for the whole run: so they share them here, but with no other run.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneserve.benchmarks.serving.load import texts as samples
from tuneserve.benchmarks.serving.load import trace
from tuneserve.benchmarks.serving.load.settings import Settings, Share


@dataclass(frozen=True)
class Request:
    """What one call sends."""

    texts: Sequence[str]  # to classify, embed or rank; one prompt, or the last message of a chat
    query: str = ""  # that texts are ranked for
    max_tokens: int = 0  # of the answer that is generated
    history: Sequence[tuple[str, str]] = ()  # of a chat: role and text of each message before

    @property
    def messages(self) -> list[tuple[str, str]]:
        """Role and text of each message of a chat."""
        return [*self.history, ("user", self.texts[0])]


def conversations(settings: Settings, call: str, share: Share) -> Iterator[list[Request]]:
    """Returns the requests of a process; all of its connections take theirs from it. Those of a list are the turns of
    one conversation, of which there is one without --turns.

    Raises UserError if the file of texts or the trace can't be read.
    """
    texts = _of_trace(settings.trace, share) if settings.trace else _of_lines(settings, call, share)
    prefix = samples.words(settings.prefix_len, share.number) + " " if settings.prefix_len else ""

    def request(prefix: str) -> Request:
        query = next(texts)[0] if call == "rank" else ""
        batch = list(itertools.islice(texts, settings.batch))
        return Request([prefix + text for text, _ in batch], query, batch[0][1])

    return iter(lambda: [request("" if turn else prefix) for turn in range(settings.turns)], [])


def _of_lines(settings: Settings, call: str, share: Share) -> Iterator[tuple[str, int]]:
    built_in = samples.PROMPTS if call in ("chat", "generate") else samples.SENTENCES
    given = samples.read(settings.texts) if settings.texts else built_in
    numbered = share.deal(enumerate(itertools.cycle(given), share.number))
    return ((f"{number} {text}", settings.max_tokens) for number, text in numbered)


def _of_trace(path: Path, share: Share) -> Iterator[tuple[str, int]]:
    numbered = share.deal(enumerate(itertools.cycle(trace.read(path)), share.number))
    return ((_text(row, number, share.number), max(1, row.output_tokens)) for number, row in numbered)


def _text(row: trace.Row, number: int, first: int) -> str:
    if not row.blocks:
        return f"{number} {samples.words(row.input_tokens, number)}"
    shared, rest = divmod(row.input_tokens, trace.BLOCK_TOKENS)
    blocks = [_block(id_) for id_ in row.blocks[:shared]]
    return " ".join([str(first), *blocks, str(number), samples.words(rest, number)])


@functools.lru_cache(4096)
def _block(id_: int) -> str:
    return samples.words(trace.BLOCK_TOKENS, id_)
