"""vLLM's parsers of answers, by their names in its registries: they find the reasoning, text and tool calls of an
answer.

The parsers belong to vLLM's OpenAI server (0.32 and 0.33) and expect its requests, so this module makes such requests.
It bounds only what can't be interrupted; `text/answers.py` does the rest.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from vllm.entrypoints.generate.base.protocol import FunctionDefinition
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionToolsParam
from vllm.parser import ParserManager
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tool_parsers import llama4_pythonic_tool_parser, olmo3_tool_parser, pythonic_tool_parser
from vllm.tool_parsers import utils as tool_parser_utils

from tuneserve.server.engine.interface import Parsing, Parts, ToolCall

# Tokens at a prompt's end that show whether its template has opened, or closed, the model's reasoning.
_END = 1024
# Words and signs that Python's own parser, which keeps the interpreter lock, reads in some 40 ms.
_MOST_PARTS = 16_000
_PART = re.compile(r"\w+|[^\w\s]")


class TooLong(Exception):
    """An answer is too long for its parser."""


class _TooLong(BaseException):
    """Raised inside vLLM. Its parsers take any Exception for an answer without calls, and may lose the text."""


class _BoundedAst:
    """Python's `ast`, for the parsers of calls that are written in Python."""

    def __getattr__(self, name: str) -> Any:
        return getattr(ast, name)

    def parse(self, text: str) -> ast.Module:
        if next(islice(_PART.finditer(text), _MOST_PARTS, None), None):
            raise _TooLong
        return ast.parse(text)


for _module in (llama4_pythonic_tool_parser, olmo3_tool_parser, pythonic_tool_parser, tool_parser_utils):
    vars(_module)["ast"] = _BoundedAst()


class VllmParsers:
    """See interface.Parsers. A tool parser, a reasoning parser, or both."""

    def __init__(
        self, tool_parser: str | None, reasoning_parser: str | None, tokenizer: Any, model_config: Any = None
    ) -> None:
        """Raises ValueError if vLLM has no such parser, or the tokenizer lacks tokens that it needs."""
        self._tokenizer = tokenizer
        self._model_config = model_config

        def made(tools: str | None, reasoning: str | None) -> Any:
            try:
                return ParserManager.get_parser(
                    tool_parser_name=tools,
                    reasoning_parser_name=reasoning,
                    enable_auto_tools=tools is not None,
                    tokenizer=tokenizer,
                )
            except TypeError as error:
                names = ", ".join(filter(None, (tools, reasoning)))
                raise ValueError(f"its parsers ({names}) can't be used: {error.__cause__ or error}") from error

        # vLLM's parser classes, by whether they look for tool calls and for reasoning.
        self._kinds = {
            (True, True): made(tool_parser, reasoning_parser),
            (True, False): made(tool_parser, None),
            (False, True): made(None, reasoning_parser),
            (False, False): None,
        }

    def chat(
        self, tools: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any], token_ids: Sequence[int]
    ) -> Parsing | None:
        """See interface.Parsers."""
        end = list(token_ids[-_END:])
        request = _request(tools)
        given = {"chat_template_kwargs": dict(arguments), "model_config": self._model_config}

        def make(kind: Any) -> Any:
            return kind(self._tokenizer, request.tools, **given)

        kind = self._kinds[bool(tools), True]
        # If reasoning is turned off, the template may close it itself.
        if kind and kind.reasoning_parser_cls and make(kind).is_reasoning_end(end):
            kind = self._kinds[bool(tools), False]
        if not kind:
            return None
        # vLLM adjusts requests for a parser. Only its choice for special tokens applies here.
        adjusted = make(kind).adjust_request(_request(tools))
        return Parsing(lambda: _Parser(make(kind), request, end), special_tokens=not adjusted.skip_special_tokens)


class _Parser:
    """See interface.AnswerParser."""

    def __init__(self, parser: Any, request: ChatCompletionRequest, prompt: list[int]) -> None:
        self._parser = parser
        self._request = request
        self._prompt = prompt
        reasoning = parser.reasoning_parser
        self._opening = (reasoning and reasoning.reasoning_start_str) or ""  # start of reasoning, until it was seen

    def whole(self, text: str, token_ids: Sequence[int]) -> Parts:
        self._parser.set_prompt_token_ids(self._prompt)
        with _bounded():
            reasoning, content, calls = self._parser.parse(
                text, self._request, enable_auto_tools=True, model_output_token_ids=token_ids
            )
        return Parts(
            content or "",
            reasoning or "",
            [
                ToolCall(index, call.id or make_tool_call_id(), call.name, call.arguments)
                for index, call in enumerate(calls or ())
            ],
        )

    def more(self, text: str, token_ids: Sequence[int], finished: bool) -> Parts:
        with _bounded():
            new = self._parser.parse_delta(text, list(token_ids), self._request, self._prompt, finished=finished)
        if new is None:
            return Parts()
        reasoning = new.reasoning or ""
        # Some parsers find it only as a piece of its own, but pieces may have several tokens.
        if self._opening and self._opening in reasoning:
            reasoning, self._opening = reasoning.partition(self._opening)[2], ""
        return Parts(new.content or "", reasoning, [_call(call) for call in new.tool_calls])


@contextmanager
def _bounded() -> Iterator[None]:
    try:
        yield
    except _TooLong:
        raise TooLong from None


def _call(call: Any) -> ToolCall:
    function = call.function
    name, arguments = (function.name, function.arguments) if function else ("", "")
    return ToolCall(call.index, call.id or "", name or "", arguments or "")


def _request(tools: Sequence[Mapping[str, Any]]) -> ChatCompletionRequest:
    """Returns a request with the fields that the parsers read. Not validated: templates may expect other tools."""
    return ChatCompletionRequest.model_construct(
        messages=[], tools=[_tool(tool) for tool in tools] or None, tool_choice="auto" if tools else "none"
    )


def _tool(tool: Mapping[str, Any]) -> ChatCompletionToolsParam:
    """Returns a tool with its name and parameters, whose types some parsers use to read arguments."""
    inner = tool.get("function")
    function = inner if isinstance(inner, Mapping) else tool
    parameters = function.get("parameters")
    return ChatCompletionToolsParam(
        function=FunctionDefinition(
            name=str(function.get("name", "")), parameters=parameters if isinstance(parameters, dict) else None
        )
    )
