"""Runs texts through pooling models: tokenizes, checks and pools them. For classifiers and embeddings."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tuneserve.server.api.checks import check_tokens
from tuneserve.server.call.context import current
from tuneserve.server.engine.interface import Encoded, PoolTask
from tuneserve.server.models.model import Model
from tuneserve.server.models.place import Place
from tuneserve.server.text.tokenizer import Tokens
from tuneserve.v1 import common_pb2


def note(texts: Sequence[str | tuple[str, str]]) -> None:
    """Keeps a call's texts, as the model sees them, for its log line, if the server's settings say so."""
    if current().content is not None:
        current().note("prompt", *(part for one in texts for part in ([one] if isinstance(one, str) else one)))


async def encoded(model: Model, texts: Sequence[str | tuple[str, str]], field: str, *, truncate: bool) -> list[Tokens]:
    """Returns tokens that the model can read. Raises InvalidInput naming the first text that it can't; `field` has a {}
    for the index.
    """
    limit = model.engine.max_length
    tokens = await model.encode(texts, truncate=truncate, most=limit)
    check_tokens(field, tokens, limit, model.engine.vocab_size)
    return tokens


async def pooled(
    place: Place, inputs: Sequence[Encoded], task: PoolTask, usage: common_pb2.Usage
) -> list[NDArray[np.float32]]:
    """Returns the model's outputs for the inputs, and adds the inputs to the call's usage."""
    usage.prompt_tokens += sum(len(one.token_ids) for one in inputs)
    return await place.pool(inputs, task)
