"""What is sent to the real server."""

from pathlib import Path

import pytest


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Short ones: the models take few tokens."""
    file = tmp_path / "texts.txt"
    file.write_text("good film\nbad movie\n")
    return file
