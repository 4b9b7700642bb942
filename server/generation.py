"""GenerationService: convert, engine, convert."""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from tuneserve.server import convert
from tuneserve.server.context import request_id
from tuneserve.server.errors import InvalidInput
from tuneserve.server.models import Model, Models
from tuneserve.server.seam import Sampling
from tuneserve.server.tokenizer import TemplateRefused, Tokens
from tuneserve.v1 import checkpoint_pb2, common_pb2
from tuneserve.v1 import generation_pb2 as pb
from tuneserve.v1.generation_pb2_grpc import GenerationServiceServicer


class GenerationService(GenerationServiceServicer):
    """Text continued by a generation model."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        """See generation.proto."""
        model = self._models.for_task(request.model, checkpoint_pb2.TASK_GENERATION)
        with model.admitted():
            token_ids, sampling = await _prepare(model, request, stream=False)
            deltas = [
                delta
                async for output in model.engine.generate(request_id(), token_ids, sampling, stream=False)
                for delta in output
            ]
        made = sum(len(delta.token_ids) for delta in deltas)
        return pb.GenerateResponse(
            completions=[convert.completion(delta) for delta in sorted(deltas, key=lambda delta: delta.index)],
            prompt_logprobs=convert.logprobs(deltas[0].prompt_logprobs),
            usage=_usage(model, len(token_ids), made),
        )

    async def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: Any
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        """See generation.proto."""
        started = last = time.monotonic()
        model = self._models.for_task(request.model, checkpoint_pb2.TASK_GENERATION)
        made = 0
        with model.admitted():
            token_ids, sampling = await _prepare(model, request, stream=True)
            unfinished = sampling.n
            async with aclosing(model.engine.generate(request_id(), token_ids, sampling, stream=True)) as outputs:
                async for output in outputs:
                    now = time.monotonic()
                    new = sum(len(delta.token_ids) for delta in output)
                    if not made:
                        model.metrics.first_token.labels(model.name).observe(now - started)
                    elif new:
                        model.metrics.token_gap.labels(model.name).observe((now - last) / new)
                    last, made = now, made + new
                    unfinished -= sum(delta.finish is not None for delta in output)
                    response = pb.GenerateStreamResponse(completions=map(convert.completion, output))
                    if not unfinished:
                        response.usage.CopyFrom(_usage(model, len(token_ids), made))
                    yield response

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        """See generation.proto."""
        model = self._models.for_task(request.model, checkpoint_pb2.TASK_GENERATION)
        with model.admitted():
            if request.prompt.WhichOneof("kind") == "token_ids":
                ids = convert.token_ids(request.prompt.token_ids, model.engine.vocab_size)
                return pb.TokenizeResponse(tokens=[pb.Token(id=id_) for id_ in ids])
            text, tokens = await _tokens(model, request.prompt)
        return pb.TokenizeResponse(
            text=text,
            tokens=[
                pb.Token(id=id_, start=start, end=end)
                for id_, (start, end) in zip(tokens.encoded.token_ids, tokens.offsets, strict=True)
            ],
        )


async def _prepare(
    model: Model, request: pb.GenerateRequest | pb.GenerateStreamRequest, stream: bool
) -> tuple[list[int], Sampling]:
    """Returns what the engine takes: the prompt's token ids, and checked sampling parameters."""
    if request.prompt.WhichOneof("kind") == "token_ids":
        token_ids = convert.token_ids(request.prompt.token_ids, model.engine.vocab_size)
    else:
        _, tokens = await _tokens(model, request.prompt)
        token_ids = list(tokens.encoded.token_ids)
    limits = len(token_ids), model.engine.max_length, model.engine.vocab_size
    return token_ids, convert.sampling(request.sampling, *limits, stream=stream)


async def _tokens(model: Model, prompt: pb.Prompt) -> tuple[str, Tokens]:
    """Returns a text or chat prompt as the text that was tokenized, and its tokens."""
    kind = prompt.WhichOneof("kind")
    if kind == "text":
        if not prompt.text:
            raise InvalidInput("prompt.text", "is empty; a text is needed")
        text = prompt.text
    elif kind == "chat":
        text = await _render(model, prompt.chat)
    else:
        raise InvalidInput("prompt", "is unset; allowed: text, token_ids or chat")
    # A template writes the special tokens itself.
    [tokens] = await model.tokenizer.encode([text], special_tokens=kind == "text")
    return text, tokens


async def _render(model: Model, chat: pb.Chat) -> str:
    messages = convert.messages(chat)
    if not model.tokenizer.has_chat_template:
        raise InvalidInput("prompt.chat", "the checkpoint has no chat template; use text or token_ids")
    open_turn = chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True
    try:
        return await model.tokenizer.render(messages, open_turn)
    except TemplateRefused as error:
        raise InvalidInput("prompt.chat.messages", f"the chat template refused them: {error}") from error


def _usage(model: Model, prompt: int, made: int) -> common_pb2.Usage:
    model.metrics.tokens_in.labels(model.name).inc(prompt)
    model.metrics.tokens_out.labels(model.name).inc(made)
    return common_pb2.Usage(prompt_tokens=prompt, completion_tokens=made)
