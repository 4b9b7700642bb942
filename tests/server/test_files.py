"""What changes when a file does."""

import os
from pathlib import Path

from tuneserve.server.files import stamp


def test_a_file_that_is_absent_has_none(tmp_path: Path) -> None:
    assert stamp(tmp_path / "absent") is None
    assert stamp(tmp_path / "absent" / "below") is None
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    assert stamp(tmp_path / "link") is None


def test_a_file_that_is_read_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("a")
    first = stamp(file)
    assert first is not None
    file.read_text()
    assert stamp(file) == first


def test_what_is_written_shows_even_at_the_same_moment_or_size(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("a")
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    seen = [stamp(file)]
    file.write_text("ab")
    os.utime(file, ns=times)
    seen.append(stamp(file))
    os.utime(file, ns=(times[0], times[1] + 1))
    seen.append(stamp(file))
    other = tmp_path / "other"
    other.write_text("cd")
    os.utime(other, ns=(times[0], times[1] + 1))
    other.rename(file)
    seen.append(stamp(file))
    assert len(set(seen)) == 4


def test_a_directory_that_is_swapped_below_a_link_shows(tmp_path: Path) -> None:
    """As Kubernetes does with a mounted file."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("a")
        os.utime(tmp_path / name / "file", ns=(0, 0))
    (tmp_path / "file").symlink_to(tmp_path / "data" / "file")
    (tmp_path / "data").symlink_to("one")
    first = stamp(tmp_path / "file")
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(tmp_path / "data")
    assert first is not None
    assert stamp(tmp_path / "file") not in (None, first)
