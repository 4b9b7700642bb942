"""Whether a model fits, by numbers alone: no GPU is needed, and none is used."""

import subprocess

import pytest

from tuneserve import checkpoint
from tuneserve.server.call.errors import WrongState
from tuneserve.server.config import ModelConfig
from tuneserve.server.engine.hardware import Hardware
from tuneserve.server.models import memory
from tuneserve.v1 import checkpoint_pb2 as pb

GIB = 1 << 30


def manifest(task: int = pb.TASK_GENERATION, dtype: str = "bfloat16") -> pb.Checkpoint:
    """Weights of 2 GiB, and a file that is none."""
    files = [("a.safetensors", 1), ("b.safetensors", 1), ("tokenizer.json", 50)]
    found = [pb.File(path=path, size_bytes=size * GIB) for path, size in files]
    return pb.Checkpoint(task=task, dtype=dtype, files=found)


@pytest.fixture
def needs(monkeypatch):
    """Returns the GiB that are said to be needed, on a machine with nothing free."""

    def ask(manifest: pb.Checkpoint, dtype: str = "bfloat16", cache: float = 0.5) -> str:
        monkeypatch.setattr(memory, "has_nvidia_gpu", lambda: False)
        monkeypatch.setattr(memory, "available_memory", lambda: 0)
        monkeypatch.setattr(memory, "detect", lambda *_: Hardware(dtype, int(cache * GIB), enforce_eager=True))
        with pytest.raises(WrongState, match=r"0\.0 GiB are free on this machine; unload another") as caught:
            memory.check(ModelConfig(path="/m"), manifest)
        assert caught.value.reason == "NO_MEMORY"
        return str(caught.value).split(" GiB", 1)[0].removeprefix("the model needs about ")

    return ask


def test_copies_need_as_much_each(monkeypatch):
    monkeypatch.setattr(memory, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(memory, "available_memory", lambda: 6 * GIB)
    monkeypatch.setattr(memory, "detect", lambda *_: Hardware("bfloat16", GIB // 2, enforce_eager=True))
    memory.check(ModelConfig(path="/m"), manifest())
    with pytest.raises(WrongState, match=r"needs about 8\.0 GiB and 6\.0 GiB are free"):
        memory.check(ModelConfig(path="/m"), manifest(), 2)


def test_weights_cache_and_processes(needs):
    assert needs(manifest()) == "4.0"
    assert needs(manifest(), cache=4) == "7.5"
    assert needs(manifest(pb.TASK_SEQUENCE_CLASSIFICATION)) == "3.5", "an encoder has no cache"


def test_weights_that_are_computed_with_in_32_bits(needs):
    assert needs(manifest(), dtype="float32") == "6.0"
    assert needs(manifest(dtype="float32"), dtype="float32") == "4.0"


def test_memory_is_compared_with_what_the_checkpoint_needs(make_llama, monkeypatch):
    directory = make_llama()
    config, described = ModelConfig(path=directory, kv_cache_gib=2.0), checkpoint.load(directory)
    monkeypatch.setattr(memory, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(memory, "available_memory", lambda: 16 * GIB)
    memory.check(config, described)
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * GIB)
    with pytest.raises(WrongState, match=r"needs about 3\.\d GiB and 2\.0 GiB are free"):
        memory.check(config, described)


def test_on_a_gpu_the_share_that_is_set_counts(monkeypatch):
    """Of two GPUs the first, as nvidia-smi tells: total and free, in MiB."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[0] == "nvidia-smi"
        return subprocess.CompletedProcess(command, 0, "81920, 40960\n81920, 0\n", "")

    monkeypatch.setattr(memory, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(subprocess, "run", run)
    memory.check(ModelConfig(path="/m", gpu_memory_utilization=0.5), manifest())
    with pytest.raises(WrongState, match=r"needs about 48\.0 GiB and 40\.0 GiB .* lower gpu_memory_utilization"):
        memory.check(ModelConfig(path="/m", gpu_memory_utilization=0.6), manifest())
