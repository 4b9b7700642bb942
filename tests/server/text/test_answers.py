"""Answers that parsers can't take apart, or take too long for: they are text, and nothing of them is lost."""

import asyncio
import time
from collections.abc import Sequence

import pytest

from tuneserve.server.engine.interface import Delta, Parsing, Parts, ToolCall
from tuneserve.server.text import answers
from tuneserve.server.text.answers import Answers


class Capitals:
    """Takes what is in capitals for reasoning; holds back what ends in a space; fails and hangs when told to."""

    def __init__(self) -> None:
        self.kept = ""

    def whole(self, text: str, token_ids: Sequence[int]) -> Parts:
        return self.more(text, token_ids, True)

    def more(self, text: str, token_ids: Sequence[int], finished: bool) -> Parts:
        if "fail" in text:
            raise ValueError("CANARY")
        while "hang" in text:
            time.sleep(0)
        if "call" in text:
            return Parts(tool_calls=[ToolCall(0, "id", text)])
        self.kept += text
        if self.kept.endswith(" ") and not finished:
            return Parts()
        new, self.kept = self.kept, ""
        return Parts(reasoning=new) if new.isupper() else Parts(new)


class Reader:
    """Reads pieces, and remembers why some were not parsed."""

    def __init__(self) -> None:
        self.unparsed: list[str] = []
        self.answers = Answers(Parsing(Capitals, False), asyncio.Semaphore(1), self.unparsed.append)

    async def pieces(self, *texts: str, index: int = 0) -> list[Delta]:
        found = []
        for number, text in enumerate(texts, 1):
            finish = "stop" if number == len(texts) else None
            found.append(await self.answers.more(Delta(index, text, [1], finish=finish)))
        return found


def parts(deltas: Sequence[Delta]) -> list[tuple[str, str]]:
    return [(delta.reasoning, delta.text) for delta in deltas]


async def test_without_parsers_an_answer_is_as_it_came():
    delta = Delta(0, "A", [1], finish="stop")
    plain = Answers(None, asyncio.Semaphore(1), print)
    assert await plain.more(delta) is delta
    assert await plain.whole(delta) is delta


async def test_pieces_and_a_whole():
    reader = Reader()
    assert parts(await reader.pieces("A", "b ", "c")) == [("A", ""), ("", ""), ("", "b c")]
    whole = await Reader().answers.whole(Delta(0, "A", [1], finish="length"))
    assert (whole.reasoning, whole.text, whole.finish) == ("A", "", "length")
    assert not reader.unparsed


async def test_an_answer_that_calls_tools_ends_with_that():
    *others, last = await Reader().pieces("call", "b", "c")
    assert last.finish == "tool_calls"
    assert {other.finish for other in others} == {None}
    cut = Reader()
    await cut.answers.more(Delta(0, "call", [1]))
    assert (await cut.answers.more(Delta(0, "b", [1], finish="length"))).finish == "length"


async def test_each_completion_has_a_parser_of_its_own():
    reader = Reader()
    await reader.answers.more(Delta(0, "b ", [1]))
    assert parts(await reader.pieces("fail", "A", index=1)) == [("", "fail"), ("", "A")]
    assert parts([await reader.answers.more(Delta(0, "c", [1], finish="stop"))]) == [("", "b c")]
    assert reader.unparsed == ["ValueError"]


async def test_what_a_parser_held_back_when_it_failed_is_text():
    reader = Reader()
    assert parts(await reader.pieces("A", "b ", "fail", "D")) == [("A", ""), ("", ""), ("", "b fail"), ("", "D")]
    assert reader.unparsed == ["ValueError"]


@pytest.mark.parametrize("method", ["whole", "more"])
async def test_a_parser_that_takes_too_long_is_left_alone(monkeypatch, method):
    monkeypatch.setattr(answers, "_MOST_SECONDS", 0.05)
    reader = Reader()
    text = "hang" + "x" * answers._SHORT
    delta = await getattr(reader.answers, method)(Delta(0, text, [1], finish="stop"))
    assert (delta.reasoning, delta.text) == ("", text)
    assert reader.unparsed == ["slow"]


async def test_the_longer_a_parser_takes_the_longer_are_the_pieces(monkeypatch):
    monkeypatch.setattr(answers, "_timed", lambda read, parser: (read(parser), 0.003))
    reader = Reader()
    found = parts(await reader.pieces("A", "b", "c", "d", "e", "f"))
    assert found == [("A", ""), ("", ""), ("", ""), ("", "bcd"), ("", ""), ("", "ef")]
    assert not reader.unparsed


async def test_what_waits_when_a_parser_fails_is_text(monkeypatch):
    monkeypatch.setattr(answers, "_timed", lambda read, parser: (read(parser), 0.003))
    assert parts(await Reader().pieces("A", "b", "fail", "C", "D")) == [
        *(("A", ""), ("", ""), ("", ""), ("", "bfailC"), ("", "D")),
    ]


async def test_what_parsers_may_take_is_for_all_completions_of_a_call(monkeypatch):
    reader = Reader()
    monkeypatch.setattr(answers, "_timed", lambda read, parser: (read(parser), 1.5))
    assert parts(await reader.pieces("A", index=0)) == [("A", "")]
    assert parts(await reader.pieces("A", index=1)) == [("A", "")]
    assert parts(await reader.pieces("A", index=2)) == [("", "A")]
    assert reader.unparsed == ["slow"]
