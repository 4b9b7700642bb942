"""One call: what every API sends and gets, and what is counted of it. The content of answers is not checked."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tuneserve.benchmarks.serving.load.inputs import Request
from tuneserve.benchmarks.serving.load.tally import Answer, Tally

# Makes a call and counts it. Its times count from the second argument: when it was due, or is sent.
Call = Callable[[Tally, float], Awaitable[None]]


# Named as those of `tuneserve call`, each with the task of its models.
CALLS = {
    "classify": "sequence-classification",
    "tokens": "token-classification",
    "rank": "ranking",
    "embed": "embedding",
    "chat": "generation",
    "generate": "generation",
}


class Refused(Exception):
    """A call that ended with an error status."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code, self.text = code, text


@dataclass(frozen=True)
class Served:
    """The model that is called, as far as its server tells."""

    task: str
    call: str  # one of CALLS
    version: str = ""
    quantization: str = ""
    max_inputs: int = 0  # of a call; 0 is not known

    @property
    def generates(self) -> bool:
        """Whether answers are generated text."""
        return self.call in ("chat", "generate")


@dataclass(frozen=True)
class Message:
    """One message of an answer. Tokens of the prompt are in one of them."""

    prompt_tokens: int = 0
    tokens: int = 0  # new ones of a generated answer
    text: str = ""  # of these
    late: bool = False  # tokens of the message before, which did not tell them all


# Sends a request over one connection, and yields the messages of the answer. Raises Refused.
Send = Callable[[Request], AsyncIterator[Message]]


def default_call(task: str, is_chat: bool) -> str:
    """Returns the call that a model is for."""
    if task == "generation":
        return "chat" if is_chat else "generate"
    return next(call for call, its_task in CALLS.items() if its_task == task)


def calling(send: Send, conversations: Iterator[Sequence[Request]]) -> Call:
    """Returns the call of a connection: all turns of a conversation, each as soon as the one before is answered."""

    async def call(tally: Tally, started: float) -> None:
        history: list[tuple[str, str]] = []
        for request in next(conversations):
            said = await _answered(send(replace(request, history=history)), Answer(started, len(request.texts)), tally)
            history += [("user", request.texts[0]), ("assistant", said)]
            started = time.perf_counter()

    return call


async def _answered(messages: AsyncIterator[Message], answer: Answer, tally: Tally) -> str:
    """Counts an answer, and returns its text."""
    texts = []
    async for message in messages:
        now = time.perf_counter()
        answer.prompt_tokens += message.prompt_tokens
        texts.append(message.text)
        if message.tokens:
            if message.late and answer.arrivals:
                before, tokens = answer.arrivals.pop()
                answer.arrivals.append((before, tokens + message.tokens))
            else:
                answer.arrivals.append((now, message.tokens))
            tally.token(now, message.tokens)
    tally.finish(answer, time.perf_counter())
    return "".join(texts)
