"""Text to token ids and back to places in the text, with the checkpoint's own tokenizer.

Works on whole batches in a thread of its own: the Rust tokenizer lets go of the GIL, so the event loop goes on.
It knows nothing of the engine, and limits lengths only by what it is told.
"""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneserve.errors import CheckpointError
from tuneserve.server.seam import Encoded

_IMPORTING = threading.Lock()


class TemplateRefused(Exception):
    """The chat template would not render the messages; the message is the template's own."""


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

    def __init__(self, directory: Path, max_length: int) -> None:
        """Raises CheckpointError when the directory has no fast tokenizer."""
        # Seconds of import, and not safe in two threads at once.
        with _IMPORTING:
            from transformers import AutoTokenizer

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

    async def encode(
        self, texts: Sequence[str | tuple[str, str]], *, special_tokens: bool = True, truncate: bool = False
    ) -> list[Tokens]:
        """Tokenizes texts and text pairs, in their order."""
        run = asyncio.get_running_loop().run_in_executor
        return await run(self._thread, self._encode, texts, special_tokens, truncate)

    async def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """Returns the text that the checkpoint's chat template makes of a conversation. Raises TemplateRefused."""
        run = asyncio.get_running_loop().run_in_executor
        return await run(self._thread, self._render, messages, add_generation_prompt)

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _encode(self, texts: Sequence[str | tuple[str, str]], special_tokens: bool, truncate: bool) -> list[Tokens]:
        backend = self._cut if truncate else self._whole
        encodings = backend.encode_batch(list(texts), add_special_tokens=special_tokens)
        return [
            Tokens(
                encoded=Encoded(encoding.ids, self._pair_start(encoding, text)),
                offsets=encoding.offsets,
                words=encoding.word_ids,
                length=len(encoding.ids),
                truncated=bool(encoding.overflowing),
            )
            for encoding, text in zip(encodings, texts, strict=True)
        ]

    def _pair_start(self, encoding: Any, text: str | tuple[str, str]) -> int | None:
        if not self._knows_pairs or isinstance(text, str):
            return None
        type_ids: list[int] = encoding.type_ids
        return type_ids.index(1) if 1 in type_ids else None

    def _render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            text = self._hf.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateError as error:
            raise TemplateRefused(str(error)) from error
        return str(text)
