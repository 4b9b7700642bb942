"""Runs texts through classifiers and embedding models: tokenizes them, whole or in windows, checks and pools them."""

from collections.abc import Sequence

from tuneserve.server.api.checks import check_tokens
from tuneserve.server.api.classification_answers import Result
from tuneserve.server.api.classification_messages import LongTexts
from tuneserve.server.call.context import current
from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.concurrency import pieces
from tuneserve.server.models.place import Place
from tuneserve.server.text import windows
from tuneserve.server.text.tokenizer import Text, Tokens

# Characters of texts that are tokenized together before their windows are counted.
_WINDOWED = 1 << 18


class Classifier:
    """One call to a sequence classifier."""

    def __init__(self, place: Place, long_texts: LongTexts) -> None:
        self._place = place
        self._long_texts = long_texts

    async def score(self, texts: Sequence[Text], field: str, truncate: bool = False) -> list[Result]:
        """Returns the raw outputs for each text. Long texts are handled as the call says; with `truncate` they are
        truncated.
        """
        long_texts = LongTexts(truncate=True) if truncate else self._long_texts
        tokens, split = await windowed(self._place, long_texts, texts, field)
        rows = iter(await self._place.pool([one.encoded for part in split for one in part], "classify"))
        return [
            Result(
                next(rows) if len(part) == 1 else windows.pool([next(rows) for _ in part], long_texts.pooling),
                one.length,
                one.truncated,
                len(part),
            )
            for one, part in zip(tokens, split, strict=True)
        ]


async def windowed(
    place: Place, long_texts: LongTexts, texts: Sequence[Text], field: str
) -> tuple[list[Tokens], list[list[windows.Window]]]:
    """Returns the tokens and the windows of each text: one window for the whole text, unless windows were asked for."""
    engine, most = place.model.engine, place.model.config.max_inputs
    if long_texts.overlap is None:
        whole = await encoded(place, texts, field, truncate=long_texts.truncate)
        return whole, [[windows.Window(one.encoded, 0, one.length)] for one in whole]
    tokens, total, limit = list[Tokens](), 0, engine.max_length
    # In pieces, and of each text only as much as the allowed windows could cover.
    for piece in pieces(texts, len, _WINDOWED):
        some = await place.encode(piece, most=most * (limit - long_texts.overlap) + long_texts.overlap)
        total += sum(windows.count(one, limit, long_texts.overlap) for one in some)
        if total > most:
            raise InvalidInput(field.partition("[")[0], f"make {total} windows or more; allowed: {most} in one call")
        tokens += some
    check_tokens(field, tokens, None, engine.vocab_size)
    return tokens, [windows.split(one, limit, long_texts.overlap) for one in tokens]


async def encoded(place: Place, texts: Sequence[Text], field: str, *, truncate: bool) -> list[Tokens]:
    """Returns tokens that the model can read. Raises InvalidInput naming the first text that it can't; `field` has a {}
    for the index.
    """
    engine = place.model.engine
    tokens = await place.encode(texts, truncate=truncate, most=engine.max_length)
    check_tokens(field, tokens, engine.max_length, engine.vocab_size)
    return tokens


def note(texts: Sequence[Text]) -> None:
    """Keeps a call's texts, as the model sees them, for its log line, if the server's settings say so."""
    if current().content is not None:
        current().note("prompt", *(part for one in texts for part in ([one] if isinstance(one, str) else one)))
