"""A disk that is full, as each library meets it. /dev/full is one that always is."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from tuneserve import checkpoint
from tuneserve.errors import StepFailed, UserError
from tuneserve.machine import disk

WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text(json.dumps("x" * 100_000)),
    "torch": lambda path: torch.save(torch.zeros(100_000), path),
}
# What safetensors says on a full disk. It writes beside the file and renames: /dev/full can't be its file.
SAFETENSORS = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_written_is_whole_or_not_there(tmp_path: Path, writer: str) -> None:
    def write() -> None:
        with checkpoint.writing(tmp_path / "out", overwrite=True) as directory:
            (directory / "file").symlink_to("/dev/full")
            WRITERS[writer](directory / "file")

    (tmp_path / "out").mkdir()
    with pytest.raises(StepFailed, match=r"out: the disk is full: [\d.]+ [MG]B left"):
        write()
    # And what was there before still is.
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_safetensors_has_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="the disk is full"), disk.watched(tmp_path):
        raise SafetensorError(SAFETENSORS)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk.watched(tmp_path):
        (tmp_path / "missing").read_text()


def test_too_little_space_is_told_before() -> None:
    disk.check(Path("/"), 1)
    # A file system without any.
    with pytest.raises(UserError, match=r"/proc/new/out: about 2\.0 GB are needed and 0\.0 MB are free"):
        disk.check(Path("/proc/new/out"), 2 * 10**9)


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    def interrupted() -> Iterator[str]:
        yield "half"
        raise KeyboardInterrupt

    file = tmp_path / "state.json"
    disk.write(file, ["a", "b"])
    with pytest.raises(KeyboardInterrupt):
        disk.write(file, interrupted())
    assert file.read_text() == "ab"


HOLDER = """
import sys
from pathlib import Path
from tuneserve.machine import disk

with disk.locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_one_processs_until_it_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(BlockingIOError), disk.locked(lock, wait=False):
            pass
        holder.kill()
        with disk.locked(lock):
            pass
