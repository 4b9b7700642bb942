"""Which type a model computes in here, and how the engine's start says so."""

from pathlib import Path
from typing import Any

import pytest

from tuneserve.errors import UserError
from tuneserve.machine import tiers
from tuneserve.server.config import ModelConfig
from tuneserve.server.engine import hardware
from tuneserve.v1 import checkpoint_pb2 as pb


@pytest.fixture
def on(monkeypatch):
    """on(tier, ...) detects as on a machine of this tier."""

    def detect(
        tier: tiers.Tier, dtype: str = "auto", stored: str = "bfloat16", quantization: str = "", **settings: Any
    ) -> hardware.Hardware:
        manifest = pb.Checkpoint(dtype=stored, quantization=quantization)
        monkeypatch.setattr(hardware, "this_tier", lambda: tier)
        return hardware.detect(ModelConfig(path=Path("checkpoints/chat"), dtype=dtype, **settings), manifest)

    return detect


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("quantization", ["", "w8a8", "nf4", "int8"])
def test_the_type_follows_the_machine_not_the_file(on, tier, stored, quantization):
    assert on(tier, stored=stored, quantization=quantization).dtype == tier.dtype


def test_without_avx512_a_file_in_bfloat16_is_computed_with_in_float32(on):
    found = on(tiers.AVX2)
    assert found.why == "computes in float32 on AVX2: bfloat16 would be emulated, which is slower"
    assert found.enforce_eager
    assert found.kv_cache_bytes


def test_on_a_gpu_vllm_decides(on):
    found = on(tiers.GPU)
    assert (found.dtype, found.kv_cache_bytes, found.enforce_eager) == ("auto", 0, False)


def test_a_cache_of_a_given_size_is_that_size(on, tier):
    assert on(tier, kv_cache_gib=1.5).kv_cache_bytes == 3 << 29


def test_four_bit_weights_are_computed_with_in_16_bits(on):
    assert on(tiers.AVX512_VNNI, quantization="w4a16").dtype == "bfloat16"
    assert on(tiers.AVX512_VNNI, "float32", quantization="w4a16").dtype == "float32"
    for tier in (tiers.AVX2, tiers.AVX2_VNNI, tiers.OTHER):
        with pytest.raises(UserError, match=r"w4a16 can't be served on .*AVX-512"):
            on(tier, quantization="w4a16")


@pytest.mark.parametrize(
    ("tier", "dtype", "slow"),
    [
        (tiers.AVX2, "bfloat16", True),
        (tiers.AVX512_VNNI, "bfloat16", True),
        (tiers.AVX512_BF16, "float16", True),
        (tiers.AVX512_BF16, "bfloat16", False),
        (tiers.AVX512_BF16, "float32", False),
        (tiers.AVX2, "float32", False),
        (tiers.GPU, "float16", False),
    ],
)
def test_a_type_that_is_slow_here_is_warned_about(on, tier, dtype, slow):
    found = on(tier, dtype)
    assert (found.dtype, found.why.endswith(": so configured")) == (dtype, True)
    assert len(found.warnings) == slow
    assert not slow or f"dtype {dtype} is emulated on {tier.title}" in found.warnings[0]


def test_int8_of_the_full_range_is_warned_about_where_it_saturates(on, tier):
    found = on(tier, quantization="w8a8")
    assert bool(found.warnings) == (tier in (tiers.AVX2, tiers.AVX512))
    assert not found.warnings or "--reduce-range" in found.warnings[0]
    assert not on(tier, quantization="int8").warnings


def test_memory_is_what_the_container_has_left(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "_CGROUP", tmp_path)
    machine = hardware.available_memory()
    assert machine > 64 << 20
    (tmp_path / "memory.current").write_text(f"{60 << 20}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {10 << 20}\nactive_file 5\n")
    for limit, left in (("max", machine), (str(64 << 20), 14 << 20), (str(40 << 20), 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert abs(hardware.available_memory() - left) < (1 << 30 if limit == "max" else 1)


def test_memory_is_the_containers_or_the_machines(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "_CGROUP", tmp_path)
    machine = hardware.memory()
    assert machine > 1 << 28
    for limit, found in (("max", machine), (str(1 << 27), 1 << 27), (str(1 << 60), machine)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        assert hardware.memory() == found
