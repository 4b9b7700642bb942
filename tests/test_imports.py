"""The import rules of the house, by reading every import statement."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ("finetune", "quantize", "server", "benchmarks")
SPINE = {
    "checkpoint/__init__",
    "checkpoint/entities",
    "checkpoint/rows",
    "checkpoint/spacing",
    "errors",
    "formats",
    "machine/disk",
    "machine/runtime",
    "machine/tiers",
    "settings",
    "yamls",
}


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
    for name in (*SPINE, "evaluation/quality", "evaluation/significance"):
        path = ROOT / "tuneserve" / f"{name}.py"
        bad = [module for module in imports(path) if module.startswith(tuple(f"tuneserve.{p}" for p in PROGRAMS))]
        assert not bad, f"{path.name} imports {bad}"


# What goes into vLLM and comes out of it stands beside the engine. The benchmarks measure plain vLLM too, in a
# process of its own.
MODULES = ("vllm_engine", "requests", "parsers", "lora_cpu", "nf4_cpu")
ENGINE = {ROOT / "server" / "engine" / f"{name}.py" for name in MODULES}
ENGINE |= {ROOT / "benchmarks" / "serving" / "workers" / "offline.py"}


def test_only_the_engine_knows_vllm():
    for folder in ("tuneserve", *PROGRAMS):
        for path in files(folder):
            if path not in ENGINE:
                assert not [name for name in imports(path) if name.split(".")[0] == "vllm"], path


def test_the_server_runs_without_torch():
    for path in files("server"):
        if path not in ENGINE:
            assert not [name for name in imports(path) if name.split(".")[0] == "torch"], path


def test_the_client_stands_alone():
    ours = ("tuneserve.client", "tuneserve.v1")
    for path in files("tuneserve/client"):
        for name in imports(path):
            top = name.split(".")[0]
            alone = top in sys.stdlib_module_names or top in ("grpc", "google") or name.startswith(ours)
            assert alone or name == "tuneserve", f"{path.name} imports {name}"


def test_benchmarks_speak_to_a_server_by_grpc_only():
    # And train by the command line; rows and samples are data, and intervals are numbers.
    allowed = {
        "benchmarks",
        "call",
        "checkpoint",
        "client",
        "errors",
        "evaluation",
        "machine",
        "predict",
        "samples",
        "serving",
        "v1",
    }
    for path in files("benchmarks"):
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("tuneserve.")}
        assert ours <= allowed, f"{path.name} imports {ours - allowed}"


# The rooms of a program, from the ground up: each imports from itself and from those before it. Loose files stand
# between them.
TOWERS = {
    "finetune": "fields config data model eval train export preparation report pipeline soup search",
    "server": (
        "files turns concurrency garbage config metrics engine call text models api open_inference transport app"
    ),
}


def imports_within(program: str) -> dict[str, set[str]]:
    """Which modules of a program each of them imports, by name without the package's."""
    prefix, root = f"tuneserve.{program}.", ROOT / program
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in files(program)}
    known = set(names.values())
    found = {
        name: {one.removeprefix(prefix) for one in imports(path) if one.startswith(prefix)}
        for path, name in names.items()
    }
    # `from room import module` and `from room.module import thing` are the same here.
    return {
        name: {one if one in known else one.rpartition(".")[0] for one in ones} & known for name, ones in found.items()
    }


@pytest.mark.parametrize("program", TOWERS)
def test_a_program_is_a_tower(program):
    tower = TOWERS[program].split()
    for name, found in imports_within(program).items():
        room = name.split(".")[0]
        if room != "__init__":
            above = {one for one in found if tower.index(one.split(".")[0]) > tower.index(room)}
            assert not above, f"{name} imports {above}"


@pytest.mark.parametrize("program", TOWERS)
def test_no_module_imports_itself_by_others(program):
    graph = imports_within(program)
    while graph:
        leaves = {name for name, found in graph.items() if not found & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: found for name, found in graph.items() if name not in leaves}


@pytest.mark.parametrize("program", TOWERS)
def test_rooms_are_small(program):
    for folder in (ROOT / program).iterdir():
        if folder.is_dir():
            assert len(list(folder.glob("*.py"))) <= 16, f"{folder.name} is a street, not a room"
