"""Parses completions into reasoning, text and tool calls, whole or in pieces as they are streamed.

The engine's parsers read what a model wrote, and a caller can make the model write text that is slow to parse or makes
a parser fail. So parsing time is bounded, and runs outside the event loop unless it is sure to be short. An answer that
can't be parsed is returned as text.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tuneserve.server.concurrency import within
from tuneserve.server.engine.interface import AnswerParser, Delta, Parsing, Parts
from tuneserve.server.turns import turn

# Seconds of parsing allowed for one call, and for each token of a stream in addition.
_MOST_SECONDS = 2.0
_MOST_A_TOKEN = 0.002
# Many parsers read the whole text again with each piece. So the longer that takes, the longer the pieces get: parsing
# seconds that are worth spending for each token of a piece.
_WORTH_A_TOKEN = 0.001
# A piece is parsed on the event loop if it has at most so many characters, and the last piece took at most so many
# seconds.
_SHORT = 256
_NO_TIME = 0.001


@dataclass
class _Answer:
    """One completion so far."""

    parser: AnswerParser | None = None
    failed: bool = False
    seconds: float = 0.0  # parsing time of the last piece
    text: list[str] = field(default_factory=list)  # collected for the next piece
    token_ids: list[int] = field(default_factory=list)
    held: list[str] = field(default_factory=list)  # text without any output so far
    calls: bool = False  # whether it has tool calls


class Answers:
    """The completions of one call."""

    def __init__(self, parsing: Parsing | None, turns: asyncio.Semaphore, unparsed: Callable[[str], object]) -> None:
        """`turns` limits the model's parsing threads. `unparsed` is called with the reason if an answer can't be
        parsed.
        """
        self._parsing = parsing
        self._turns = turns
        self._unparsed = unparsed
        self._answers: dict[int, _Answer] = {}
        self._left = _MOST_SECONDS

    async def whole(self, delta: Delta) -> Delta:
        """Returns a completion, parsed into its fields."""
        if self._parsing is None:
            return delta
        parts = await self._read(
            self._parsing,
            _Answer(),
            delta.text,
            lambda parser: parser.whole(delta.text, delta.token_ids),
            on_loop=False,
        )
        return _with(delta, parts, calls=bool(parts.tool_calls))

    async def more(self, delta: Delta) -> Delta:
        """Returns the new part of a completion, parsed into its fields; some of its text may come later."""
        if self._parsing is None:
            return delta
        answer = self._answers.setdefault(delta.index, _Answer())
        self._left += _MOST_A_TOKEN * len(delta.token_ids)
        answer.text.append(delta.text)
        answer.token_ids += delta.token_ids
        text, ids, finished = "".join(answer.text), answer.token_ids, delta.finish is not None
        if not finished and not answer.failed and answer.seconds > _WORTH_A_TOKEN * len(ids):
            return replace(delta, text="")
        answer.text, answer.token_ids = [], []
        on_loop = len(text) <= _SHORT and answer.seconds <= _NO_TIME
        await turn()
        parts = await self._read(self._parsing, answer, text, lambda parser: parser.more(text, ids, finished), on_loop)
        answer.calls = answer.calls or bool(parts.tool_calls)
        return _with(delta, parts, answer.calls)

    async def _read(
        self, parsing: Parsing, answer: _Answer, text: str, read: Callable[[AnswerParser], Parts], on_loop: bool
    ) -> Parts:
        answer.held.append(text)
        if not answer.failed:
            try:
                if self._left <= 0:
                    raise TimeoutError
                parser = answer.parser = answer.parser or parsing.parser()
                if on_loop:
                    parts, answer.seconds = _timed(read, parser)
                else:
                    async with self._turns:
                        parts, answer.seconds = await within(self._left, _timed, read, parser)
            except TimeoutError:
                self._unparsed("slow")
            except Exception as error:
                self._unparsed(type(error).__name__)
            else:
                self._left -= answer.seconds
                if parts != Parts():
                    answer.held.clear()
                return parts
            answer.failed, answer.parser = True, None
        parts = Parts("".join(answer.held))
        answer.held.clear()
        return parts


def _with(delta: Delta, parts: Parts, calls: bool) -> Delta:
    finish = "tool_calls" if calls and delta.finish == "stop" else delta.finish
    return replace(delta, text=parts.text, reasoning=parts.reasoning, tool_calls=parts.tool_calls, finish=finish)


def _timed(read: Callable[[AnswerParser], Parts], parser: AnswerParser) -> tuple[Parts, float]:
    start = time.thread_time()
    return read(parser), time.thread_time() - start
