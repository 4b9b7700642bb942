"""The import rules of the house, by reading every import statement."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROGRAMS = ("finetune", "quantize", "server", "benchmarks")
SPINE = {"checkpoint", "disk", "entities", "errors", "quality", "rows", "runtime", "spacing", "tiers", "v1", "yamls"}


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, at its top or inside a function, as a dotted name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_do_not_know_each_other(program):
    others = tuple(f"tuneserve.{other}" for other in PROGRAMS if other != program)
    for path in files(program):
        bad = [name for name in imports(path) if name.startswith(others)]
        assert not bad, f"{path.relative_to(ROOT)} imports {bad}"


def test_the_spine_knows_no_program():
    for name in SPINE - {"v1"}:
        path = ROOT / "tuneserve" / f"{name}.py"
        bad = [module for module in imports(path) if module.startswith(tuple(f"tuneserve.{p}" for p in PROGRAMS))]
        assert not bad, f"{path.name} imports {bad}"


# What goes into vLLM and comes out of it stands beside the engine. The benchmarks measure plain vLLM too, in a
# process of its own.
ENGINE = {ROOT / "server" / f"{name}.py" for name in ("engine", "engine_requests", "engine_lora_cpu", "engine_nf4_cpu")}
ENGINE |= {ROOT / "benchmarks" / "offline.py"}


def test_only_the_engine_knows_vllm():
    for folder in ("tuneserve", *PROGRAMS):
        for path in files(folder):
            if path not in ENGINE:
                assert not [name for name in imports(path) if name.split(".")[0] == "vllm"], path


def test_the_server_runs_without_torch():
    for path in files("server"):
        if path not in ENGINE:
            assert not [name for name in imports(path) if name.split(".")[0] == "torch"], path


def test_benchmarks_speak_to_a_server_by_grpc_only():
    # And train by the command line; rows and samples are data, and intervals are numbers.
    allowed = {
        "benchmarks",
        "call_common",
        "checkpoint",
        "client",
        "errors",
        "rows",
        "runtime",
        "samples",
        "serving",
        "significance",
        "tiers",
        "v1",
    }
    for path in files("benchmarks"):
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("tuneserve.")}
        assert ours <= allowed, f"{path.name} imports {ours - allowed}"


def server_imports() -> dict[str, set[str]]:
    """Which files of the server each of them imports, by name without suffix."""
    prefix = "tuneserve.server."
    return {
        path.stem: {name.removeprefix(prefix).split(".")[0] for name in imports(path) if name.startswith(prefix)}
        for path in files("server")
    }


def test_the_server_has_no_circles():
    graph = server_imports()
    while graph:
        leaves = {name for name, found in graph.items() if not found & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: found for name, found in graph.items() if name not in leaves}


# What answers calls stands on everything else, and nothing else knows it.
EDGE = {"app", "catalog", "classification", "embedding", "generation", "interceptors", "open_inference", "operations"}
EDGE |= {"open_forms", "ports"}
# What has no idea that there is gRPC, a model or a request.
GROUND = {"admission", "files", "quota", "seam", "settings", "spans"}


def test_the_server_is_layered():
    for name, found in server_imports().items():
        if name not in EDGE:
            assert not found & EDGE, f"{name}.py imports {found & EDGE}"
        if name in GROUND:
            assert found <= GROUND | {"errors"}, f"{name}.py imports {found - GROUND}"
        # The application starts the engine, late; nothing else may.
        if name != "app":
            assert "engine" not in found, f"{name}.py imports the engine"


# Whose extras each folder may import from, beside the dependencies.
EXTRAS = {
    "tuneserve": ("train",),
    "server": ("cpu",),
    "finetune": ("train",),
    "quantize": ("train", "quantize"),
    "benchmarks": ("cpu", "train"),
}


@pytest.mark.parametrize("folder", EXTRAS)
def test_every_import_is_declared(folder):
    """What is there only because something else needs it, or for development, is missing at somebody's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = names([*project["dependencies"], *(one for extra in EXTRAS[folder] for one in extras[extra])])
    # What is made for vLLM stands on what vLLM itself asks for.
    owners = packages_distributions()
    of_vllm = names(one for owner in owners.get("vllm", ()) for one in requires(owner) or ())
    # Pinned by hand for the CPU build (requirements/lock.sh); the module of ours that imports it is loaded where a
    # checkpoint needs it.
    of_vllm.add("vllm-bnb-plugin")
    for path in files(folder):
        for name in {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"tuneserve"}:
            known = declared | of_vllm if path in ENGINE or folder == "benchmarks" else declared
            found = {canonicalize_name(owner) for owner in owners.get(name, ())}
            assert found & known, f"{path.relative_to(ROOT)} imports {name}, of {found or 'nothing that is installed'}"


def names(requirements):
    return {canonicalize_name(Requirement(one).name) for one in requirements}


def test_yaml_of_ours_is_read_by_one_loader():
    """The library's own takes the last of duplicate keys. Samples are other people's."""
    for folder in EXTRAS:
        for path in files(folder):
            if path.relative_to(ROOT).as_posix() not in ("tuneserve/yamls.py", "tuneserve/samples.py"):
                text = path.read_text(encoding="utf-8")
                assert "yaml.load" not in text, path
                assert "yaml.safe_load" not in text, path


def test_every_requirement_is_pinned():
    """What `make setup` installs comes from the lock files alone: one that was not made again lacks it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for build in ("cpu", "gpu"):
        lines = (ROOT / "requirements" / f"{build}.txt").read_text().splitlines()
        pinned = {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line}
        wanted = [*project["dependencies"], *extras[build], *extras["train"], *extras["quantize"], *extras["dev"]]
        lacking = {name for one in wanted if (name := canonicalize_name(Requirement(one).name)) not in pinned}
        assert not lacking, f"requirements/{build}.txt lacks {lacking}: make lock"
