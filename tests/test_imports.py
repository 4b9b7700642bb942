"""The rules of the house: which imports go where, by reading every import statement; and tests mirror the rooms."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Where the modules of each package are (pyproject.toml), without those that protoc generates.
FOLDERS = {"tuneserve": "tuneserve"} | {
    f"tuneserve.{one}": one for one in ("finetune", "quantize", "server", "benchmarks")
}
# The rooms of each package, from the ground up: each imports from itself and from those before it. Those with a `|`
# between them do not know each other. A loose module is a room of its own.
TOWERS = {
    "tuneserve": """
        v1 oip errors formats page yamls settings machine checkpoint fetch client serving evaluation card inspect
        samples predict call finetune|quantize|server|benchmarks retrain schema demo api verbs commands cli
    """,
    "tuneserve.finetune": """
        fields config data model eval train export preparation report pipeline soup search
    """,
    "tuneserve.quantize": """
        schemes methods calibration weights sensitivity race report attempts gate preflight run
    """,
    "tuneserve.server": """
        files ledger turns concurrency garbage config histogram metrics engine worker call text models api answer
        monitor feedback open_inference transport processes app
    """,
    "tuneserve.benchmarks": "processes machine claims serving|training|answers gpu",
    "tuneserve.benchmarks.serving": """
        load workers systems small_model interleave overload cost_report caller crowd flood cost connections
        front_end front_ends before predict command peers
    """,
    "tuneserve.benchmarks.gpu": "shapes loads|checkpoints|results|roofs|together|phases phase|report __main__",
}
# A package that can be called (verbs.py) looks up its function in api.py.
CALLABLE = ("tuneserve", "tuneserve.finetune", "tuneserve.quantize")
# What goes into vLLM and comes out of it stands beside the engine. The benchmarks measure plain vLLM too, in a process
# of its own.
ENGINE = {
    f"tuneserve.server.engine.{one}"
    for one in (
        *("vllm_engine", "requests", "parsers", "preloaded"),
        *("on_cpu.zen", "on_cpu.top_p", "on_cpu.seeds", "on_cpu.lora", "on_cpu.nf4"),
    )
}
ENGINE |= {"tuneserve.benchmarks.serving.workers.offline"}


def modules() -> dict[str, Path]:
    """Every module of ours, by its dotted name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


class Running(ast.NodeTransformer):
    """Leaves out what only a type checker reads."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        is_typing = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return node.orelse if is_typing else self.generic_visit(node)


def imports(path: Path, typing: bool = True) -> Iterator[str]:
    """Everything that a file imports, at its top or inside a function, as a dotted name; also for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree if typing else Running().visit(tree)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = modules()
IMPORTS = {name: set(imports(path)) for name, path in MODULES.items()}


def imported(name: str) -> set[str]:
    """Which modules of ours a module imports: `from room import module` and `from room.module import thing` alike."""
    return {one if one in MODULES else one.rpartition(".")[0] for one in IMPORTS[name] if one.startswith("tuneserve.")}


def room(name: str, package: str) -> str:
    """The room of a package that a module is in; empty if it is in none."""
    return name.removeprefix(f"{package}.").split(".")[0] if name.startswith(f"{package}.") else ""


@pytest.mark.parametrize("package", TOWERS)
def test_a_package_is_a_tower(package):
    floors = [floor.split("|") for floor in TOWERS[package].split()]
    height = {one: number for number, floor in enumerate(floors) for one in floor}
    rooms = {found for name in MODULES if (found := room(name, package))}
    assert rooms <= height.keys(), "rooms without a place in the tower"
    for name in MODULES.keys() - CALLABLE:
        if own := room(name, package):
            others = {found: one for one in imported(name) if (found := room(one, package)) not in ("", own)}
            above = [one for found, one in others.items() if height[found] >= height[own]]
            assert not above, f"{name} imports {above}"


def test_no_module_imports_itself_by_others():
    graph = {name: imported(name) - {name} for name in MODULES.keys() - CALLABLE}
    while graph:
        leaves = {name for name, found in graph.items() if not found & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: found for name, found in graph.items() if name not in leaves}


def test_rooms_are_small():
    for folder in {path.parent for path in MODULES.values()}:
        assert len(list(folder.glob("*.py"))) <= 16, f"{folder.relative_to(ROOT)} is a street, not a room"


