"""Environments of peers, made by uv without a network."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from tuneserve.benchmarks.serving.peers import environment
from tuneserve.errors import StepFailed


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "FOLDER", tmp_path / "peers")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))


def wheel(folder: Path, version: str) -> str:
    """Writes a package of one module. Returns its requirement."""
    metadata = f"Metadata-Version: 2.1\nName: peer\nVersion: {version}\n"
    with zipfile.ZipFile(folder / f"peer-{version}-py3-none-any.whl", "w") as file:
        file.writestr("peer.py", f"version = '{version}'\n")
        file.writestr(f"peer-{version}.dist-info/METADATA", metadata)
        file.writestr(
            f"peer-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"peer-{version}.dist-info/RECORD", "")
    return f"peer=={version}"


def imported(python: Path) -> str:
    command = [str(python), "-c", "import peer; print(peer.version)"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout.strip()


def test_an_environment_is_kept_until_its_pins_change(tmp_path: Path) -> None:
    python = environment.made("one", [wheel(tmp_path, "1.0")])
    assert imported(python) == "1.0"
    marked = python.parent / "marked"
    marked.touch()
    assert environment.made("one", ["peer==1.0"]) == python
    assert marked.exists(), "made again, with the same pins"
    assert environment.made("one", [wheel(tmp_path, "2.0")]) == python
    assert imported(python) == "2.0"
    assert not marked.exists()


def test_an_environment_that_can_not_be_made_says_why_and_is_not_kept() -> None:
    for _ in range(2):
        with pytest.raises(StepFailed, match=r"^one: uv ended with [12]: .*\bpeer\b"):
            environment.made("one", ["peer==1.0"])
