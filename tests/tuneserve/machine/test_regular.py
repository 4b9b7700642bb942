import os

import pytest

from tuneserve.machine import regular


def test_a_file_of_the_size_that_is_allowed(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert regular.read(tmp_path / "file", 5) == regular.read(tmp_path / "link", 9) == b"12345"
    with pytest.raises(OSError, match="larger than the 4 bytes"):
        regular.read(tmp_path / "file", 4)


def test_what_may_never_end_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    open_before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path / "pipe", tmp_path, tmp_path.joinpath("/dev/zero")):
        with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
            regular.read(path, 9)
    with pytest.raises(FileNotFoundError):
        regular.read(tmp_path / "none", 9)
    assert len(os.listdir("/proc/self/fd")) == open_before
