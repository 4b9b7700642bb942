"""The committed stubs are what protoc makes of the .proto files, and old clients keep working."""

import subprocess
import sys
from pathlib import Path

PROTOS = Path(__file__).parents[2] / "protos"
SOURCES = sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto"))


def run(*command: str) -> None:
    result = subprocess.run(command, cwd=PROTOS, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_stubs_are_current(tmp_path):
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    run(sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, *SOURCES)
    made = sorted(path for path in tmp_path.rglob("*.py*") if path.is_file())
    assert len(made) == 3 * len(SOURCES)
    for path in made:
        committed = PROTOS / path.relative_to(tmp_path)
        assert committed.read_text() == path.read_text(), f"{committed.name} is stale: run `make protos`"


def buf(*arguments: str) -> None:
    run(str(Path(sys.executable).with_name("buf")), *arguments)


def test_lint():
    buf("lint")


def test_nothing_breaks_old_clients():
    buf("breaking", "--against", "baseline.binpb")
