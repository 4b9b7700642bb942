"""Explains results by occlusion: each word is removed in turn, and the model is asked again.

Words are found in the text that the model gets, after redaction, and reported by their offsets in the caller's text.
Knows nothing of how the model is asked.
"""

import re
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from tuneserve.server.api import classification_messages as convert
from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.config import ModelConfig
from tuneserve.server.text import spans
from tuneserve.server.text.masking import Redacted
from tuneserve.server.text.redaction import Masked
from tuneserve.server.text.tokenizer import Tokenizer
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1 import common_pb2

# `score` of `Classifier` and `ZeroShot`: takes texts, their field in errors, and whether to truncate long texts.
Score = Callable[[Sequence[str], str, bool], Awaitable[list[convert.Result]]]

# Characters of a text for each word that may be removed: longer texts are refused before their words are counted.
_WORD_LENGTH = 100

# Scripts without spaces between words: each character counts as a word.
_UNSPACED = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_JOINERS = "\u200c\u200d"
_APOSTROPHES = "'\u2019-"
# Matches the string that `_kind` makes, one letter for each character: letters and digits (w), characters of scripts
# without spaces (c), marks (m), symbols and emoji (s), joiners (j), apostrophes and hyphens (a).
_WORD = re.compile(r"cm*|w[wmj]*(?:aw[wmj]*)*|s[smj]*")


@dataclass(frozen=True)
class Word:
    """A word: its offsets in the caller's text, and the range to remove from the model's text."""

    start: int
    end: int
    removed: tuple[int, int]


@dataclass(frozen=True)
class Explanation:
    """The words to remove from the texts of one call."""

    texts: Sequence[str]  # the caller's
    masked: Sequence[Masked]
    words: Sequence[Sequence[Word]]
    unit: spans.Unit

    @classmethod
    async def of(
        cls, request: pb.ClassifyRequest, seen: Redacted[pb.ClassifyRequest], tokenizer: Tokenizer, config: ModelConfig
    ) -> "Explanation | None":
        """Returns the words of a call that asks for an explanation. Raises InvalidInput for more than are allowed."""
        if not request.HasField("explain"):
            return None
        if request.truncation == common_pb2.TRUNCATION_WINDOWS:
            raise InvalidInput("explain", "is not for TRUNCATION_WINDOWS; use TRUNCATION_REJECT or TRUNCATION_END")
        most = config.max_explained_words
        if request.explain.HasField("max_words"):
            if not 1 <= request.explain.max_words <= most:
                raise InvalidInput("explain.max_words", f"is {request.explain.max_words}; allowed: 1 to {most}")
            most = request.explain.max_words
        for index, one in enumerate(request.inputs):
            if one.HasField("text_pair"):
                raise InvalidInput(f"inputs[{index}].text_pair", "is not for explanations")
            if len(one.text) > most * _WORD_LENGTH:
                what = f"has {len(one.text)} characters; explanations of {most} words take {most * _WORD_LENGTH}"
                raise InvalidInput(f"inputs[{index}].text", what)
        texts, limit = [one.text for one in request.inputs], max(config.max_inputs, most)
        if (size := sum(map(len, texts))) > limit * _WORD_LENGTH:
            what = f"have {size} characters; explanations take {limit * _WORD_LENGTH} in one call"
            raise InvalidInput("inputs", what)
        masked = [seen.original(f"inputs[{index}].text", text) for index, text in enumerate(texts)]
        found = await tokenizer.apart(lambda: list(map(words, masked)))
        for index, one_text in enumerate(found):
            if len(one_text) > most:
                what = f"has {len(one_text)} words; explanations take {most}"
                raise InvalidInput(f"inputs[{index}].text", what)
        if (total := sum(map(len, found))) > limit:
            raise InvalidInput("inputs", f"have {total} words; explanations take {limit} in one call")
        return cls(texts, masked, found, convert.UNITS[request.offset_unit])

    async def add_weights(
        self,
        answers: Sequence[pb.Classification],
        scores: NDArray[np.float32],
        shown: convert.Shown,
        score: Score,
    ) -> None:
        """Scores each text without each of its words, all in one batch, and adds the words' weights."""
        variants = [
            without(masked.text, word) for masked, found in zip(self.masked, self.words, strict=True) for word in found
        ]
        if not variants:
            return
        scored = iter(convert.all_scores(await score(variants, "explain", True), shown))
        for answer, whole, text, found in zip(answers, scores, self.texts, self.words, strict=True):
            best, at = int(whole.argmax()), spans.positions(text, self.unit)
            for word, variant in zip(found, islice(scored, len(found)), strict=True):
                answer.weights.add(
                    start=at[word.start],
                    end=at[word.end],
                    text=text[word.start : word.end],
                    weight=float(whole[best] - variant[best]),
                )


def words(masked: Masked) -> list[Word]:
    """Returns the words of a text, in order. A placeholder of masked data is one word."""
    text = masked.text
    found: list[Word] = []
    for match in _WORD.finditer("".join(map(_kind, text))):
        start, end = match.span()
        original = masked.original(start, end)
        if found and original[0] < found[-1].end:
            continue  # part of the same placeholder
        # A placeholder's brackets are not letters, but belong to it.
        while start > 0 and masked.original(start - 1, start) == original:
            start -= 1
        while end < len(text) and masked.original(end, end + 1) == original:
            end += 1
        found.append(Word(*original, (start, end)))
    return found


def without(text: str, word: Word) -> str:
    """Returns the model's text without a word."""
    before, after = text[: word.removed[0]], text[word.removed[1] :]
    # Of the spaces on both sides, keep only one.
    if after[:1].isspace() and (not before or before[-1].isspace()):
        after = after[1:]
    return before + after


def _kind(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] in "LN":
        code = ord(character)
        return "c" if any(low <= code <= high for low, high in _UNSPACED) else "w"
    if character in _APOSTROPHES:
        return "a"
    if character in _JOINERS:
        return "j"
    return {"M": "m", "S": "s"}.get(category[0], " ")
