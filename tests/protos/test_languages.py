"""Stubs for other languages: they lie where the options of the .proto files say, and compile.

TypeScript is checked everywhere. Java, C# and Go are where their tools are, and skipped elsewhere. On Debian 12:

    apt-get install protobuf-compiler default-jdk-headless protobuf-compiler-grpc-java-plugin libgrpc-java \
        libprotobuf-java libguava-java libgeronimo-annotation-1.3-spec-java golang-go protoc-gen-go \
        protoc-gen-go-grpc golang-google-grpc-dev golang-github-golang-protobuf-1-5-dev

Java stubs need a runtime that is as new as the protoc that made them, so protoc is Debian's, of the same source as its
libprotobuf-java; that of grpcio-tools makes neither Java nor C#. Debian has no runtime for C#: those are not compiled.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import GOOGLE, PROTOS, ROOT

SOURCES = sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto"))
OURS = [(PROTOS / source).read_text(encoding="utf-8") for source in SOURCES if "/v1/" in source]
MESSAGES = {name for text in OURS for name in re.findall(r"^message (\w+)", text, re.MULTILINE)}
SERVICES = {name for text in OURS for name in re.findall(r"^service (\w+)", text, re.MULTILINE)}

JARS = [
    Path("/usr/share/java") / f"{name}.jar"
    for name in ("protobuf", "grpc-api", "grpc-protobuf", "grpc-stub", "guava", "geronimo-annotation-1.3-spec")
]
GO_PACKAGES = Path("/usr/share/gocode")
CHECKED = """
import type { ClassifyRequest } from "./tuneserve/v1/ClassifyRequest";

export const right: ClassifyRequest = { model: "sentiment", inputs: [{ text: "good" }], truncation: "TRUNCATION_END" };
// @ts-expect-error
export const wrong: ClassifyRequest = { modle: "sentiment" };
"""


def needs(*tools: str | Path) -> None:
    missing = [str(tool) for tool in tools if not (shutil.which(tool) or Path(tool).exists())]
    if missing:
        pytest.skip(f"this machine lacks {', '.join(missing)}")


def run(*command: str | Path, cwd: Path = PROTOS, **environment: str) -> None:
    result = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=1200, check=False, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stdout + result.stderr


def made(folder: Path, pattern: str) -> dict[str, str]:
    """Returns the files below a folder, by path."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob(pattern)}


def test_java(tmp_path):
    needs("protoc")
    run("protoc", "-I.", f"--java_out={tmp_path}", *SOURCES)
    files = {path: text for path, text in made(tmp_path, "*.java").items() if "/inference/" not in path}
    assert files.keys() >= {f"dev/tuneserve/v1/{name}.java" for name in MESSAGES}
    assert {text.count("\npackage dev.tuneserve.v1;\n") for text in files.values()} == {1}


def test_java_compiles(tmp_path):
    needs("protoc", "grpc_java_plugin", "javac", *JARS)
    protoc = subprocess.run(["protoc", "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    if protoc.split()[-1] not in JARS[0].resolve().name:
        pytest.skip(f"{protoc.strip()} is not of the source of {JARS[0].resolve().name}")
    plugin = f"--plugin=protoc-gen-grpc-java={shutil.which('grpc_java_plugin')}"
    run("protoc", "-I.", f"--java_out={tmp_path}", plugin, f"--grpc-java_out={tmp_path}", *SOURCES)
    classes = tmp_path / "classes"
    libraries = ":".join(map(str, JARS))
    run("javac", "-nowarn", "-proc:none", "-d", classes, "-cp", libraries, *tmp_path.rglob("*.java"))
    names = {path.stem for path in (classes / "dev" / "tuneserve" / "v1").iterdir()}
    assert names >= MESSAGES | {f"{service}Grpc" for service in SERVICES}


def test_csharp(tmp_path):
    needs("protoc")
    run("protoc", "-I.", f"--csharp_out={tmp_path}", "--csharp_opt=base_namespace=", *SOURCES)
    files = made(tmp_path, "*.cs")
    assert len(files) == len(SOURCES)
    for path, text in files.items():
        namespace = path.rpartition("/")[0].replace("/", ".")
        assert namespace in ("Tuneserve.V1", "Tuneserve.Inference")
        assert f"\nnamespace {namespace} {{\n" in text


@pytest.fixture
def go_path(tmp_path) -> Path:
    """A folder whose `src` has the stubs for Go."""
    needs("protoc-gen-go", "protoc-gen-go-grpc")
    folder = tmp_path / "src"
    folder.mkdir()
    run(sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--go_out={folder}", f"--go-grpc_out={folder}", *SOURCES)
    return tmp_path


def test_go(go_path):
    files = made(go_path / "src", "*.go")
    ours = {path: text for path, text in files.items() if "/oip/" not in path}
    stems = {Path(source).stem for source in SOURCES if "/v1/" in source}
    assert ours.keys() >= {f"tuneserve.dev/api/tuneserve/v1/{stem}.pb.go" for stem in stems}
    assert {text.count("\npackage tuneservev1\n") for text in ours.values()} == {1}


def test_go_compiles(go_path):
    needs("go", *(GO_PACKAGES / "src" / "google.golang.org" / name for name in ("grpc", "protobuf")))
    cache = ROOT / ".cache" / "go"
    paths = {"GOPATH": f"{go_path}:{GO_PACKAGES}", "GOCACHE": str(cache), "GOPROXY": "off", "GO111MODULE": "off"}
    run("go", "build", "tuneserve.dev/...", cwd=go_path, **paths)


async def test_typescript(node, tmp_path):
    folders = ("-I", PROTOS, GOOGLE, "-O", tmp_path)
    forms = ("--keepCase", "--longs=String", "--enums=String", "--defaults", "--grpcLib=@grpc/grpc-js")
    generator = node.modules / "@grpc" / "proto-loader" / "build" / "bin" / "proto-loader-gen-types.js"
    await node.run(generator, *forms, *folders, "--", *SOURCES, "google/rpc/error_details.proto")
    (tmp_path / "checked.ts").write_text(CHECKED)
    (tmp_path / "node_modules").symlink_to(node.modules)
    files = [path for path in tmp_path.glob("**/*.ts") if "node_modules" not in path.parts]
    assert {f"{name}.ts" for name in MESSAGES} <= {path.name for path in files}
    compiler = node.modules / "typescript" / "bin" / "tsc"
    await node.run(compiler, "--noEmit", "--strict", "--skipLibCheck", "--module", "node16", *files)
