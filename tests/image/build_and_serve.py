"""Builds both images without a Docker engine, trains in one and serves from the other with all that Kubernetes may
forbid: `make image-test`, some ten minutes. `make image-test-gpu` builds the one that serves on GPUs.

Needs root and Debian's packages: apt-get install mmdebstrap buildah podman runc. The base is made of Debian's packages,
too, so nothing comes from a registry. Everything is kept in .cache/image, where the next build finds its layers.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuneserve import samples

ROOT = Path(__file__).parents[2]
SCRATCH = ROOT / ".cache" / "image"
BASE, SERVE, TRAIN = "localhost/debian:bookworm", "localhost/tuneserve:test", "localhost/tuneserve-train:test"
GPU = "localhost/tuneserve-gpu:test"
PAGE = ROOT / "docs" / "kubernetes.md"
# Where Debian's programs look for certificates.
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
FORBIDDEN = ["--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--network=none"]
TOOLS = ["mmdebstrap", "buildah", "podman", "runc"]
COMPILERS = ["cc", "c++", "gcc", "g++", "clang", "as", "ld"]


@pytest.fixture(scope="module", autouse=True)
def _storage() -> None:
    """Images, containers and what else buildah and podman write are kept apart from the machine's own."""
    missing = [name for name in TOOLS if not shutil.which(name)]
    assert not missing, f"apt-get install {' '.join(missing)}"
    for name in ("storage", "run", "tmp"):
        (SCRATCH / name).mkdir(parents=True, exist_ok=True)
    storage = f'[storage]\ndriver = "overlay"\ngraphroot = "{SCRATCH}/storage"\nrunroot = "{SCRATCH}/run"\n'
    (SCRATCH / "storage.conf").write_text(storage)
    (SCRATCH / "registries.conf").write_text("")
    (SCRATCH / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    os.environ["CONTAINERS_STORAGE_CONF"] = str(SCRATCH / "storage.conf")
    os.environ["CONTAINERS_REGISTRIES_CONF"] = str(SCRATCH / "registries.conf")
    os.environ["TMPDIR"] = str(SCRATCH / "tmp")


def podman(*arguments: object) -> str:
    """What podman prints to its standard output; its standard error is the test's own."""
    command = ["podman", "--cgroup-manager=cgroupfs", "--events-backend=file", *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def succeeds(*arguments: object) -> bool:
    """Whether a command of podman ends with exit status 0."""
    try:
        podman(*arguments)
    except subprocess.CalledProcessError:
        return False
    return True


def started(image: str, *arguments: object) -> list[object]:
    """The arguments of podman that run an image with all that is forbidden; its health is asked for, not by systemd."""
    policy = f"--signature-policy={SCRATCH}/policy.json"
    limits = ["--ulimit=nofile=1024:4096", "--ulimit=nproc=4000:4000", "--health-interval=disable"]
    return ["run", "--runtime=runc", policy, *limits, *FORBIDDEN, *arguments, image]


@pytest.fixture(scope="module")
def base() -> str:
    """Debian's smallest installation, without documentation, like its official image."""
    if not succeeds("image", "exists", BASE):
        tar = SCRATCH / "base.tar"
        without = [f"--dpkgopt=path-exclude=/usr/share/{one}/*" for one in ("doc", "info", "locale", "man")]
        # The certificates only so that the build need not install them where those of this machine are mounted.
        command = ["mmdebstrap", "--variant=minbase", "--include=ca-certificates", *without, "bookworm", str(tar)]
        subprocess.run(command, check=True)
        podman("import", f"--signature-policy={SCRATCH}/policy.json", tar, BASE)
        tar.unlink()
    return BASE


def build(base: str, target: str, tag: str, extra: str = "cpu") -> None:
    command = ["buildah", "bud", "--isolation=chroot", "--format=docker", "--layers", "--network=host"]
    command += [f"--signature-policy={SCRATCH}/policy.json", f"--build-arg=BASE={base}", f"--build-arg=EXTRA={extra}"]
    command += [*of_this_machine(extra), f"--target={target}", f"--tag={tag}"]
    subprocess.run([*command, str(ROOT)], check=True)


def of_this_machine(extra: str) -> list[str]:
    """How pip reaches the packages from here, for the build: the certificates that it trusts, and its folder of wheels.

    Both are mounted, so that no image has them. A folder of wheels has PyTorch for CPUs: for GPUs it is not used.
    """
    flags = []
    if bundle := pip_s("cert") or os.environ.get("SSL_CERT_FILE"):
        (SCRATCH / "pip.conf").write_text(f"[global]\ncert = {CERTIFICATES}\n")
        (SCRATCH / "uv.toml").write_text("system-certs = true\n")
        flags += [f"--volume={Path(bundle).resolve()}:{CERTIFICATES}:ro"]
        flags += [f"--volume={SCRATCH}/pip.conf:/etc/pip.conf:ro", f"--volume={SCRATCH}/uv.toml:/etc/uv/uv.toml:ro"]
    if extra == "cpu" and (wheels := pip_s("find-links")):
        flags += [f"--volume={wheels}:{wheels}:ro", f"--build-arg=UV_FIND_LINKS={wheels}"]
    return flags


def pip_s(name: str) -> str | None:
    """A setting of pip on this machine; those of the environment are listed last, and count."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"\.([\w-]+)='(.*)'", listed)).get(name)


@pytest.fixture(scope="module")
def serve(base: str) -> str:
    build(base, "serve", SERVE)
    return SERVE


@pytest.fixture(scope="module")
def train(base: str) -> str:
    build(base, "train", TRAIN)
    return TRAIN


@pytest.fixture(scope="module")
def checkpoint(train: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that the train image made, in a volume that only its user may write."""
    folder = tmp_path_factory.mktemp("volume")
    os.chown(folder, 10001, 10001)
    settings = {
        "task": "sequence-classification",
        "base_model": "/data/minilm-l6",
        "train": "/data/sentiment.jsonl",
        "output": "/volume/sentiment",
        **{"max_train_rows": 200, "max_test_rows": 100, "max_length": 64, "epochs": 1, "learning_rate": 1e-3},
    }
    config = folder / "train.yaml"
    config.write_text(json.dumps(settings))
    data = samples.sentiment()
    assert samples.sentiment_encoder().parent == data.parent
    volumes = [f"--volume={data.parent}:/data:ro", f"--volume={folder}:/volume"]
    podman(*started(train, "--rm", *volumes), "finetune", "/volume/train.yaml")
    return folder / "sentiment"


@pytest.fixture(scope="module")
def container(serve: str, checkpoint: Path) -> Iterator[str]:
    """A running server, healthy."""
    chat = samples.chat_model()
    volumes = [f"--volume={checkpoint}:/models/sentiment:ro", f"--volume={chat}:/models/chat:ro"]
    models = ["--model=sentiment=/models/sentiment", "--model=chat=/models/chat"]
    name = podman(*started(serve, "--detach", *volumes), "serve", *models)
    try:
        deadline = time.monotonic() + 900
        while not succeeds("healthcheck", "run", name):
            assert podman("inspect", "--format={{.State.Status}}", name) == "running"
            assert time.monotonic() < deadline
            time.sleep(2)
        yield name
    finally:
        print(podman("logs", name))
        podman("rm", "--force", name)


def inside(name: str, *command: str) -> str:
    return podman("exec", name, *command)


def test_the_server_answers(container):
    answer = json.loads(
        inside(container, "tuneserve", "call", "classify", "--model=sentiment", "--json", "A fine film.")
    )
    assert {label["label"] for label in answer["results"][0]["labels"]} == {"negative", "positive"}
    assert inside(container, "tuneserve", "call", "chat", "--model=chat", "--max-tokens=8", "Hello!")


def test_probabilities_of_tokens_need_no_compiler(container):
    command = ["tuneserve", "call", "classify", "--model=chat", "--labels=praise,complaint", "My parcel never came."]
    assert "complaint" in inside(container, *command)


def test_the_libraries_of_the_cpu_runtime_are_there(container):
    log = subprocess.run(["podman", "logs", container], capture_output=True, text=True, check=True)
    assert "not found: slower on CPU" not in log.stdout + log.stderr
    maps = inside(container, "cat", "/proc/1/maps")
    assert "libiomp5.so" in maps
    assert "libtcmalloc" in maps


def test_it_is_nobody_with_no_compiler(container):
    assert inside(container, "id", "--user") == "10001"
    for one in COMPILERS:
        assert not inside(container, "sh", "-c", f"command -v {one} || true"), one
    capabilities = re.findall(r"^Cap\w+:\s+(\w+)$", inside(container, "cat", "/proc/1/status"), re.MULTILINE)
    assert {int(one, 16) for one in capabilities} == {0}


@pytest.mark.parametrize("target", ["serve", "train"])
def test_packages_are_those_that_are_pinned(request, target):
    assert_pinned(request.getfixturevalue(target), f"{target}-cpu.txt")


def assert_pinned(image: str, file: str) -> None:
    code = "from importlib import metadata; print(*(f'{one.name}=={one.version}' for one in metadata.distributions()))"
    listed = podman(*started(image, "--rm", "--entrypoint=python"), "-c", code).split()
    lines = (ROOT / "requirements" / file).read_text(encoding="utf-8").splitlines()
    found = {re.sub("[._]", "-", one).lower() for one in listed if not one.startswith("tuneserve==")}
    assert found == {re.sub("[._]", "-", one).lower() for one in lines if not one.startswith("#")}


def test_sigterm_drains(container):
    podman("stop", "--time=60", container)
    assert podman("inspect", "--format={{.State.ExitCode}}", container) == "0"


def test_sizes_are_written_down(serve, train):
    """In docs/kubernetes.md, to about a tenth of a GB."""
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) GB", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    written = {target: float(gigabytes) for target, gigabytes in rows}
    for target, image in (("serve", serve), ("train", train)):
        assert size(image) == pytest.approx(written[target], abs=0.1)


def size(image: str) -> float:
    return int(podman("image", "inspect", "--format={{.Size}}", image)) / 1e9


def test_the_gpu_image(base):
    """It is whole, has CUDA, and compiles as Triton does. That it serves, only a machine with a GPU can show."""
    build(base, "serve", GPU, "gpu")
    assert_pinned(GPU, "serve-gpu.txt")
    code = "import torch, tuneserve.server.engine.vllm_engine; print(torch.version.cuda)"
    assert podman(*started(GPU, "--rm", "--tmpfs=/tmp", "--entrypoint=python"), "-c", code).startswith("13.")
    headers = "$(python -c 'import sysconfig; print(sysconfig.get_path(\"include\"))')"
    compiled = f"echo '#include <Python.h>' | gcc -x c -c -I{headers} -o /tmp/launcher.o -"
    podman(*started(GPU, "--rm", "--tmpfs=/tmp", "--entrypoint=sh"), "-c", compiled)
    [written] = re.findall(r"^\| `serve` for GPUs \| ([\d.]+) GB", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert size(GPU) == pytest.approx(float(written), abs=0.1)
