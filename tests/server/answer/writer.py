"""Writes the same documents again and again, and prints what is written: a process to be killed, or to write beside."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tuneserve.server.answer import store
from tuneserve.server.answer.rows import Row

DOCUMENTS = ("a", "b", "c")


def rows(writer: str, number: int) -> list[Row]:
    """What a writer writes in its round of that number: each time another number of passages."""
    count, digest = 1 + number * 7 % 5, f"{writer} {number}"
    return [
        Row(one, place, digest, "", f"{digest} film", 0, 0, 0, [f"of={count}"], [""], None, np.eye(2, dtype="f4")[0])
        for one in DOCUMENTS
        for place in range(count)
    ]


async def write(directory: Path, writer: str, rounds: Sequence[int]) -> None:
    kept = store.Store(directory)
    documents = await kept.documents("anonymous")
    for number in rounds:
        await documents.replace("m@1", DOCUMENTS, rows(writer, number))
        print(number, flush=True)
    await kept.close()


if __name__ == "__main__":
    _, folder, name, first, last = sys.argv
    store._TIDY_SECONDS = 0.02
    asyncio.run(write(Path(folder), name, range(int(first), int(last))))
