"""The client without what the server needs, in interpreters that find nothing else; and as it is installed."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# The packages of the three distributions, and what grpcio needs itself.
ALONE = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {"tuneserve", "grpc", "google", "typing_extensions"} | sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Nothing())
"""
USE = """
import tuneserve, tuneserve.client
with tuneserve.client.Client("127.0.0.1:1", attempts=1) as client:
    try:
        client.classify("m", "a", timeout=5)
    except tuneserve.client.Unavailable:
        print(tuneserve.client.__file__)
"""


def alone(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", ALONE + code]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | environment)


def test_it_calls() -> None:
    result = alone(USE)
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("wheel") / "source"
    packages = ("tuneserve", "benchmarks", "finetune", "protos", "quantize", "server")
    for name in packages:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=source)
    [built] = source.parent.glob("*.whl")
    return built


def test_the_wheel_needs_three_distributions_and_has_the_client(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    [metadata] = tmp_path.glob("*.dist-info/METADATA")
    required = Parser().parsestr(metadata.read_text()).get_all("Requires-Dist") or []
    always = {re.split("[<>]", one)[0] for one in required if "extra ==" not in one}
    assert always == {"googleapis-common-protos", "grpcio", "protobuf"}
    result = alone(USE, PYTHONPATH=str(tmp_path))
    assert result.stdout.startswith(str(tmp_path)), result.stderr
    missing = alone("import tuneserve.cli", PYTHONPATH=str(tmp_path))
    assert missing.returncode == 1
    assert missing.stderr == ("error: the command line is not installed\nhint:  pip install 'tuneserve[server]'\n")
