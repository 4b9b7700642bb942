"""Converts text to token ids, and tokens back to offsets in the text, with the checkpoint's own tokenizer.

Works in threads of its own, a piece of a batch at a time. The Rust tokenizer releases the GIL, so the event loop keeps
running; other calls get their turn between two pieces, and work that nobody waits for any more ends there. A text that
is far too long is not tokenized to its end. Knows nothing of the engine; texts are already redacted.
"""

import inspect
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from tuneserve.errors import CheckpointError
from tuneserve.server.concurrency import pieces
from tuneserve.server.engine.interface import Encoded
from tuneserve.server.turns import Threads

_IMPORTING = threading.Lock()
# Characters that are tokenized in less time than a switch to another thread and back takes.
_SHORT = 512
# Characters that a thread tokenizes at a time: some milliseconds.
_PIECE = 1 << 14
_THREADS = 2
# Longer texts, in characters, have threads of their own: each is tokenized as a whole, for up to half a second.
_LONG = 1 << 16
# Characters for each allowed token: a longer text is tokenized in pieces, and only until it has too many tokens.
_USUAL = 4
# How many more tokens pieces may have than their text as a whole: for each piece, and in all.
_SEAM, _MARGIN = 8, 64
# A lower bound for the longest token, in characters: a token of white space, or of text that the vocabulary lacks, may
# be longer than all tokens of a vocabulary of short ones.
_LEAST_LONGEST = 32
# Tokens whose offsets take milliseconds.
_MANY = 1 << 15
# Bytes that a token adds to the size of a request. With its offset and word it takes six times as much memory; so do a
# request's other bytes.
_TOKEN_BYTES = 48

Text: TypeAlias = str | tuple[str, str]
T = TypeVar("T")


class TemplateRefused(Exception):
    """The chat template can't render the conversation. The message contains nothing from the caller."""


class DocumentsIgnored(Exception):
    """The chat template renders the conversation as it would without its documents."""


@dataclass(frozen=True)
class Tokens:
    """One tokenized text or pair. Offsets count code points of the text."""

    encoded: Encoded
    encoding: Any  # the tokenizer's own; None if no ids are kept
    length: int  # tokens, including special ones
    truncated: bool  # whether tokens were dropped, or not even counted

    @cached_property
    def offsets(self) -> Sequence[tuple[int, int]]:
        """Offsets of each token; (0, 0) for special tokens. Computed lazily: classifiers of whole texts never need
        them.
        """
        if not self.encoding:
            return ()
        if len(self.encoding) <= _MANY or self.encoding.n_sequences > 1:
            offsets: Sequence[tuple[int, int]] = self.encoding.offsets
            return offsets
        # One by one: half a million at once keep the interpreter lock for too long.
        return [self.encoding.token_to_chars(index) or (0, 0) for index in range(len(self.encoding))]

    @cached_property
    def words(self) -> Sequence[int | None]:
        """The word index of each token; None for special tokens."""
        return self.encoding.word_ids if self.encoding else ()


@dataclass(frozen=True)
class _Call:
    """How the texts of a call are tokenized, and a cache for texts that occur in it more than once."""

    special_tokens: bool
    truncate: bool
    most: int
    enough: dict[str, str] = field(default_factory=dict)  # by long text: the part that is tokenized
    halves: dict[str, Any] = field(default_factory=dict)  # encodings of the texts of pairs


