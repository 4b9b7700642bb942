"""The calls of generation models."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from tuneserve.client import answers, results
from tuneserve.client.call import Call
from tuneserve.client.sampling import Prompt, Sampling, sampling
from tuneserve.client.sampling import prompt as as_prompt
from tuneserve.v1 import common_pb2, generation_pb2
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub


def generate(
    model: str,
    prompt: str | Sequence[int],
    *,
    adapter: str = "",
    priority: int | None = None,
    timeout: float | None = None,
    **sampling: Unpack[Sampling],
) -> Call[results.Generation]:
    """Continues a text, or token ids, and returns the complete answer.

    `adapter`: the LoRA adapter to answer with. `priority`: lower goes first. `timeout`: seconds for the call, its
    retries included. The other arguments, e.g. `max_tokens` and `temperature`, are those of `Sampling` (sampling.py).
    Raises CallError.
    """
    request = _request(model, prompt, (), (), None, adapter, priority, sampling)
    return Call(GenerationServiceStub, "Generate", request, answers.generation, timeout)


def chat(
    model: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    documents: Sequence[Mapping[str, Any]] = (),
    tool_choice: str | None = None,
    adapter: str = "",
    priority: int | None = None,
    timeout: float | None = None,
    **sampling: Unpack[Sampling],
) -> Call[results.Generation]:
    """Answers a conversation, rendered by the model's own chat template, and returns the complete answer.

    `messages`: {"role": "user", "content": "Hello"} and so on. `tools` and `documents`: as the template expects them.
    `tool_choice`: "auto", "none", "required", or the name of the tool to call. The other arguments are as in
    `generate`. Raises CallError; ValueError for a message with unknown fields.
    """
    request = _request(model, messages, tools, documents, tool_choice, adapter, priority, sampling)
    return Call(GenerationServiceStub, "Generate", request, answers.generation, timeout)


def stream(
    model: str,
    prompt: Prompt,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    documents: Sequence[Mapping[str, Any]] = (),
    tool_choice: str | None = None,
    adapter: str = "",
    priority: int | None = None,
    timeout: float | None = None,
    **sampling: Unpack[Sampling],
) -> Call[results.Generation]:
    """Continues a text, token ids or a conversation, and yields the text as it is generated.

        for text in (answer := client.stream("chat", "Once upon a time", max_tokens=100)):
            print(text, end="")
        print(answer.result.usage.completion_tokens)

    Leaving the loop early ends the call. The arguments are those of `chat`, except `n` and `prompt_logprobs`. Iterating
    raises CallError; after the first text there are no retries.
    """
    without = ("n", "prompt_logprobs")
    request = _request(model, prompt, tools, documents, tool_choice, adapter, priority, sampling, without)
    return Call(GenerationServiceStub, "GenerateStream", request, answers.generation, timeout)


def tokenize(
    model: str,
    prompt: Prompt,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    documents: Sequence[Mapping[str, Any]] = (),
    timeout: float | None = None,
) -> Call[results.Tokens]:
    """Returns the tokens of a text, token ids or a conversation, as a generation model reads them.

    The text of a conversation is rendered by the model's chat template; `tools` and `documents` are as in `chat`.
    Offsets count characters of that text. Raises CallError; ValueError for a message with unknown fields.
    """
    request = generation_pb2.TokenizeRequest(
        model=model, prompt=as_prompt(prompt, tools, documents), offset_unit=common_pb2.OFFSET_UNIT_CODE_POINT
    )
    return Call(GenerationServiceStub, "Tokenize", request, answers.tokens, timeout)


def _request(
    model: str,
    given: Prompt,
    tools: Sequence[Mapping[str, Any]],
    documents: Sequence[Mapping[str, Any]],
    tool_choice: str | None,
    adapter: str,
    priority: int | None,
    options: Mapping[str, Any],
    without: Sequence[str] = (),
) -> generation_pb2.GenerateRequest:
    return generation_pb2.GenerateRequest(
        model=model,
        prompt=as_prompt(given, tools, documents, tool_choice),
        sampling=sampling(options, without),
        adapter=adapter,
        priority=priority,
    )
