"""GenerationService: converts requests, calls the engine, converts its answers."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from tuneserve.server import concurrency
from tuneserve.server.api import generation_messages as convert
from tuneserve.server.api.checks import check_enum, check_tokens
from tuneserve.server.api.classification_messages import UNITS
from tuneserve.server.api.pooling import note
from tuneserve.server.call.context import current
from tuneserve.server.call.errors import InvalidInput, Violations
from tuneserve.server.engine.interface import Parsing, Sampling, StructuredOutput
from tuneserve.server.models.aliases import Models
from tuneserve.server.models.model import Model
from tuneserve.server.models.place import Place, admitted
from tuneserve.server.text import required_calls, spans
from tuneserve.server.text.answers import Answers
from tuneserve.server.text.required_calls import RequiredCalls
from tuneserve.server.text.structured_output import check_sizes
from tuneserve.server.text.tokenizer import DocumentsIgnored, TemplateRefused, Tokens
from tuneserve.server.turns import in_turns
from tuneserve.v1 import checkpoint_pb2, common_pb2
from tuneserve.v1 import generation_pb2 as pb
from tuneserve.v1.generation_pb2_grpc import GenerationServiceServicer

# The most tokens of a Tokenize call, even if the model reads fewer.
_MOST_TOKENIZED = 1 << 16
# Bytes of a token, or of a log probability, in an answer.
_ENTRY_BYTES = 16
_EMPTY = "is empty; a text is needed"
# A prompt that was read: its token ids, its text, or its conversation.
_Read = list[int] | str | convert.Conversation


class GenerationService(GenerationServiceServicer):
    """Text continued by a generation model."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        """See generation.proto."""
        model = self._models.for_task(request.model, checkpoint_pb2.TASK_GENERATION)
        read = _checked(model, request, stream=False)
        async with admitted(model, request, request.priority) as (place, seen):
            read = _as_seen(read, model, seen.request.prompt)
            return await _answer(await _Wish.of(place, seen.request), read)

    async def generate_each(self, request: pb.GenerateRequest, texts: Sequence[str]) -> list[pb.GenerateResponse]:
        """Answers a request with several texts in place of its prompt: by one version, in one place in its queue.

        An error in one of them ends all; its field is then texts[INDEX].
        """
        model = self._models.for_task(request.model, checkpoint_pb2.TASK_GENERATION)
        made, most = len(texts) * max(1, request.sampling.n), model.config.max_inputs
        if len(texts) > 1 and made > most:
            raise InvalidInput("texts", f"would make {made} completions; allowed: {most} of several prompts")
        with Violations() as wrong:
            _check_options(wrong, model, request, stream=False)
            empty = [index for index, text in enumerate(texts) if not text]
            wrong.each(empty, lambda index: (f"texts[{index}]", _EMPTY))
        async with admitted(model, request, request.priority) as (place, seen):
            wish = await _Wish.of(place, seen.request)

            async def one(index: int) -> pb.GenerateResponse:
                try:
                    prompt = pb.Prompt(text=texts[index])
                    if model.masks:
                        prompt = (await place.masked(prompt, "prompt")).request
                    return await _answer(wish, prompt.text)
                except InvalidInput as error:
                    here = f"texts[{index}]"
                    raise error.renamed(lambda field: here if field.startswith("prompt") else field) from error

            # More would wait in the model's queue and delay other callers.
            return await concurrency.together(one, range(len(texts)), model.engine.max_num_seqs)

    async def GenerateStream(
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        """See generation.proto."""
        model = self._models.for_task(request.model, checkpoint_pb2.TASK_GENERATION)
        read = _checked(model, request, stream=True)
        async with admitted(model, request, request.priority) as (place, seen):
            read = _as_seen(read, model, seen.request.prompt)
            wish = await _Wish.of(place, seen.request)
            token_ids, sampling, answers = await wish.prepare(read)
            unfinished, call = sampling.n, current()
            usage, answering = common_pb2.Usage(prompt_tokens=len(token_ids)), model.id
            outputs = place.generate(token_ids, sampling, stream=True, adapter=wish.adapter)
            async with aclosing(outputs):
                async for delta in outputs:
                    usage.completion_tokens += len(delta.token_ids)
                    if call.content is not None:
                        call.note("output", delta.text)
                    unfinished -= delta.finish is not None
                    yield pb.GenerateStreamResponse(
                        completions=[await convert.completion(await answers.more(delta))],
                        usage=None if unfinished else usage,
                        model_version=answering,
                    )
                    answering = ""

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        """See generation.proto."""
        model = self._models.for_task(request.model, checkpoint_pb2.TASK_GENERATION)
        most = max(model.engine.max_length, _MOST_TOKENIZED)
        with Violations() as wrong:
            check_enum(wrong, "offset_unit", request.offset_unit, UNITS)
            read = _read(wrong, model, request.prompt, most)
        async with admitted(model, request) as (place, seen):
            read = _as_seen(read, model, seen.request.prompt)
            response = pb.TokenizeResponse(model_version=model.id)
            # One by one: making a message of a long list, and freeing the list, takes a tenth of a second.
            add = response.tokens.add
            if isinstance(read, list):
                async for id_ in in_turns(read):
                    add(id=id_)
                return response
            text, tokens = await _tokens(place, read, most)
            original = seen.original("prompt.text", text).original
            response.text = request.prompt.text or text
            at = spans.positions(response.text, UNITS[request.offset_unit])
            async for id_, offsets in in_turns(zip(tokens.encoded.token_ids, tokens.offsets, strict=True)):
                start, end = original(*offsets)
                add(id=id_, start=at[start], end=at[end])
            return response


@dataclass(frozen=True)
class _Wish:
    """The checked options of a call, without its prompt."""

    place: Place
    params: pb.SamplingParams
    form: StructuredOutput | None
    adapter: str

    @classmethod
    async def of(cls, place: Place, request: pb.GenerateRequest) -> "_Wish":
        params, form = request.sampling, None
        await _check_bad_words(place, params.bad_words)
        if params.HasField("structured_output"):
            form = await place.model.constraints.checked(params.structured_output, place.call.tenant.name)
        return cls(place, params, form, request.adapter)

    async def prepare(self, read: _Read) -> tuple[list[int], Sampling, Answers]:
        """Returns the inputs of the engine (the prompt's ids and the sampling parameters), and the reader of its
        answers.
        """
        model = self.place.model
        most = model.engine.max_length
        if isinstance(read, list):
            token_ids = read
        else:
            _, tokens = await _tokens(self.place, read, most)
            token_ids = list(tokens.encoded.token_ids)
        chat = read if isinstance(read, convert.Conversation) else None
        asks = self.params.HasField("prompt_logprobs")
        fragments = await model.tokenizer.fragments(token_ids) if asks else 0
        form, parsing = self.form, None
        if chat and chat.required is not None:
            form, parsing = await self._required(chat, chat.required), Parsing(RequiredCalls, special_tokens=False)
        elif chat and not form:
            # With a structured output, the whole answer has that form: nothing to parse.
            parsing = await self._parsing(chat, token_ids)
        sampling = convert.sampling(self.params, form, len(token_ids), most, fragments)
        if parsing and parsing.special_tokens:
            sampling = replace(sampling, skip_special_tokens=False)
        return token_ids, sampling, Answers(parsing, model.parsing, model.unparsed)

    async def _required(self, chat: convert.Conversation, name: str) -> StructuredOutput:
        """Returns the structured output of an answer that must call tools."""
        model = self.place.model
        schema = await model.tokenizer.apart(required_calls.schema, chat.tools, name)
        try:
            wanted = pb.StructuredOutput(json_schema=schema)
            return await model.constraints.checked(wanted, self.place.call.tenant.name)
        except InvalidInput as error:
            raise InvalidInput("prompt.chat.tools", f"as one JSON Schema: {error.description}") from error

    async def _parsing(self, chat: convert.Conversation, token_ids: Sequence[int]) -> Parsing | None:
        model = self.place.model
        parsers = model.engine.parsers
        if parsers is None:
            return None
        try:
            return await model.tokenizer.apart(parsers.chat, chat.tools, chat.arguments, token_ids)
        except Exception as error:
            model.unparsed(type(error).__name__)
            return None


async def _answer(wish: _Wish, read: _Read) -> pb.GenerateResponse:
    token_ids, sampling, answers = await wish.prepare(read)
    current().hold(_entries(sampling, len(token_ids)) * _ENTRY_BYTES)
    outputs = wish.place.generate(token_ids, sampling, stream=False, adapter=wish.adapter)
    async with aclosing(outputs):
        deltas = [delta async for delta in outputs]
    current().note("output", *(delta.text for delta in deltas))
    deltas.sort(key=lambda delta: delta.index)
    return pb.GenerateResponse(
        completions=[await convert.completion(await answers.whole(delta)) for delta in deltas],
        prompt_logprobs=await convert.logprobs(deltas[0].prompt_logprobs),
        usage=common_pb2.Usage(
            prompt_tokens=len(token_ids), completion_tokens=sum(len(delta.token_ids) for delta in deltas)
        ),
        model_version=wish.place.model.id,
    )


def _entries(sampling: Sampling, prompt_length: int) -> int:
    """Returns how many tokens and log probabilities an answer may have."""
    made = sampling.n * sampling.max_tokens * (1 if sampling.logprobs is None else 2 + sampling.logprobs)
    return made + (0 if sampling.prompt_logprobs is None else prompt_length * (1 + sampling.prompt_logprobs))


async def _check_bad_words(place: Place, words: Sequence[str]) -> None:
    # vLLM bans each word in two forms: at the beginning of a text, and after a space.
    forms = [space + word.lstrip() for word in words for space in ("", " ")]
    if not forms:
        return
    tokens = await place.encode(forms, special_tokens=False, most=convert.MAX_BAD_TOKENS)
    if (count := sum(one.length for one in tokens)) > convert.MAX_BAD_TOKENS:
        what = f"make {count} tokens or more, with and without a space before; allowed: {convert.MAX_BAD_TOKENS}"
        raise InvalidInput("sampling.bad_words", what)
    for index, one in enumerate(tokens):
        check_tokens(f"sampling.bad_words[{index // 2}]", [one], None, place.model.engine.vocab_size)


def _checked(model: Model, request: pb.GenerateRequest, stream: bool) -> _Read:
    """Checks a call's fields, all at once, and returns its prompt."""
    with Violations() as wrong:
        _check_options(wrong, model, request, stream)
        read = _read(wrong, model, request.prompt, model.engine.max_length)
        is_required = isinstance(read, convert.Conversation) and read.required is not None
        if is_required and request.sampling.HasField("structured_output"):
            what = "is TOOL_CHOICE_MODE_REQUIRED, which can't be combined with sampling.structured_output"
            wrong.add("prompt.chat.tool_choice.mode", what)
    return read


def _check_options(wrong: Violations, model: Model, request: pb.GenerateRequest, stream: bool) -> None:
    """Checks a call's fields other than its prompt. Raises NotFound for its adapter."""
    if request.adapter:
        model.adapters.get(request.adapter)
    convert.check_sampling(wrong, request.sampling, model.engine.vocab_size, stream)
    if request.sampling.HasField("structured_output"):
        check_sizes(wrong, request.sampling.structured_output)


def _read(wrong: Violations, model: Model, prompt: pb.Prompt, most: int) -> _Read:
    """Returns a prompt: at most `most` token ids."""
    kind = prompt.WhichOneof("kind")
    if kind == "token_ids":
        return convert.token_ids(wrong, prompt.token_ids, most, model.engine.vocab_size, redacted=model.masks)
    if kind == "chat":
        if not model.tokenizer.has_chat_template:
            wrong.add("prompt.chat", "the checkpoint has no chat template; use text or token_ids")
        with current().stage("tokenize"):
            chat = convert.conversation(wrong, prompt.chat, model.engine.max_length)
        convert.check_arguments(wrong, chat.arguments, model.tokenizer.reserved_arguments)
        return chat
    if kind is None:
        wrong.add("prompt", "is unset; allowed: text, token_ids or chat")
    elif not prompt.text:
        wrong.add("prompt.text", _EMPTY)
    return prompt.text


def _as_seen(read: _Read, model: Model, prompt: pb.Prompt) -> _Read:
    """Returns a checked prompt as the model may see it: read again, if the model masks personal data."""
    if not model.masks:
        return read
    with Violations() as wrong:
        return _read(wrong, model, prompt, 0)


async def _tokens(place: Place, read: str | convert.Conversation, most: int) -> tuple[str, Tokens]:
    """Returns the text of a text or chat prompt, and its tokens: at most `most`."""
    if isinstance(read, str):
        kind, text = "text", read
    else:
        with current().stage("tokenize"):
            kind, text = "chat", await _render(place.model, read)
    # A chat template writes the special tokens itself.
    [tokens] = await place.encode([text], special_tokens=kind == "text", most=most)
    check_tokens(f"prompt.{kind}", [tokens], most, place.model.engine.vocab_size, "shorten it")
    note([text])
    return text, tokens


async def _render(model: Model, chat: convert.Conversation) -> str:
    try:
        return await model.tokenizer.render(
            chat.messages, chat.open_turn, tools=chat.tools, documents=chat.documents, arguments=chat.arguments
        )
    except TemplateRefused as error:
        raise InvalidInput("prompt.chat", str(error)) from None
    except DocumentsIgnored:
        ignored = "are ignored by the model's chat template; put them into a message, or use another model"
        raise InvalidInput("prompt.chat.documents", ignored) from None
