"""Text to token ids and back to places in the text, with the checkpoint's own tokenizer.

Works on whole batches in a thread of its own: the Rust tokenizer lets go of the GIL, so the event loop goes on.
Where the model redacts, texts are masked here, before anything else. It knows nothing of the engine, and limits
lengths only by what it is told.
"""

import asyncio
import inspect
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tuneserve.errors import CheckpointError
from tuneserve.server.redaction import Masked, Redactor
from tuneserve.server.seam import Encoded

_IMPORTING = threading.Lock()
# Characters that are tokenized in less time than the way to another thread and back takes.
_SHORT = 512


class TemplateRefused(Exception):
    """The chat template would not render the conversation. The message holds nothing of the caller's."""


@dataclass(frozen=True)
class Tokens:
    """One tokenized text or pair. Offsets count code points of the caller's own string."""

    encoded: Encoded
    offsets: Sequence[tuple[int, int]]  # per token; (0, 0) for special tokens
    words: Sequence[int | None]  # per token: index of its word; None for special tokens
    length: int  # tokens, special ones included
    truncated: bool


class Tokenizer:
    """One checkpoint's tokenizer."""

    def __init__(self, directory: Path, max_length: int, redactor: Redactor | None = None) -> None:
        """Raises CheckpointError when the directory has no fast tokenizer."""
        # Seconds of import, and not safe in two threads at once.
        with _IMPORTING:
            from transformers import AutoTokenizer

        self._redactor = redactor
        self._hf: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        if not getattr(self._hf, "is_fast", False):
            raise CheckpointError(f"{directory}: no tokenizer.json", "only fast tokenizers are served")
        # Two copies, because truncation is a state of the Rust object, and calls run side by side. tokenizer.json
        # may carry truncation and padding of its own: both are switched off.
        self._whole = self._hf.backend_tokenizer
        self._whole.no_truncation()
        self._whole.no_padding()
        self._cut = type(self._whole).from_str(self._whole.to_str())
        self._cut.enable_truncation(max_length, strategy="longest_first")
        self._knows_pairs = "token_type_ids" in self._hf.model_input_names
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenize")

    @property
    def has_chat_template(self) -> bool:
        """Whether `render` works."""
        return bool(self._hf.chat_template)

    @property
    def end_token(self) -> int | None:
        """The token that ends a text, for models that write."""
        id_: int | None = self._hf.eos_token_id
        return id_

    async def encode(
        self, texts: Sequence[str | tuple[str, str]], *, special_tokens: bool = True, truncate: bool = False
    ) -> list[Tokens]:
        """Tokenizes texts and text pairs, in their order."""
        if self._redactor is None and sum(map(_length, texts)) <= _SHORT:
            return self._encode(texts, special_tokens, truncate)
        run = asyncio.get_running_loop().run_in_executor
        return await run(self._thread, self._encode, texts, special_tokens, truncate)

    @property
    def reserved_arguments(self) -> set[str]:
        """Names that are not for `arguments` of `render`: what the template gets from elsewhere, and its renderer's."""
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
        """Returns the text that the checkpoint's chat template makes of a conversation. Raises TemplateRefused."""
        given = {**arguments, "tools": tools or None, "documents": documents or None}
        run = asyncio.get_running_loop().run_in_executor
        return await run(self._thread, self._render, messages, add_generation_prompt, given)

    async def masked(self, texts: Sequence[str]) -> list[Masked]:
        """Returns texts as `encode` and `render` would see them, for whoever cuts a text up before it is tokenized: a
        part of a phone number is not found any more.
        """
        if self._redactor is None:
            return [Masked(text) for text in texts]
        run = asyncio.get_running_loop().run_in_executor
        return await run(self._thread, list, map(self._redactor.mask, texts))

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _encode(self, texts: Sequence[str | tuple[str, str]], special_tokens: bool, truncate: bool) -> list[Tokens]:
        backend = self._cut if truncate else self._whole
        masks = [self._mask(text) for text in texts] if self._redactor else []
        seen = [_text(parts) for parts in masks] if masks else list(texts)
        try:
            encodings = backend.encode_batch(seen, add_special_tokens=special_tokens)
        except Exception:
            raise
        except BaseException as error:
            # A panic of the Rust code is no Exception to Python: it would end more than this call.
            raise RuntimeError("the tokenizer failed") from error
        return [
            Tokens(
                encoded=Encoded(encoding.ids, self._pair_start(encoding, text)),
                offsets=_original(encoding, masks[index]) if masks else encoding.offsets,
                words=encoding.word_ids,
                length=len(encoding.ids),
                truncated=bool(encoding.overflowing),
            )
            for index, (encoding, text) in enumerate(zip(encodings, texts, strict=True))
        ]

    def _mask(self, text: str | tuple[str, str]) -> list[Masked]:
        assert self._redactor is not None
        return [self._redactor.mask(part) for part in ([text] if isinstance(text, str) else text)]

    def _pair_start(self, encoding: Any, text: str | tuple[str, str]) -> int | None:
        if not self._knows_pairs or isinstance(text, str):
            return None
        type_ids: list[int] = encoding.type_ids
        return type_ids.index(1) if 1 in type_ids else None

    def _render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, given: Mapping[str, Any]
    ) -> str:
        try:
            text = self._hf.apply_chat_template(
                self._masked(messages),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self._masked(given),
            )
        except Exception as error:
            # Whatever it is, it comes of what the caller sent: others are rendered by the same template.
            raise TemplateRefused(self._reason(error)) from None
        return str(text)

    def _masked(self, value: Any) -> Any:
        """Returns what a template takes without personal data, in whatever it is nested."""
        if isinstance(value, Mapping):
            return {key: self._masked(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._masked(inner) for inner in value]
        return self._redactor.mask(value).text if self._redactor and isinstance(value, str) else value

    def _reason(self, error: Exception) -> str:
        """Returns the template's own reason, when it stands in the template: others may repeat the prompt."""
        from jinja2 import TemplateError

        templates = self._hf.chat_template
        source = templates if isinstance(templates, str) else "\n".join(templates.values())
        reason = str(error)
        if isinstance(error, TemplateError) and reason and reason in source:
            return f"the chat template refused it: {reason}"
        return "the chat template can't render it: see which roles, tools, documents and arguments it takes"


def _length(text: str | tuple[str, str]) -> int:
    return len(text) if isinstance(text, str) else len(text[0]) + len(text[1])


def _text(parts: Sequence[Masked]) -> str | tuple[str, str]:
    return parts[0].text if len(parts) == 1 else (parts[0].text, parts[1].text)


def _original(encoding: Any, parts: Sequence[Masked]) -> list[tuple[int, int]]:
    """Offsets in the caller's own text, by which text of the pair a token is of; special tokens are of none."""
    return [
        (0, 0) if part is None else parts[part].original(*offset)
        for offset, part in zip(encoding.offsets, encoding.sequence_ids, strict=True)
    ]
