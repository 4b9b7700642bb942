"""Data augmentation: copies of training rows with words dropped, swapped, or replaced by synonyms (Wei and Zou 2019).

The copies are made once, before training, from the seed: the report and a resumed run have the same rows.
"""

import random
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from tuneserve.checkpoint.rows import Row
from tuneserve.errors import UserError
from tuneserve.finetune.config import FinetuneConfig
from tuneserve.finetune.data.disk_rows import DiskRows

# Words that a dictionary may have: no names, which begin with a capital, and no parts of don't or co-op.
_WORD = re.compile(r"(?<![\w'’-])[a-z]+(?![\w'’-])")


def check(config: FinetuneConfig) -> None:
    """Raises UserError if synonyms are wanted and WordNet is not installed."""
    if config.augment_copies and config.synonyms:
        _wordnet()


def augmented(rows: Sequence[Row], config: FinetuneConfig) -> Sequence[Row]:
    """Returns the rows and, after them, `augment_copies` changed copies of each, unchanged ones left out."""
    if not config.augment_copies:
        return rows
    chance = random.Random(config.seed)
    copies = ((_copy(row, config, chance), row) for _ in range(config.augment_copies) for row in rows)
    return DiskRows(chain(rows, (copy for copy, row in copies if copy != row)))


def _copy(row: Row, config: FinetuneConfig, chance: random.Random) -> Row:
    if "entities" in row:
        return _around_entities(row, config, chance)
    changed = {key: _changed(row[key], config, chance) for key in ("text", "text_pair") if key in row}
    return row | changed


def _around_entities(row: Row, config: FinetuneConfig, chance: random.Random) -> Row:
    """Changes only words outside of entities: the entities and their order stay as they are."""
    text, spans = "", [dict(one) for one in row["entities"]]
    for word in re.finditer(r"\s*\S+", row["text"]):
        inside = [place for place, one in enumerate(row["entities"]) if _overlap(one, word)]
        for place in inside:
            # An entity of several words is moved once for each, to the same place: nothing is dropped between them.
            spans[place] |= {key: row["entities"][place][key] - word.start() + len(text) for key in ("start", "end")}
        if inside:
            text += word[0]
        elif chance.random() >= config.word_dropout:
            text += _said_otherwise(word[0], config, chance)
    shift = len(text) - len(text.lstrip())
    for one in spans:
        one |= {"start": one["start"] - shift, "end": one["end"] - shift}
    return {"text": text[shift:], "entities": spans} if text else row


def _overlap(entity: Row, word: re.Match[str]) -> bool:
    return bool(entity["start"] < word.end() and word.start() < entity["end"])


def _changed(text: str, config: FinetuneConfig, chance: random.Random) -> str:
    words = text.split()
    kept = [word for word in words if chance.random() >= config.word_dropout] or words[:1]
    for _ in range(round(config.word_swap * len(kept))):
        first, second = chance.randrange(len(kept)), chance.randrange(len(kept))
        kept[first], kept[second] = kept[second], kept[first]
    return _said_otherwise(" ".join(kept), config, chance)


def _said_otherwise(text: str, config: FinetuneConfig, chance: random.Random) -> str:
    """Returns the text with the share `synonyms` of its words replaced by synonyms, where WordNet has one."""

    def other(match: re.Match[str]) -> str:
        known = _synonyms(match[0]) if chance.random() < config.synonyms else ()
        return chance.choice(known) if known else match[0]

    return _WORD.sub(other, text) if config.synonyms else text


@lru_cache(100_000)
def _synonyms(word: str) -> tuple[str, ...]:
    """Returns the synonyms of a word in its most frequent meaning."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    meanings = [] if word in ENGLISH_STOP_WORDS else _wordnet().lemmas(word)
    if not meanings:
        return ()
    commonest = max(meanings, key=lambda lemma: lemma.count())
    # Only synonyms of one word, so that the number of words stays the same.
    return tuple(name for name in commonest.synset().lemma_names() if name.isalpha() and name.lower() != word)


def _wordnet() -> Any:
    """Returns NLTK's WordNet (Princeton, English). Raises UserError when its files are not on this machine."""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        raise UserError(
            "synonyms is given, and WordNet is not on this machine",
            "python -m nltk.downloader wordnet, or put its folder at corpora/wordnet below NLTK_DATA",
        ) from None
    return wordnet
