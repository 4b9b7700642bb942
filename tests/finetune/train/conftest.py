"""A short run that a test chooses the settings of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Path]


@pytest.fixture
def tune(run: Run, tmp_path: Path, encoder: Path, reviews: Path) -> Run:
    """tune(name, **settings): a short run on the reviews, into the directory `name`."""

    def go(name: str, **settings: Any) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        values: dict[str, Any] = {
            "task": "sequence-classification",
            "base_model": str(encoder),
            "train": str(reviews),
            "test_size": 0.2,
            "epochs": 4,
            "batch_size": 8,
            "learning_rate": 5e-3,
        }
        return run(tmp_path / name, **values | settings)

    return go
