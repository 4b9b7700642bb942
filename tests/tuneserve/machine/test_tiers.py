"""The table of tiers: which one a processor is in, as it is and restricted, and what each computes in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuneserve import checkpoint
from tuneserve.machine import tiers
from tuneserve.v1 import checkpoint_pb2 as pb

OLD = frozenset(["fpu", "sse4_2", "avx"])
HASWELL = OLD | {"fma", "avx2"}  # also Zen 1 to 3
ALDER_LAKE = HASWELL | {"avx_vnni"}
SKYLAKE_X = HASWELL | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
CASCADE_LAKE = SKYLAKE_X | {"avx512_vnni"}  # also Ice Lake
ZEN_4 = CASCADE_LAKE | {"avx512_bf16"}
SAPPHIRE_RAPIDS = ZEN_4 | {"avx_vnni", "amx_bf16", "amx_int8", "amx_tile"}


@pytest.mark.parametrize(
    ("flags", "tier"),
    [
        (frozenset(), tiers.OTHER),
        (OLD, tiers.OTHER),
        (HASWELL, tiers.AVX2),
        (HASWELL | {"avx512f"}, tiers.AVX2),  # Knights Landing has no more of AVX-512 than that
        (ALDER_LAKE, tiers.AVX2_VNNI),
        (SKYLAKE_X, tiers.AVX512),
        (CASCADE_LAKE, tiers.AVX512_VNNI),
        (ZEN_4, tiers.AVX512_BF16),
        (SAPPHIRE_RAPIDS, tiers.AVX512_BF16),
    ],
)
def test_a_processor_is_in_the_tier_of_its_flags(flags, tier):
    assert tiers.tier_of(flags, {}) is tier


@pytest.mark.parametrize(
    ("flags", "environment", "tier"),
    [
        (ZEN_4, {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}, tiers.AVX2),
        (ZEN_4, {"ONEDNN_MAX_CPU_ISA": "avx2"}, tiers.AVX2),
        (ZEN_4, {"DNNL_MAX_CPU_ISA": "AVX2"}, tiers.AVX2),
        (ZEN_4, {"ATEN_CPU_CAPABILITY": "avx2"}, tiers.AVX2),
        (ZEN_4, {"ATEN_CPU_CAPABILITY": "default"}, tiers.OTHER),
        (ZEN_4, {"ONEDNN_MAX_CPU_ISA": "SSE41"}, tiers.OTHER),
        (ZEN_4, {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"}, tiers.AVX2),  # it has AVX-512's VNNI alone
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"}, tiers.AVX2_VNNI),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, tiers.AVX512),
        (ZEN_4, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, tiers.AVX512_VNNI),
        (ZEN_4, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, tiers.AVX512_BF16),
        (ZEN_4, {"ONEDNN_MAX_CPU_ISA": "ALL", "ATEN_CPU_CAPABILITY": "avx512"}, tiers.AVX512_BF16),
        # Nothing is added.
        (HASWELL, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "ATEN_CPU_CAPABILITY": "avx512"}, tiers.AVX2),
    ],
)
def test_the_environment_restricts_it(flags, environment, tier):
    assert tiers.tier_of(flags, environment) is tier


def test_the_table():
    """What holds of all rows, and the one thing that each adds to the row before."""
    table = [one for one in vars(tiers).values() if isinstance(one, tiers.Tier)]
    names = [tier.name for tier in table]
    assert len(set(names)) == len(names)
    found = {tier.name: (tier.dtype, tier.int8_exact, tier.int4, tier.fp8_cache) for tier in table}
    assert found == {
        "cpu": ("float32", True, False, False),
        "cpu-avx2": ("float32", False, False, False),
        "cpu-avx2-vnni": ("float32", True, False, False),
        "cpu-avx512": ("float32", False, True, True),
        "cpu-avx512-vnni": ("float32", True, True, True),
        "cpu-avx512-bf16": ("bfloat16", True, True, True),
        "gpu": ("auto", True, True, True),
    }
    # What saturates is also slow: the two are the same missing instruction.
    assert all(tier.int8_exact for tier in table if tier.int8_fast)


def test_flags_are_read_as_linux_writes_them(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512f\nbugs\t\t: x\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert tiers.cpu_flags(file) == {"fpu", "avx2", "avx512f"}
    file.write_text("Features\t: asimd bf16\n")
    assert tiers.cpu_flags(file) == frozenset()
    assert tiers.cpu_flags(tmp_path / "missing") == frozenset()


RESTRICTED = [{}, {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}]


@pytest.mark.parametrize("environment", RESTRICTED, ids=["as-it-is", "avx2"])
def test_it_agrees_with_pytorch(environment):
    """What PyTorch itself says of this machine, as it is and restricted: whether it has AVX-512, and bf16."""
    code = """
import json, torch
from tuneserve import checkpoint
from tuneserve.machine import tiers
from tuneserve.v1 import checkpoint_pb2 as pb
tier = tiers.this_tier()
wide, native = torch.backends.cpu.get_cpu_capability() == "AVX512", torch.cpu._is_avx512_bf16_supported()
print(json.dumps([tier.int4, tier.dtype == "bfloat16", wide, wide and native]))
"""
    unset = {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"}
    kept = {key: value for key, value in os.environ.items() if key not in unset}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120, env=kept | environment
    )
    int4, bf16, wide, native = json.loads(result.stdout)
    if not Path("/proc/driver/nvidia/version").exists():
        assert (int4, bf16) == (wide, native)


@pytest.fixture
def foreign(tmp_path):
    """foreign(weights, activations) is the directory of a checkpoint that another quantized."""

    def make(weights, activations):
        group = {"weights": weights, "input_activations": activations}
        config = {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return make


INT8, INT4, FP8 = ({"type": kind, "num_bits": bits} for kind, bits in (("int", 8), ("int", 4), ("float", 8)))


def test_what_saturates(tmp_path, foreign):
    ours = pb.Checkpoint(quantization="w8a8", lineage=[checkpoint.step("quantize", "x", {"scheme": "w8a8"}, ())])
    assert "--reduce-range" in tiers.saturation(ours, tmp_path, tiers.AVX2)
    assert "--reduce-range" in tiers.saturation(ours, tmp_path, tiers.AVX512)
    assert not tiers.saturation(ours, tmp_path, tiers.AVX512_VNNI)
    ours.lineage[-1].config["reduce_range"] = True
    assert not tiers.saturation(ours, tmp_path, tiers.AVX2)
    others = pb.Checkpoint(quantization="compressed-tensors")
    for weights, activations, saturates in ((INT8, INT8, True), (INT8, None, False), (INT4, None, False)):
        assert bool(tiers.saturation(others, foreign(weights, activations), tiers.AVX2)) == saturates
    assert not tiers.saturation(others, foreign(FP8, FP8), tiers.AVX2)
    assert not tiers.saturation(pb.Checkpoint(quantization="int8"), tmp_path, tiers.AVX2)


def test_where_it_was_measured(monkeypatch):
    assert tiers.measured_on().split()[0] == tiers.this_tier().name
    monkeypatch.setattr(tiers, "this_tier", lambda: tiers.AVX2)
    assert tiers.measured_on() == "cpu-avx2"
    monkeypatch.setattr(tiers, "this_tier", lambda: tiers.GPU)
    assert tiers.measured_on().startswith("gpu")
