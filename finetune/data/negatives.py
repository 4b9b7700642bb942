"""Hard negatives: wrong passages that look right, which teach more than those that happen to be in a batch."""

from collections.abc import Iterator, Sequence

from tuneserve.checkpoint.rows import Row
from tuneserve.errors import UserError
from tuneserve.evaluation.retrieval import Library, similar
from tuneserve.finetune.config import FinetuneConfig
from tuneserve.finetune.data.disk_rows import DiskRows


def check(rows: Sequence[Row], config: FinetuneConfig) -> None:
    """Raises UserError for ranking if no row has a wrong passage, and none are mined."""
    if config.task == "ranking" and not config.mined_negatives and not any("negatives" in row for row in rows):
        raise UserError(
            "no row has negatives, so there is nothing to rank the right passages above",
            "give negatives in the rows, or mined_negatives: 4",
        )


def mined(rows: Sequence[Row], config: FinetuneConfig) -> Sequence[Row]:
    """Returns the rows, each with `mined_negatives` more negatives: the other rows' passages that are most similar to
    its query and don't answer it.
    """
    return DiskRows(_mined(rows, config.mined_negatives)) if config.mined_negatives and len(rows) else rows


def _mined(rows: Sequence[Row], count: int) -> Iterator[Row]:
    library = Library.of(rows)
    for row, more in zip(rows, similar(library, count, library.own), strict=True):
        negatives = [*row.get("negatives", ()), *(library.passages[place] for place in more)]
        yield row | ({"negatives": negatives} if negatives else {})
