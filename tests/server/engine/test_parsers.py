"""vLLM's parsers behind the seam: what they need of a tokenizer, of a prompt and of a request."""

import contextlib
from typing import get_args

import pytest

from tuneserve.server.config import ReasoningParser, ToolParser
from tuneserve.server.engine.interface import Parts

TOKENS = ["<think>", "</think>"]
TOOLS = [{"name": "weather"}]


@pytest.fixture(scope="module")
def thinking(make_llama):
    return make_llama(tokens=TOKENS)


def test_a_tokenizer_without_the_tokens_of_a_parser_is_refused(make_llama, make_parsers):
    with pytest.raises(
        ValueError, match=r"^its parsers \(hermes, deepseek_r1\) can't be used: .* think start/end tokens"
    ):
        make_parsers(make_llama(), "hermes", "deepseek_r1")


def test_all_of_them_are_vllms(make_parsers):
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    assert set(get_args(ToolParser)) <= set(ToolParserManager.list_registered())
    assert set(get_args(ReasoningParser)) <= set(ReasoningParserManager.list_registered())


def test_there_is_nothing_to_do_where_nothing_can_be_found(thinking, make_parsers):
    parsers, _ = make_parsers(thinking, "hermes", None)
    assert parsers.chat([], {}, [1]) is None
    assert parsers.chat(TOOLS, {}, [1]) is not None


@pytest.mark.parametrize("tool", [{}, {"name": 3}, {"function": "a"}, {"function": {"name": "a", "parameters": "b"}}])
def test_tools_may_be_whatever_a_template_takes(thinking, make_parsers, tool):
    parsers, _ = make_parsers(thinking, "hermes", "deepseek_r1")
    text = '<think>a</think>b<tool_call>{"name": "c", "arguments": {}}</tool_call>'
    parts = parsers.chat([tool], {}, [1]).parser().whole(text, [])
    assert (parts.reasoning, parts.text, [call.name for call in parts.tool_calls]) == ("a", "b", ["c"])


@pytest.mark.parametrize("reasoning", ["deepseek_r1", "qwen3"])
def test_a_prompt_may_have_opened_or_closed_the_reasoning(thinking, make_parsers, reasoning):
    parsers, tokenizer = make_parsers(thinking, "hermes", reasoning)

    def read(prompt: str, text: str) -> list[Parts]:
        parsing = parsers.chat(TOOLS, {}, tokenizer.encode(prompt))
        ids, more = tokenizer.encode(text), parsing.parser()
        pieces = [more.more(tokenizer.decode([id_]), [id_], index == len(ids)) for index, id_ in enumerate(ids, 1)]
        joined = Parts("".join(one.text for one in pieces), "".join(one.reasoning for one in pieces))
        return [parsing.parser().whole(text, ids), joined]

    for parts in read("Hi<think>", "so</think>yes"):
        assert (parts.reasoning, parts.text) == ("so", "yes")
    for parts in read("Hi<think></think>", "yes"):
        assert (parts.reasoning, parts.text) == ("", "yes")


@pytest.mark.parametrize(("calls", "is_read"), [(10, True), (3_000, False)])
def test_calls_written_in_python_are_read_up_to_a_length(thinking, make_parsers, calls, is_read):
    from tuneserve.server.engine.parsers import TooLong

    parsers, tokenizer = make_parsers(thinking, "pythonic", None)
    text = "[" + ", ".join(["weather(city=1)"] * calls) + "]"
    parser = parsers.chat(TOOLS, {}, [1]).parser()
    with contextlib.nullcontext() if is_read else pytest.raises(TooLong):
        assert len(parser.more(text, tokenizer.encode(text), True).tool_calls) == calls
