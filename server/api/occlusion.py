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

from tuneserve.server.api import classification_answers as answers
from tuneserve.server.api import classification_messages as convert
from tuneserve.server.call.errors import Violations
from tuneserve.server.config import ModelConfig
from tuneserve.server.models.model import Model
from tuneserve.server.text import spans
from tuneserve.server.text.masking import Redacted
from tuneserve.server.text.redaction import Masked
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1 import common_pb2

# `score` of `Classifier` and `ZeroShot`: takes texts, their field in errors, and whether to truncate long texts.
Score = Callable[[Sequence[str], str, bool], Awaitable[list[answers.Result]]]

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
    async def of(cls, request: pb.ClassifyRequest, seen: Redacted[pb.ClassifyRequest], model: Model) -> "Explanation":
        """Returns the words of a checked call that asks for an explanation. Raises InvalidInput for more than are
        allowed.
        """
        most = _most_words(request, model.config)
        texts, limit = [one.text for one in request.inputs], max(model.config.max_inputs, most)
        masked = [seen.original(f"inputs[{index}].text", text) for index, text in enumerate(texts)]
        found = await model.tokenizer.apart(lambda: list(map(words, masked)))
        with Violations() as wrong:
            for index, one_text in enumerate(found):
                if len(one_text) > most:
                    wrong.add(f"inputs[{index}].text", f"has {len(one_text)} words; explanations take {most}")
            if (total := sum(map(len, found))) > limit:
                wrong.add("inputs", f"have {total} words; explanations take {limit} in one call")
        return cls(texts, masked, found, convert.UNITS[request.offset_unit])

    async def score(self, score: Score) -> list[answers.Result]:
        """Scores each text without each of its words, all in one batch."""
        variants = [
            without(masked.text, word) for masked, found in zip(self.masked, self.words, strict=True) for word in found
        ]
        return await score(variants, "explain", True) if variants else []

    def add_weights(
        self,
        classified: Sequence[pb.Classification],
        scores: NDArray[np.float32],
        results: Sequence[answers.Result],
        shown: convert.Shown,
    ) -> None:
        """Adds the weights of all words, whose `results` are those of `score`."""
        if not results:
            return
        scored = iter(answers.all_scores(results, shown))
        for answer, whole, text, found in zip(classified, scores, self.texts, self.words, strict=True):
            best, at = int(whole.argmax()), spans.positions(text, self.unit)
            for word, variant in zip(found, islice(scored, len(found)), strict=True):
                answer.weights.add(
                    start=at[word.start],
                    end=at[word.end],
                    text=text[word.start : word.end],
                    weight=float(whole[best] - variant[best]),
                )


def check_explain(wrong: Violations, request: pb.ClassifyRequest, config: ModelConfig) -> None:
    """Checks a call that asks for an explanation, before its words are counted."""
    if request.truncation == common_pb2.TRUNCATION_WINDOWS:
        wrong.add("explain", "is not for TRUNCATION_WINDOWS; use TRUNCATION_REJECT or TRUNCATION_END")
    most = _most_words(request, config)
    if not 1 <= most <= config.max_explained_words:
        wrong.add("explain.max_words", f"is {most}; allowed: 1 to {config.max_explained_words}")
        most = config.max_explained_words
    convert.check_no_pairs(wrong, request, config.max_inputs, "is not for explanations")
    sizes = [len(one.text) for one in request.inputs[: config.max_inputs]]
    for index, size in enumerate(sizes):
        if size > most * _WORD_LENGTH:
            what = f"has {size} characters; explanations of {most} words take {most * _WORD_LENGTH}"
            wrong.add(f"inputs[{index}].text", what)
    limit = max(config.max_inputs, most)
    if sum(sizes) > limit * _WORD_LENGTH:
        wrong.add("inputs", f"have {sum(sizes)} characters; explanations take {limit * _WORD_LENGTH} in one call")


def _most_words(request: pb.ClassifyRequest, config: ModelConfig) -> int:
    return request.explain.max_words if request.explain.HasField("max_words") else config.max_explained_words


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
