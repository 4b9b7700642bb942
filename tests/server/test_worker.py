"""A machine's part of a model: what it refuses. engine/test_parallel.py runs one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneserve.errors import UserError
from tuneserve.server.worker import work


@pytest.mark.parametrize(
    ("engine", "count", "message"),
    [
        ({"nnodes": 2}, 2, "models: several machines share exactly one, found 2"),
        ({"nnodes": 2}, 1, r"--rank 2: models.a.engine.nnodes is 2"),
        ({}, 1, r"--rank 2: models.a.engine.nnodes is 1"),
    ],
)
def test_settings_of_which_this_machine_has_no_part(
    make_bert: Callable[[], Path], tmp_path: Path, engine: dict[str, Any], count: int, message: str
) -> None:
    model = {"path": str(make_bert()), "engine": engine}
    file = tmp_path / "server.yaml"
    file.write_text(yaml.safe_dump({"models": dict.fromkeys("ab"[:count], model), "on_engine_failure": "exit"}))
    with pytest.raises(UserError, match=message):
        work(file, "127.0.0.1", 2)
