"""Our server beside `vllm serve` and vLLM without a server, on one GPU, in minutes.

    python -m tuneserve.benchmarks.gpu OUT [--minutes 8]

Regime. First the roofs of the device: bandwidth and matrix products. Then four models, each a phase with a time of its
own: MiniLM, Llama 1B, BERT-base and Llama 8B, with random weights made on the device. The systems of a phase are up at
the same time with the same engine settings, one is under load, and they take turns in rounds, of which the first warms
up (cost.py): ours, `vllm serve`, with its front end in Rust where vLLM's wheel has it, and `LLM` in bf16; ours also in
fp8, w8a8 and w4a16. Texts one by one, many at a time, in batches; one stream and many.

Then MiniLM and Llama 1B on our server with one, two and four processes, each with an engine of its own, under more
connections and with a client of four processes. Their engines take turns on the device unless MPS runs. Llama 8B is not
measured so: one engine should keep the device busy, and each process would hold the weights again.

Each phase is a process, which is killed when its time is over, with everything that it started. Its file in OUT is
always whole, and OUT/report.md has all of them. The same command goes on with the phases that are not complete. It
needs neither network nor other files.

Ends with status 0 if all phases are complete.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

from tuneserve.benchmarks import processes
from tuneserve.benchmarks.gpu import phases, report, results
from tuneserve.benchmarks.gpu.phases import Phase
from tuneserve.benchmarks.machine import machine
from tuneserve.errors import UserError
from tuneserve.machine.runtime import has_nvidia_gpu

# Without a network, vLLM would look for its own address on it.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1"}
_FACTS = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit"
_WATCHED = "timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu,memory.used"
# A phase with less than this share of its time would be cut off.
_LEAST_SHARE = 0.5


def is_complete(phase: Phase, out: Path) -> bool:
    """Whether a phase has nothing left to do."""
    path = out / f"{phase.name}.json"
    return path.exists() and bool(json.loads(path.read_text(encoding="utf-8"))["is_complete"])


def run(phase: Phase, seconds: float, tiny: bool, out: Path) -> None:
    """Runs a phase for at most some seconds. Its output and the logs of its systems go to OUT/logs."""
    logs = out / "logs" / phase.name
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    until = time.monotonic() + seconds
    command = [sys.executable, "-m", "tuneserve.benchmarks.gpu.phase", str(out.resolve()), phase.name, str(until)]
    with tempfile.TemporaryDirectory(prefix="tuneserve-gpu-", ignore_cleanup_errors=True) as scratch:
        try:
            with (logs / "phase.log").open("wb") as output:
                if has_nvidia_gpu():
                    _watch(logs / "gpu.csv")
                process = subprocess.Popen(
                    [*command, *(["--tiny"] if tiny else [])],
                    # The phase ends with this process, however that ends.
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=os.environ | _OFFLINE | {"TMPDIR": scratch},
                )
                with suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
        finally:
            processes.end_children()
            for log in Path(scratch).rglob("*.log"):
                shutil.copy(log, logs / f"{log.parent.name}-{log.name}")


def facts(tiny: bool) -> dict[str, object]:
    """The machine. Raises UserError for one that has a GPU which our server would not use."""
    gpus = _nvidia_smi(_FACTS)
    if gpus and not has_nvidia_gpu():
        raise UserError("nvidia-smi finds a GPU, but /proc/driver/nvidia is not there: our server would not use it")
    variables = {key: value for key, value in os.environ.items() if key.startswith("VLLM_") and "/" not in value}
    return machine() | {"gpus": gpus, "gpu_fields": _FACTS, "variables": variables, "tiny": tiny}


def _nvidia_smi(fields: str) -> list[str]:
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def _watch(path: Path) -> None:
    """Writes clocks, power and memory twice a second, until the end of the phase."""
    with path.open("wb") as output:
        subprocess.Popen(
            ["nvidia-smi", f"--query-gpu={_WATCHED}", "--format=csv", "--loop-ms=500"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def show(planned: Sequence[Phase], left: Sequence[Phase], seconds: float) -> None:
    """Prints the plan: the phases, the seconds of those that are left, and their systems."""
    whole = sum(phase.seconds for phase in left)
    for phase in planned:
        time_ = f"{seconds * phase.seconds / whole:4.0f} s" if phase in left else "  done"
        click.echo(f"{time_}  {phase.name:12} {'; '.join(variant.label for variant in phase.variants)}")


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=8.0, show_default=True, help="In all.")
@click.option("--plan", is_flag=True, help="Only print the phases and their times.")
@click.option("--tiny", is_flag=True, help="Tiny models and loads: shows that everything works, on a CPU, too.")
def main(out: Path, minutes: float, plan: bool, tiny: bool) -> None:
    """Measure this machine's GPU; the results go to the directory OUT."""
    deadline = time.monotonic() + 60 * minutes
    here = facts(tiny)
    planned = phases.planned(tiny)
    left = [phase for phase in planned if not is_complete(phase, out)]
    show(planned, left, 60 * minutes)
    if plan:
        return
    if (path := out / "machine.json").exists() and json.loads(path.read_text(encoding="utf-8")) != here:
        raise click.UsageError(f"{out} has results of another machine, or of other versions or variables")
    out.mkdir(parents=True, exist_ok=True)
    results.write(path, here)
    processes.adopt_orphans()
    # A signal must not leave anything running on the device.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    while left:
        seconds = phases.share(left, deadline - time.monotonic())
        if seconds < _LEAST_SHARE * left[0].seconds:
            click.echo(f"no time left for {', '.join(phase.name for phase in left)}: run the command again")
            break
        click.echo(f"{left[0].name}: {seconds:.0f} s at most")
        run(left[0], seconds, tiny, out)
        report.write(planned, out)
        click.echo(f"{left[0].name}: {'complete' if is_complete(left[0], out) else 'cut off, see its log'}")
        left = left[1:]
    click.echo(f"written: {out / 'report.md'}")
    sys.exit(not all(is_complete(phase, out) for phase in planned))


if __name__ == "__main__":
    main()