class Tokenizer:
    """One checkpoint's tokenizer."""

    def __init__(self, directory: Path, max_length: int) -> None:
        """Raises CheckpointError if the directory has no fast tokenizer, or its files can't be read."""
        # The import takes seconds, and is not safe in two threads at once.
        with _IMPORTING:
            from transformers import AutoTokenizer

        self._max_length = max_length
        try:
            self._hf: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        except Exception as error:
            # Any exception: libraries raise many kinds for a truncated file.
            raise CheckpointError(f"{directory}: can't read the tokenizer's files: {error}") from error
        if not getattr(self._hf, "is_fast", False):
            raise CheckpointError(f"{directory}: no tokenizer.json", "only fast tokenizers are served")
        # Two objects, because truncation is a state of the Rust object, and calls run concurrently. tokenizer.json may
        # have truncation and padding of its own: both are switched off.
        self._whole = self._hf.backend_tokenizer
        self._whole.no_truncation()
        self._whole.no_padding()
        self._truncating = _shared(self._whole)
        self._truncating.enable_truncation(max_length, strategy="longest_first")
        self._knows_pairs = "token_type_ids" in self._hf.model_input_names
        self._longest = max(_LEAST_LONGEST, *map(len, self._hf.get_vocab()))  # characters of a token
        self._threads = Threads(_THREADS, "tokenize")
        self._long = Threads(1, "tokenize long")

    @property
    def text(self) -> str:
        """The tokenizer as the text of a tokenizer.json."""
        return str(self._whole.to_str())

    @property
    def size(self) -> int:
        """The size of the vocabulary, including added tokens."""
        return len(self._hf)

    @property
    def has_chat_template(self) -> bool:
        """Whether `render` works."""
        return bool(self._hf.chat_template)

    @property
    def end_token(self) -> int | None:
        """The end-of-sequence token, for generation models."""
        id_: int | None = self._hf.eos_token_id
        return id_

    async def encode(
        self,
        texts: Sequence[Text],
        *,
        special_tokens: bool = True,
        truncate: bool = False,
        most: int | None = None,
        hold: Callable[[int], object] = lambda size: None,
    ) -> list[Tokens]:
        """Tokenizes texts and text pairs, in their order. `hold` is called with the bytes of tokens, as they are made.

        Without `truncate`, the first text of more than `most` tokens (default: as many as the model reads) ends the
        list. It has a length above `most` and no ids: its exact length is not worth computing.
        """
        call = _Call(special_tokens, truncate, self._max_length if most is None else most)
        if sum(map(_length, texts)) <= _SHORT:
            encoded = self._encode(texts, call)
            hold(_TOKEN_BYTES * sum(one.length for one in encoded))
            return encoded
        found: list[Tokens] = []
        for piece in pieces(texts, _length, _PIECE):
            enough = [
                await self._enough(text, call)
                if isinstance(text, str)
                else (await self._enough(text[0], call), await self._enough(text[1], call))
                for text in piece
            ]
            truncated = [_length(one) < _length(text) for one, text in zip(enough, piece, strict=True)]
            encoded = await self._lane(sum(map(_length, enough))).run(self._encode, enough, call)
            hold(_TOKEN_BYTES * sum(one.length for one in encoded))
            for tokens, is_truncated in zip(encoded, truncated, strict=True):
                if is_truncated and truncate:
                    tokens = replace(tokens, truncated=True)
                elif is_truncated:
                    tokens = Tokens(Encoded([]), None, call.most + 1, True)
                found.append(tokens)
                if not truncate and tokens.length > call.most:
                    return found
        return found

    async def fragments(self, ids: Sequence[int]) -> int:
        """Returns how many tokens are only a part of a character: one that the vocabulary lacks has several tokens."""
        return await self.apart(self._fragments, ids)

    def _fragments(self, ids: Sequence[int]) -> int:
        counts = Counter(ids)
        texts = self._whole.decode_batch([[id_] for id_ in counts], skip_special_tokens=False)
        return sum(count for count, text in zip(counts.values(), texts, strict=True) if text.endswith("\ufffd"))

    async def beginning(self, text: str, tokens: int) -> tuple[str, int]:
        """Returns the first `tokens` tokens of a text, as text, and their number; the whole text if it has fewer."""
        enough = await self._enough(text, _Call(False, True, tokens))
        [encoding] = await self._lane(len(enough)).run(self._batch, self._whole, [enough], False)
        if len(encoding) <= tokens:
            return text, len(encoding)
        return enough[: encoding.token_to_chars(tokens - 1)[1]], tokens

    async def apart(self, work: Callable[..., T], *arguments: Any) -> T:
        """Runs work of some milliseconds in one of the tokenizer's threads."""
        return await self._threads.run(work, *arguments)

    def _lane(self, characters: int) -> Threads:
        """Returns the threads for texts of so many characters."""
        return self._threads if characters < _LONG else self._long

    async def in_steps(self, work: Iterator[object]) -> None:
        """Runs work of any length, whose steps take some milliseconds, in the tokenizer's threads."""
        await self._threads.run_steps(work)

    @property
    def reserved_arguments(self) -> set[str]:
        """Names not allowed in `arguments` of `render`: variables that the template gets otherwise, and its renderer's
        own.
        """
        parameters = inspect.signature(self._hf.apply_chat_template).parameters
        return {"self", "messages", "conversations", *parameters, *self._hf.special_tokens_map}

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        documents: Sequence[Mapping[str, Any]] = (),
        arguments: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """Returns the text that the checkpoint's chat template makes of a conversation.

        Raises TemplateRefused and DocumentsIgnored.
        """
        given = {**arguments, "tools": tools or None, "documents": documents or None}
        text = await self.apart(self._render, messages, add_generation_prompt, given)
        if documents:
            # Rendered, because a template that names documents may still write none: by its arguments, say.
            without, other = given | {"documents": None}, ""
            with suppress(TemplateRefused):
                other = await self.apart(self._render, messages, add_generation_prompt, without)
            if text == other:
                raise DocumentsIgnored
        return text

    def close(self) -> None:
        """Ends the threads."""
        self._threads.close()
        self._long.close()

    async def _enough(self, text: str, call: _Call) -> str:
        """Returns enough of a text to show that it has more than `most` tokens; all of it, if it does not."""
        if len(text) <= _USUAL * call.most:
            return text
        if text not in call.enough:
            call.enough[text] = await self._looked_at(text[: self._longest * call.most], call.most)
        return call.enough[text]

    async def _looked_at(self, text: str, most: int) -> str:
        tokens = -_MARGIN
        for start in range(0, len(text), _PIECE):
            [piece] = await self.apart(self._batch, self._whole, [text[start : start + _PIECE]], False)
            tokens += max(0, len(piece) - _SEAM)
            if tokens > most:
                _, end = piece.token_to_chars(len(piece) - (tokens - most)) or (0, _PIECE)
                return text[: start + end]
        return text

    def _encode(self, texts: Sequence[Text], call: _Call) -> list[Tokens]:
        backend = self._truncating if call.truncate else self._whole
        parts = dict.fromkeys(part for text in texts if not isinstance(text, str) for part in text)
        new = [part for part in parts if part not in call.halves]
        if new:
            call.halves.update(zip(new, self._batch(self._whole, new, False), strict=True))
        singles = [text for text in texts if isinstance(text, str)]
        encoded = iter(self._batch(backend, singles, call.special_tokens))
        encodings = [
            next(encoded)
            if isinstance(text, str)
            # A query that is in a thousand pairs is tokenized once.
            else backend.post_process(*(call.halves[part] for part in text), call.special_tokens)
            for text in texts
        ]
        return [
            Tokens(Encoded([]), None, len(encoding), False)
            if len(encoding) > call.most and not call.truncate
            else Tokens(
                encoded=Encoded(encoding.ids, self._pair_start(encoding, text)),
                encoding=encoding,
                length=len(encoding),
                truncated=bool(encoding.overflowing),
            )
            for encoding, text in zip(encodings, texts, strict=True)
        ]

    def _batch(self, backend: Any, texts: list[str], special_tokens: bool) -> list[Any]:
        try:
            encodings: list[Any] = backend.encode_batch(texts, add_special_tokens=special_tokens)
        except Exception:
            raise
        except BaseException as error:
            # A panic in the Rust code is not an Exception in Python: it would end more than this call.
            raise RuntimeError("the tokenizer failed") from error
        return encodings

    def _pair_start(self, encoding: Any, text: Text) -> int | None:
        if not self._knows_pairs or isinstance(text, str):
            return None
        type_ids: list[int] = encoding.type_ids
        return type_ids.index(1) if 1 in type_ids else None

    def _render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, given: Mapping[str, Any]
    ) -> str:
        try:
            text = self._hf.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **given
            )
        except Exception as error:
            # Any error here is caused by the caller's input: the same template renders other conversations.
            raise TemplateRefused(self._reason(error)) from None
        return str(text)

    def _reason(self, error: Exception) -> str:
        """Returns the error's text if it is in the template's source: any other text may repeat the prompt."""
        from jinja2 import TemplateError

        templates = self._hf.chat_template
        source = templates if isinstance(templates, str) else "\n".join(templates.values())
        reason = str(error)
        if isinstance(error, TemplateError) and reason and reason in source:
            return f"the chat template refused it: {reason}"
        return "the chat template can't render it: see which roles, tools, documents and arguments it takes"


def _shared(whole: Any) -> Any:
    """Returns a copy of a Rust tokenizer with the same vocabulary in memory: 250,000 tokens take 280 MB."""
    copy = type(whole)(whole.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        setattr(copy, part, getattr(whole, part))
    # In the order of their ids, which they get again.
    for _, token in sorted(whole.get_added_tokens_decoder().items()):
        (copy.add_special_tokens if token.special else copy.add_tokens)([token])
    return copy


def _length(text: Text) -> int:
    return len(text) if isinstance(text, str) else len(text[0]) + len(text[1])
