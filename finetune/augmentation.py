"""More rows out of few: copies of training rows in which words are missing or have changed places (Wei and Zou 2019).

Made once, before training, from the seed: the same rows each time, in the report and after a kill.
"""

import random
from collections.abc import Sequence
from itertools import chain

from tuneserve.finetune.config import FinetuneConfig
from tuneserve.finetune.spool import Spool
from tuneserve.rows import Row


def augmented(rows: Sequence[Row], config: FinetuneConfig) -> Sequence[Row]:
    """Returns the rows and, after them, `augment_copies` changed copies of each, without those that came out equal."""
    if not config.augment_copies:
        return rows
    chance = random.Random(config.seed)
    copies = ((_copy(row, config, chance), row) for _ in range(config.augment_copies) for row in rows)
    return Spool(chain(rows, (copy for copy, row in copies if copy != row)))


def _copy(row: Row, config: FinetuneConfig, chance: random.Random) -> Row:
    if "tokens" in row:
        # Only what is no part of an entity: the others keep their tags and their order.
        kept = [
            pair
            for pair in zip(row["tokens"], row["tags"], strict=True)
            if pair[1] != "O" or chance.random() >= config.word_dropout
        ]
        tokens, tags = zip(*kept, strict=True) if kept else (row["tokens"], row["tags"])
        return {"tokens": list(tokens), "tags": list(tags)}
    changed = {key: _changed(row[key], config, chance) for key in ("text", "text_pair") if key in row}
    return row | changed


def _changed(text: str, config: FinetuneConfig, chance: random.Random) -> str:
    words = text.split()
    kept = [word for word in words if chance.random() >= config.word_dropout] or words[:1]
    for _ in range(round(config.word_swap * len(kept))):
        first, second = chance.randrange(len(kept)), chance.randrange(len(kept))
        kept[first], kept[second] = kept[second], kept[first]
    return " ".join(kept)
