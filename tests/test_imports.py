"""The import rules of the house, by reading every import statement."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ("finetune", "quantize", "server", "benchmarks")
SPINE = {"checkpoint", "errors", "quality", "rows", "runtime", "v1"}


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


def test_only_the_engine_knows_vllm():
    for folder in ("tuneserve", *PROGRAMS):
        for path in files(folder):
            if path != ROOT / "server" / "engine.py":
                assert not [name for name in imports(path) if name.split(".")[0] == "vllm"], path


def test_the_server_runs_without_torch():
    for path in files("server"):
        if path.name != "engine.py":
            assert not [name for name in imports(path) if name.split(".")[0] == "torch"], path


def test_benchmarks_speak_to_a_server_by_grpc_only():
    allowed = {"benchmarks", "checkpoint", "client", "errors", "serving", "v1"}
    for path in files("benchmarks"):
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("tuneserve.")}
        assert ours <= allowed, f"{path.name} imports {ours - allowed}"


# Within the server: each file imports only from the rows above it.
ORDER = [
    {"config", "errors", "metrics", "seam", "spans", "context"},
    {"hardware", "tokenizer"},
    {"engine", "convert"},
    {"models"},
    {"classification", "generation", "catalog", "interceptors"},
    {"app"},
]


def test_the_server_is_layered():
    rank = {name: row for row, names in enumerate(ORDER) for name in names}
    for path in files("server"):
        if path.stem == "__init__":
            continue
        prefix = "tuneserve.server."
        parts = {name.removeprefix(prefix).split(".")[0] for name in imports(path) if name.startswith(prefix)}
        # The application starts the engine, late; nothing else may.
        if path.stem == "app":
            parts -= {"engine"}
        for other in parts & rank.keys():
            assert rank[other] < rank[path.stem], f"{path.name} imports {other}"
