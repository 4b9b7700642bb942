"""What is measured when, on cards with more and with less memory."""

import os
from pathlib import Path

import pytest

from tuneserve.benchmarks.gpu import phases
from tuneserve.benchmarks.gpu.phases import Phase
from tuneserve.benchmarks.gpu.shapes import MODELS
from tuneserve.machine.tiers import Tier

GIB = 1 << 30


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(phases.systems, "has_rust", lambda: True)


def variants(found: list[Phase], model: str, several: bool = False) -> list[list[str]]:
    here = [phase for phase in found if phase.shape and phase.shape.name == model and phase.several == several]
    return [[one.label for one in phase.variants] for phase in here]


@pytest.mark.parametrize(("memory", "groups"), [(139 * GIB, 1), (80 * GIB, 2), (24 * GIB, 7)])
def test_every_system_and_scheme_is_in_a_phase_that_fits(memory: int, groups: int) -> None:
    found = phases.phases(False, memory)
    assert found[0] == Phase(phases.ROOFS, found[0].seconds)
    for shape in MODELS:
        here = variants(found, shape.name)
        systems = ["ours", "vllm serve", "LLM", *([] if shape.pooling else ["vllm serve in Rust"])]
        every = [f"{name}, bf16" for name in systems] + [f"ours, {scheme}" for scheme in ("fp8", "w8a8", "w4a16")]
        assert [label for group in here for label in group] == every
        assert len(here) == (groups if shape.name == "llama-8b" else 1) or memory == 24 * GIB
    assert len({phase.name for phase in found}) == len(found)


def test_small_models_are_one_phase_and_the_plan_is_eight_minutes() -> None:
    found = phases.phases(False, 139 * GIB)
    models, several = [shape.name for shape in MODELS], ["minilm-processes", "llama-1b-processes"]
    assert [phase.name for phase in found] == ["roofs", *models, *several]
    assert sum(phase.seconds for phase in found) <= 8 * 60


@pytest.mark.parametrize(("memory", "groups"), [(139 * GIB, 1), (80 * GIB, 1), (24 * GIB, 2)])
def test_small_models_are_measured_with_several_processes(memory: int, groups: int) -> None:
    found = phases.phases(False, memory)
    for model in ("minilm", "llama-1b"):
        here = variants(found, model, several=True)
        assert [label for group in here for label in group] == [
            *("ours, bf16", "ours with 2 processes, bf16", "ours with 4 processes, bf16")
        ]
        assert len(here) == (groups if model == "llama-1b" else 1)
    assert not variants(found, "llama-8b", several=True)


def test_the_card_says_how_much_memory_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for mebibytes, groups in (("143771", 1), ("81559", 2)):
        tool.write_text(f"#!/bin/sh\necho {mebibytes}\necho another\n")
        tool.chmod(0o755)
        assert len(variants(phases.planned(tiny=False), "llama-8b")) == groups


def test_on_a_cpu_each_system_is_in_one_of_the_tiny_phases(monkeypatch: pytest.MonkeyPatch, tier: Tier) -> None:
    monkeypatch.setattr(phases, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(phases, "this_tier", lambda: tier)
    found = phases.planned(tiny=True)
    [bert], [llama] = variants(found, "tiny-bert"), variants(found, "tiny-llama")
    assert variants(found, "tiny-bert", several=True) == [["ours, bf16", "ours with 2 processes, bf16"]]
    assert bert == ["ours, bf16", "LLM, bf16", "ours, w8a8"]
    four_bits = "ours, w4a16" if tier.int4 else "ours, w8a8"
    assert llama == ["ours, bf16", "vllm serve, bf16", "vllm serve in Rust, bf16", four_bits]


def test_time_that_a_phase_leaves_goes_to_the_next_ones() -> None:
    left = [Phase("a", 30), Phase("b", 90), Phase("c", 60)]
    assert [phases.share(left, seconds) for seconds in (180, 360)] == [30, 60]
    assert phases.share(left[1:], 150) == 90
    assert phases.share(left[2:], 100) == 100
