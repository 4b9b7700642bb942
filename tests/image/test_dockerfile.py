"""The Dockerfile as it is read; `make image-test` builds and runs it (build_and_serve.py).

CI builds no image: a slim one would still take 3 GB, and mounts that CI may not allow, to show Debian's packages and
the user's rights. Whether the serve image has the packages that it needs is shown by the server of tests/engine
(packages.py).
"""

import asyncio
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import tuneserve
from tuneserve.server.config import ModelConfig, ServerConfig

from ..server.conftest import served_by
from .packages import pinned

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
TARGETS = ("serve", "train")
Instructions = list[tuple[str, str]]


def instructions() -> Instructions:
    """Each instruction's word and the rest, without comments and with continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", "")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in whole.splitlines()) if word]


def image(target: str) -> Instructions:
    """What makes the image: the instructions of its stage, after those of the stages that it begins from."""
    stages, name = dict[str, Instructions](), ""
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.split()
            stages[name] = list(stages.get(base, ()))
        elif name:
            stages[name].append((word, rest))
    assert list(stages)[-1] == "serve", "docker build makes the last one"
    return stages[target]


def installed(target: str, extra: str) -> set[str]:
    """The packages of the distribution that an image has beside its base's."""
    found = set[str]()
    for word, rest in image(target):
        if word == "RUN":
            for names in re.findall(rf"(?:{extra}\) set --|install --yes --no-install-recommends) ([^;&]+)", rest):
                found |= set(names.split()) - {'"$@"'}
    return found


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sys.executable).with_name("hadolint")
    ended = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stdout + ended.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_tuneserve_as_the_chart_s_user(target):
    values = yaml.safe_load((ROOT / "helm" / "values.yaml").read_text(encoding="utf-8"))
    words = dict(image(target))
    assert words["USER"] == f"{values['runAsUser']}:{values['runAsGroup']}"
    assert image(target)[-1][0] != "RUN", "after USER nothing is changed"
    assert words["ENTRYPOINT"] == '["tuneserve"]'
    assert dict(image("serve"))["EXPOSE"] == f"{values['grpcPort']} {values['metricsPort']}"


@pytest.mark.parametrize("target", TARGETS)
def test_only_images_for_gpus_have_a_compiler(target):
    assert installed(target, "cpu") == {"python3", "libnuma1", "libtcmalloc-minimal4"}
    assert installed(target, "gpu") == {"python3", "gcc", "libc6-dev", "libpython3-dev"}


@pytest.mark.parametrize(
    ("host", "ports", "healthy"),
    [
        ("127.0.0.41", {"listen": 8033}, True),
        ("127.0.0.42", {"listen": 0, "health_listen": 8034}, True),
        ("127.0.0.43", {"listen": 0, "health_listen": 0}, False),
    ],
)
async def test_the_health_check_asks_the_health_port_or_else_grpcs(
    make_bert: Callable[..., Path], host: str, ports: dict[str, int], healthy: bool
) -> None:
    program, *arguments = json.loads(dict(image("serve"))["HEALTHCHECK"].partition("CMD ")[2])
    assert program == "python"
    here = [one.replace("127.0.0.1", host) for one in arguments]
    everywhere = {"metrics_listen": 0, "admin_listen": 0, **ports}
    addresses = {key: f"{host}:{port}" for key, port in everywhere.items()}
    models = {"sentiment": ModelConfig(path=make_bert())}
    async with served_by(ServerConfig(models=models, **addresses)):
        process = await asyncio.create_subprocess_exec(sys.executable, *here, stderr=asyncio.subprocess.DEVNULL)
        assert (await process.wait() == 0) == healthy


def test_versions_are_those_of_the_repository():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f'image.version="{tuneserve.__version__}"' in dict(image("serve"))["LABEL"]
    assert re.findall(r"UV_VERSION := (.+)", makefile) == [
        rest.removeprefix("UV_VERSION=") for word, rest in instructions() if rest.startswith("UV_VERSION=")
    ]


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_packages_are_pinned_where_all_are(extra):
    serve, train = pinned(f"serve-{extra}"), pinned(f"train-{extra}")
    assert serve < train < pinned(extra), "one is installed on top of the other"
    assert any(line.startswith("setuptools==") for line in serve), "builds ours, without any other package"
    left_out = pinned("unserved")
    assert not left_out & {line.partition("==")[0] for line in serve}
    assert left_out < {line.partition("==")[0] for line in train}, "left out, but nothing asks for it"


def test_the_build_gets_every_package_of_ours():
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {Path(folder).parts[0] for folder in project["tool"]["setuptools"]["package-dir"].values()}
    assert folders < set(kept)
    assert all((ROOT / one).exists() for one in kept)
