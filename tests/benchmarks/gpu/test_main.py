"""The whole program with tiny models, on the real vLLM: cut off in the middle, and going on from there."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tuneserve.benchmarks.gpu import phases
from tuneserve.benchmarks.gpu.loads import loads
from tuneserve.benchmarks.gpu.results import Result
from tuneserve.machine.runtime import has_nvidia_gpu

PROGRAM = [sys.executable, "-m", "tuneserve.benchmarks.gpu"]


def named(out: Path) -> list[str]:
    """The command lines of all processes that work for a directory."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if str(out) in line:
            found.append(line)
    return found


def has_rows(path: Path) -> bool:
    found = Result.read(path)
    return found is not None and any(rounds for systems in found.samples.values() for rounds in systems.values())


def test_the_plan_measures_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = subprocess.run([*PROGRAM, str(out), "--plan"], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert [line.split()[2] for line in lines] == [phase.name for phase in phases.planned(tiny=False)]
    assert sum(int(line.split()[0]) for line in lines) == pytest.approx(480, abs=3)
    assert not out.exists()


@pytest.mark.skipif(has_nvidia_gpu(), reason="this machine has a GPU")
def test_a_gpu_that_our_server_would_not_use_is_refused_at_once(tmp_path: Path) -> None:
    (tool := tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho A card, 550, 80000 MiB\n")
    tool.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [*PROGRAM, str(tmp_path / "out"), "--plan"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "nvidia-smi finds a GPU, but /proc/driver/nvidia is not there" in ended.stderr


def test_results_of_another_machine_are_not_added_to(tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text('{"gpus": ["another"]}')
    ended = subprocess.run([*PROGRAM, str(tmp_path), "--tiny"], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2
    assert "has results of another machine" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["machine.json"]


def test_no_phase_begins_that_would_be_cut_off(tmp_path: Path) -> None:
    arguments = [str(tmp_path), "--tiny", "--minutes", "0.1"]
    ended = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1
    assert "no time left for roofs, tiny-bert, tiny-llama, tiny-bert-processes" in ended.stdout
    assert not (tmp_path / "roofs.json").exists()


@pytest.mark.engine
def test_every_phase_has_its_rows_and_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*PROGRAM, str(out), "--tiny", "--minutes", "40"]
    first, unfinished, log = out / "roofs.json", out / "tiny-bert.json", tmp_path / "first.log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        while not has_rows(unfinished):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
    assert process.returncode == 1
    assert not psutil.wait_procs(started, 30)[1], "they outlived the run"
    assert not named(out)
    cut_off = Result.read(unfinished)
    assert cut_off is not None
    assert not cut_off.is_complete
    assert json.loads(first.read_text())["is_complete"]
    written = first.stat().st_mtime_ns

    ended = subprocess.run(command, capture_output=True, text=True, timeout=2400)
    logs = "\n".join(path.read_text(errors="replace") for path in (out / "logs").rglob("phase.log"))
    assert ended.returncode == 0, ended.stdout + ended.stderr + logs
    assert first.stat().st_mtime_ns == written, "it was measured already"
    assert "done  roofs" in ended.stdout
    for phase in phases.planned(tiny=True)[1:]:
        assert phase.shape is not None
        result = Result.read(out / f"{phase.name}.json")
        assert result is not None
        assert (result.is_complete, result.missing) == (True, []), logs
        labels = {variant.label for variant in phase.variants}
        assert result.starts.keys() == labels
        for load in loads(phase.shape, True, phase.several):
            names = {one.label for one in phase.variants if load.in_process or one.system != phases.IN_PROCESS}
            samples, roofs = result.samples[load.name], result.roofs[load.name]
            assert samples.keys() == roofs.keys() == names
            for name, rounds in samples.items():
                assert len(rounds) == 2
                assert all(0 < one.rate < (roofs[name] or 0) for one in rounds)
                if not phase.shape.pooling:
                    assert all(one.first_token_ms and one.gap_ms and one.token_ms for one in rounds)
    page = (out / "report.md").read_text()
    assert "Not measured" not in page
    assert page.count("ours, to vllm serve") == 2
    assert page.count("2 processes, to one") == 2
    assert not named(out)
