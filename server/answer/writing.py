"""The generation model of an index: what it is asked, as a call of its own would be, and what it writes.

Its calls have the caller's deadline, quota and priority, and a place in the model's queue.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from tuneserve.server.answer import prompt
from tuneserve.server.api.generation import GenerationService
from tuneserve.server.call.context import current
from tuneserve.server.call.errors import InvalidInput, WrongState
from tuneserve.server.models.aliases import Models
from tuneserve.server.models.model import Model
from tuneserve.v1 import answer_pb2 as pb
from tuneserve.v1 import checkpoint_pb2
from tuneserve.v1.generation_pb2 import Chat, GenerateRequest, GenerateStreamResponse, Prompt, SamplingParams

# Tokens of an answer and of a rewritten question, at most; of the former no more than this part of the model's length.
_ANSWER_TOKENS, _PART, _QUESTION_TOKENS = 512, 4, 64
# What a chat template may add to a conversation, and a number to a passage, in tokens.
_AROUND, _NUMBER = 64, 8
_ANY = 1 << 30


class Writer:
    """Writes answers from passages."""

    def __init__(self, models: Models, name: str) -> None:
        self._models = models
        self._name = name
        self._generation = GenerationService(models)

    async def query(self, request: pb.AnswerRequest) -> str:
        """Returns what to search: the last message, rewritten if it refers back."""
        question = request.messages[-1].content
        if not prompt.refers_back(request.messages):
            return question
        sampling = SamplingParams(max_tokens=_QUESTION_TOKENS, temperature=0)
        asked = self._request(self._model(), prompt.rewriting(request.messages), sampling, request)
        try:
            response = await self._generation.Generate(asked, None)
        except InvalidInput:
            # The turns before it are too long for the model.
            return question
        return prompt.checked(request.messages, response.completions[0].text)

    async def write(
        self, request: pb.AnswerRequest, query: str, passages: Sequence[pb.Passage]
    ) -> AsyncGenerator[GenerateStreamResponse, None]:
        """Yields what the model writes, from as many of the passages as it can read. Raises InvalidInput."""
        model = self._model()
        most = min(_ANSWER_TOKENS, model.engine.max_length // _PART)
        sampling = SamplingParams(
            max_tokens=request.max_tokens if request.HasField("max_tokens") else most,
            temperature=request.temperature,
            seed=request.seed if request.HasField("seed") else None,
        )
        fitting = await self._fitting(model, request.messages, query, passages, sampling.max_tokens)
        chat = prompt.answering(request.messages, query, passages[:fitting])
        try:
            responses = self._generation.GenerateStream(self._request(model, chat, sampling, request), None)
            async with aclosing(responses):  # type: ignore[type-var]
                async for response in responses:
                    yield response
        except InvalidInput as error:
            raise error.renamed(_named) from None

    def _model(self) -> Model:
        model = self._models.for_task(self._name, checkpoint_pb2.TASK_GENERATION)
        if not model.tokenizer.has_chat_template:
            raise WrongState(f"{model.id} has no chat template; answers need one", "NO_CHAT_TEMPLATE", self._name)
        return model

    async def _fitting(
        self,
        model: Model,
        messages: Sequence[pb.AnswerMessage],
        query: str,
        passages: Sequence[pb.Passage],
        answer_tokens: int,
    ) -> int:
        """Returns how many of the passages the model can read, beside all else. Raises InvalidInput if it is none."""
        bare = [turn.content for turn in prompt.answering(messages, query, ()).messages]
        texts = [f"{one.title}\n{one.text}" for one in passages]
        call = current()
        with call.stage("tokenize"):
            tokens = await model.tokenizer.encode([*bare, *texts], special_tokens=False, most=_ANY, hold=call.hold)
        lengths = [one.length for one in tokens]
        left = room = model.engine.max_length - answer_tokens - _AROUND - sum(lengths[: len(bare)])
        for place, length in enumerate(lengths[len(bare) :]):
            left -= length + _NUMBER
            if left < 0:
                if place:
                    return place
                told = f"{max(0, room)} of the {model.engine.max_length} tokens that {model.id} reads"
                raise InvalidInput("messages", f"leave {told} to the passages; ask in fewer words, or for fewer tokens")
        return len(passages)

    def _request(
        self, model: Model, chat: Chat, sampling: SamplingParams, request: pb.AnswerRequest
    ) -> GenerateRequest:
        return GenerateRequest(model=model.id, prompt=Prompt(chat=chat), sampling=sampling, priority=request.priority)


def _named(field: str) -> str:
    """Returns the field of an AnswerRequest for one of a GenerateRequest."""
    return field.removeprefix("sampling.") if field.startswith("sampling.") else "messages"
