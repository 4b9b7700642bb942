"""Tokenizes and checks texts for pooling models: classifiers and embeddings."""

from collections.abc import Sequence

from tuneserve.server.api.checks import check_tokens
from tuneserve.server.call.context import current
from tuneserve.server.models.place import Place
from tuneserve.server.text.tokenizer import Tokens


def note(texts: Sequence[str | tuple[str, str]]) -> None:
    """Keeps a call's texts, as the model sees them, for its log line, if the server's settings say so."""
    if current().content is not None:
        current().note("prompt", *(part for one in texts for part in ([one] if isinstance(one, str) else one)))


async def encoded(place: Place, texts: Sequence[str | tuple[str, str]], field: str, *, truncate: bool) -> list[Tokens]:
    """Returns tokens that the model can read. Raises InvalidInput naming the first text that it can't; `field` has a {}
    for the index.
    """
    engine = place.model.engine
    tokens = await place.encode(texts, truncate=truncate, most=engine.max_length)
    check_tokens(field, tokens, engine.max_length, engine.vocab_size)
    return tokens
