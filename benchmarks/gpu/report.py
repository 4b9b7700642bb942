"""The results of a run as one page: what was measured so far, each rate beside the roof of the device."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tuneserve.benchmarks.claims import METHOD, Claim, interval, ratios
from tuneserve.benchmarks.gpu.phases import OURS, ROOFS, SERVE, Phase, Variant
from tuneserve.benchmarks.gpu.results import Result
from tuneserve.benchmarks.serving.interleave import Sample

_OURS = Variant(OURS, "bf16").label
# The claims of a phase are those whose systems it has.
_CLAIMS = [
    Claim(f"{OURS}, to {SERVE}", _OURS, Variant(SERVE, "bf16").label),
    *(Claim(f"{count} processes, to one", Variant(OURS, "bf16", count).label, _OURS) for count in (2, 4)),
]
_HEADING = ("", "per second", "roof", "of it", "TTFT, ms", "ITL, ms", "TPOT, ms", "front end", "engine", "client")


def write(phases: Sequence[Phase], out: Path) -> Path:
    """Writes OUT/report.md from the files of the phases."""
    machine = json.loads((out / "machine.json").read_text(encoding="utf-8"))
    lines = [f"# {', '.join(machine['gpus']) or machine['cpu']}", ""]
    lines += [f"Machine: {machine['tier']}, {machine['cpu']}. {machine['versions']}.", ""]
    lines += [
        "`python -m tuneserve.benchmarks.gpu`. Weights are random and answers mean nothing. Rates are texts or output "
        f"tokens a second. {METHOD}. Times are medians, CPU times milliseconds for each text or token. A roof is what "
        "matrix products and reads of the weights alone would allow. Our server is one process, unless it says how "
        "many. The front end is the process that was started: of vLLM's front end in Rust, and of ours with several "
        "processes, only what starts them.",
    ]
    for phase in phases:
        lines += ["", f"## {phase.name}", ""]
        if phase.name == ROOFS:
            lines += _roofs(out)
        else:
            found = Result.read(out / f"{phase.name}.json")
            lines += _model(found) if found else ["Not measured yet."]
    (path := out / "report.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def _roofs(out: Path) -> list[str]:
    if not (path := out / f"{ROOFS}.json").exists():
        return ["Not measured yet."]
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        f"{found['bandwidth'] / 1e9:,.0f} GB/s (copy {found['copied'] / 1e9:,.0f}, read {found['read'] / 1e9:,.0f})."
    ]
    lines += [f"{name}: {value / 1e12:,.1f} T operations a second." for name, value in found["operations"].items()]
    lines += [f"{name}: not measured: {why}" for name, why in found["missing"].items()]
    # Lines of a paragraph would be joined.
    return [f"- {line}" for line in lines]


def _model(found: Result) -> list[str]:
    state = "" if found.is_complete else ", cut off"
    lines = [f"{found.seconds:.0f} s{state}. Seconds to start, all at the same time: {_starts(found)}."]
    for load, systems in found.samples.items():
        if not any(systems.values()):
            continue
        lines += ["", f"### {load}", "", _line(_HEADING), "|---|" + "---:|" * (len(_HEADING) - 1)]
        lines += [_line(_cells(name, each, found.roofs[load][name])) for name, each in systems.items() if each]
        rates = {name: [one.rate for one in each] for name, each in systems.items()}
        lines += [line for one in ratios(_CLAIMS, rates) for line in ("", f"{one.claim.name}: {one.interval.text(2)}")]
    lines += ["", *(f"- Not measured: {reason.splitlines()[0]}" for reason in found.missing)] if found.missing else []
    return lines


def _starts(found: Result) -> str:
    return "; ".join(f"{name} {seconds:.0f}" for name, seconds in found.starts.items()) or "none"


def _cells(name: str, samples: Sequence[Sample], roof: float | None) -> list[str]:
    rate = interval([one.rate for one in samples])
    roofs = [f"{roof:,.0f}", f"{rate.mean / roof:.0%}"] if roof else ["", ""]
    times = (_median([getattr(one, key) for one in samples]) for key in ("first_token_ms", "gap_ms", "token_ms"))
    cpu = (_median([getattr(one, key) for one in samples]) for key in ("front_ms", "engine_ms", "client_ms"))
    return [name, rate.text(1), *roofs, *times, *cpu]


def _median(values: Sequence[float | None]) -> str:
    found = [value for value in values if value is not None]
    return f"{median(found):,.2f}" if found else ""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
