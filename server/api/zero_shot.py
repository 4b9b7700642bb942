"""Classification by a generation model: the probability that it answers with each of the caller's labels.

The score of a label is the log probability of its tokens, and of the token that ends the answer, after a prompt that
asks for one of the labels. Each token is one request to the engine, which may generate only this token. All requests of
a text share the prompt, and so the engine's prefix cache; labels with a common beginning share the requests for it.

The engine could give the log probabilities of several chosen tokens at once, but then vLLM (0.26 to 0.33) corrupts the
`logprobs` of every other request that runs in the same step.
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuneserve.server import concurrency, turns
from tuneserve.server.api import classification_answers as answers
from tuneserve.server.api.checks import check_tokens
from tuneserve.server.api.label_prompts import LONGEST_LABEL, Form, Question
from tuneserve.server.call.context import current
from tuneserve.server.call.errors import InvalidInput, Violations
from tuneserve.server.engine.interface import EngineFailed, Sampling
from tuneserve.server.models.place import Place
from tuneserve.server.text.tokenizer import Tokens

# The most requests to the engine for one call.
MOST_REQUESTS = 8192
_TRIES = 5


@dataclass(frozen=True)
class Edge:
    """A token of a label, and the label's tokens before it."""

    path: tuple[int, ...]
    token: int


class ZeroShot:
    """One call's labels, ready to be scored for texts."""

    def __init__(self, place: Place, form: Form, labels: Sequence[Sequence[int]], truncate: bool) -> None:
        self._model = place.model
        self._place = place
        self._form = form
        self._truncate = truncate
        self._labels = [[Edge(tuple(ids[:i]), ids[i]) for i in range(len(ids))] for ids in labels]
        # Without duplicates; the first label's first token comes first.
        self._edges = list(dict.fromkeys(edge for label in self._labels for edge in label))
        self._longest = max(map(len, labels))
        # More would wait in the model's queue and delay other callers.
        self._room = asyncio.Semaphore(place.model.engine.max_num_seqs)

    @classmethod
    async def of(cls, place: Place, question: Question, truncate: bool) -> "ZeroShot":
        """Prepares the labels as the model would write them. Raises InvalidInput if it can't tell two of them apart."""
        with current().stage("tokenize"):
            form = await Form.of(place.model.tokenizer, question)
            labels = await form.label_tokens()
        with Violations() as wrong:
            for index, ids in enumerate(labels):
                field = f"labels[{index}]"
                if len(ids) > LONGEST_LABEL:
                    wrong.add(field, f"has {len(ids)} tokens; allowed: 1 to {LONGEST_LABEL}")
                elif not ids:
                    wrong.add(field, "contains nothing that the model reads")
                elif max(ids) >= place.model.engine.vocab_size:
                    wrong.add(field, "has a token that the model does not know")
                else:
                    same = (
                        other
                        for other, others in enumerate(labels[:index])
                        if others and (ids[: len(others)] == others or others[: len(ids)] == ids)
                    )
                    if (first := next(same, None)) is not None:
                        wrong.add(field, f"can't be told apart from labels[{first}] by the model")
        return cls(place, form, labels, truncate)

    async def score(self, texts: Sequence[Any], field: str, truncate: bool = False) -> list[answers.Result]:
        """Returns the labels' log probabilities for each text. `field` names a text in errors, by its index."""
        if len(texts) * len(self._edges) > MOST_REQUESTS:
            most = MOST_REQUESTS // len(self._edges)
            what = f"have {len(texts)} texts, counting one for each explained word; allowed with these labels: {most}"
            raise InvalidInput("inputs", what)
        with current().stage("tokenize"):
            truncate = truncate or self._truncate
            each = turns.in_turns(enumerate(texts))
            prompts = [await self._prompt(text, field.format(index), truncate) async for index, text in each]
        # A few texts at a time, so that a text's prompt is still in the prefix cache when its labels are scored.
        limit = max(2, 2 * self._model.engine.max_num_seqs // len(self._edges))
        return await concurrency.together(self._score, prompts, limit)

    async def _score(self, prompt: tuple[Tokens, bool]) -> answers.Result:
        tokens, truncated = prompt
        ids = list(tokens.encoded.token_ids)
        first, *others = self._edges
        # First, alone, so that the other requests find the prompt in the cache.
        found = [await self._ask(ids, first, tokens.length + 1)]
        most = self._model.engine.max_num_seqs
        found += await concurrency.together(lambda edge: self._ask(ids, edge, self._cost(ids, edge)), others, most)
        logprobs = dict(zip(self._edges, found, strict=True))
        totals = [sum(logprobs[edge] for edge in label) for label in self._labels]
        return answers.Result(np.asarray(totals, dtype=np.float32), tokens.length, truncated)

    def _cost(self, prompt: Sequence[int], edge: Edge) -> int:
        """Returns the tokens that the engine reads and writes for one more edge, with the prompt in its cache."""
        return self._place.again(len(prompt) + len(edge.path)) + 1

    async def _ask(self, prompt: list[int], edge: Edge, cost: int) -> float:
        # The log probability returned is that before other tokens are excluded.
        sampling = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True, logprobs=0, allowed_token_ids=[edge.token])
        async with self._room:
            outputs = self._place.generate([*prompt, *edge.path], sampling, stream=False, cost=cost)
            async with aclosing(outputs):
                async for delta in outputs:
                    if delta.logprobs and delta.logprobs[0].token_id == edge.token:
                        return delta.logprobs[0].logprob
        raise EngineFailed("the engine returned no log probability")

    async def _prompt(self, text: str, field: str, truncate: bool) -> tuple[Tokens, bool]:
        """Returns a text's prompt, and whether the text was truncated to make it fit."""
        limit = self._model.engine.max_length - self._longest
        # Enough for a text that fits alone, together with a surrounding prompt that fits alone.
        most = 2 * self._model.engine.max_length
        tokens = await self._form.prompt(text, most)
        if tokens.length > limit and not truncate:
            length = f"over {most}" if tokens.truncated else tokens.length
            what = f"makes a prompt of {length} tokens, instruction and examples included; the model takes {limit}"
            raise InvalidInput(field, f"{what} before the label; shorten it or set TRUNCATION_END")
        # First truncate to the limit itself: how long the rest of the prompt is, is known only after that.
        truncated, keep = False, limit
        for _ in range(_TRIES):
            if tokens.length <= limit:
                check_tokens(field, [tokens], None, self._model.engine.vocab_size)
                return tokens, truncated
            if keep < 1:
                break
            # The text's new end may be tokenized differently, so one truncation is not always enough.
            text, own = await self._model.tokenizer.beginning(text, keep)
            truncated, tokens = True, await self._form.prompt(text, most)
            keep = own - (tokens.length - limit)
        raise InvalidInput(field, f"can't be truncated to fit: the rest of the prompt leaves no room in {limit} tokens")
