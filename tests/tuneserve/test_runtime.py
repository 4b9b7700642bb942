"""What is told of the machine."""

import pytest

from tuneserve import runtime


@pytest.mark.parametrize(
    ("content", "cores"),
    [("max 100000\n", 0), ("400000 100000\n", 4), ("250000 100000\n", 2), ("50000 100000\n", 1)],
)
def test_cpu_limit(tmp_path, content, cores):
    file = tmp_path / "cpu.max"
    file.write_text(content)
    assert runtime.cpu_limit(file) == cores


def test_no_cpu_limit_is_none(tmp_path):
    assert runtime.cpu_limit(tmp_path / "missing") == 0
