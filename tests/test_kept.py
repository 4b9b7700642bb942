"""What is trained for the tests is kept: made once by whoever asks first, and again when what made it changes."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest


def test_made_once_and_again_when_its_sources_change(kept, tmp_path: Path) -> None:
    made: list[Path] = []

    def make(directory: Path) -> None:
        made.append(directory)
        (directory / "weights").write_text(str(len(made)))

    ask = partial(kept, "model", make=make, folder=tmp_path)
    with ThreadPoolExecutor(4) as pool:
        first = {one.result() for one in [pool.submit(ask, [b"settings", b"data"]) for _ in range(4)]}
    assert len(first) == len(made) == 1
    # Sources are told apart, not only all they say together.
    second = ask([b"setting", b"sdata"])
    assert (second / "weights").read_text() == "2"
    assert not first.pop().exists(), "of each name the last is kept"


def test_what_failed_is_made_again(kept, tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "weights").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        kept("model", [], fail, folder=tmp_path)
    found = kept("model", [], lambda directory: (directory / "weights").write_text("whole"), folder=tmp_path)
    assert [path.read_text() for path in found.iterdir()] == ["whole"]