# What has no test file of its own, and where it is tested.
ELSEWHERE = {
    "tuneserve.errors": "classes without behaviour; test_cli.py: how each is shown",
    "tuneserve.client.aio": "client/conftest.py: a test that calls a server does it by both clients",
    "tuneserve.client.sync": "client/conftest.py: a test that calls a server does it by both clients",
    "tuneserve.server.answer.rows": "classes without behaviour; answer/test_store.py has some of them",
    "tuneserve.server.engine.on_cpu.nf4": "runs inside vLLM; finetune/test_served.py: four bits in float32",
    "tuneserve.benchmarks.gpu.phase": "test_main.py runs phases of each kind",
    "tuneserve.benchmarks.serving.workers.grpc_client": "test_worker.py: its jobs are done by each client",
    "tuneserve.benchmarks.serving.workers.http_client": "test_worker.py: its jobs are done by each client",
    "tuneserve.benchmarks.serving.peers.peer": "classes without behaviour; peers/test_main.py has some of them",
    "tuneserve.benchmarks.serving.peers.vllm": "test_systems.py and gpu/test_main.py: what it calls",
    "tuneserve.benchmarks.serving.peers.apps.onnx_classifier": "peers/test_onnx_runtime.py, where its environment is",
    "tuneserve.benchmarks.serving.peers.apps.onnx_export": "peers/test_onnx_runtime.py, where its environment is",
    "tuneserve.benchmarks.serving.peers.apps.onnx_litserve": "peers/test_onnx_runtime.py, where its environment is",
    "tuneserve.benchmarks.serving.peers.apps.onnx_mlserver": "peers/test_mlserver.py, where its environment is",
    "tuneserve.benchmarks.serving.workers.pipeline": "peers/test_transformers.py: does its jobs",
    "tuneserve.benchmarks.serving.workers.offline": "runs plain vLLM; gpu/test_main.py: a system of its phases",
}


def test_every_module_has_its_test_file():
    """tests/PACKAGE/ROOM/test_MODULE.py. Not for constants alone, nor for an __init__ that only says what is there."""
    missing = set()
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in tree.body):
            folder, module = path.relative_to(ROOT).parent, name.rpartition(".")[2].strip("_")
            if not (ROOT / "tests" / folder / f"test_{module}.py").exists():
                missing.add(name)
    assert missing == ELSEWHERE.keys()


def test_only_the_engine_knows_vllm_and_the_server_runs_without_torch():
    for name in MODULES.keys() - ENGINE:
        libraries = {one.split(".")[0] for one in IMPORTS[name]}
        assert "vllm" not in libraries, name
        assert "torch" not in libraries or not name.startswith("tuneserve.server."), name


def test_only_the_store_knows_lancedb():
    # And the benchmark that measures a search beside the store alone.
    knows = {STORE, "tuneserve.benchmarks.answers.speed"}
    for name in MODULES:
        assert name in knows or "lancedb" not in {one.split(".")[0] for one in IMPORTS[name]}, name


def test_the_client_stands_alone():
    for name in MODULES:
        if name.startswith("tuneserve.client"):
            for one in IMPORTS[name]:
                top = one.split(".")[0]
                alone = top in sys.stdlib_module_names or top in ("grpc", "google")
                assert alone or one.startswith(("tuneserve.client", "tuneserve.v1")), f"{name} imports {one}"


def test_every_package_is_in_what_is_installed():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    made = {"tuneserve.v1", "tuneserve.oip"}
    assert set(setuptools["packages"]) == made | {name for name, path in MODULES.items() if path.name == "__init__.py"}


# What comes with an extra that the server is installed with: cpu and gpu bring vLLM, and vLLM brings torch. The plugin
# is used where somebody installed it.
WITH_VLLM = {"torch", "vllm", "vllm_bnb_plugin"}


# What comes with the extra `answer`: the store is imported by a server that has indexes.
STORE, WITH_STORE = "tuneserve.server.answer.store", {"lancedb", "pyarrow"}


def declared() -> tuple[set[str], set[str]]:
    """Every module of the distributions in the base dependencies and the extra `server`, and the namespaces they are
    in; as paths.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found, namespaces = set[str](), set[str]()
    for requirement in (*project["dependencies"], *project["optional-dependencies"]["server"]):
        [name] = re.findall(r"^[\w.-]+", requirement)
        files = [file for file in metadata.files(name) or () if file.suffix in (".py", ".so", ".pyd")]
        found |= {str(file).split(".")[0].removesuffix("/__init__") for file in files}
        namespaces |= {str(folder) for file in files for folder in file.parents}
    return found, namespaces


def used_by_the_server() -> set[str]:
    """The server's modules, and those of `tuneserve` that they import, themselves or through others."""
    found, new = set[str](), {name for name in MODULES if name.startswith("tuneserve.server")}
    while new:
        found |= new
        named = {one for name in new for one in imports(MODULES[name], typing=False)}
        new = {one if one in MODULES else one.rpartition(".")[0] for one in named} & MODULES.keys() - found
    return found


def test_what_the_server_imports_is_declared():
    (known, namespaces), used = declared(), used_by_the_server()
    assert "tuneserve.checkpoint.entities" in used
    for name in used:
        others = WITH_VLLM if name in ENGINE else WITH_STORE if name == STORE else set()
        for one in imports(MODULES[name], typing=False):
            top = one.split(".")[0]
            if top == "tuneserve" or top in sys.stdlib_module_names or top in others:
                continue
            place = one.replace(".", "/")
            # A module, or a name in one.
            is_declared = place in known | namespaces or place.rpartition("/")[0] in known
            assert is_declared, f"{name} imports {one}, which is not declared"


def test_the_image_has_what_the_server_imports():
    lines = (ROOT / "requirements" / "unserved.txt").read_text(encoding="utf-8").splitlines()
    left_out = {line for line in lines if line and not line.startswith("#")}
    distributions = metadata.packages_distributions()
    for name in used_by_the_server():
        for one in imports(MODULES[name], typing=False):
            found = left_out & set(distributions.get(one.split(".")[0], ()))
            assert not found, f"{name} imports {one}, which the image does not have"
