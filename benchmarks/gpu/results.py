"""The result files of a run: a JSON file for each phase, always whole, so that a run that was cut off can go on."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tuneserve.benchmarks.gpu.shapes import Roofs
from tuneserve.benchmarks.serving.interleave import Sample


@dataclass
class Result:
    """The rounds of a phase so far."""

    model: str
    seconds: float = 0.0  # of the phase, so far
    is_complete: bool = False
    starts: dict[str, float] = field(default_factory=dict)  # seconds, of systems that started at the same time
    missing: list[str] = field(default_factory=list)  # what could not be measured, and why
    # By load and system: the roof, in texts or output tokens a second, and what each round measured.
    roofs: dict[str, dict[str, float | None]] = field(default_factory=dict)
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Result | None":
        """Returns what a file holds; None if there is none."""
        if not path.exists():
            return None
        found = cls(**json.loads(path.read_text(encoding="utf-8")))
        for systems in found.samples.values():
            systems |= {name: [Sample(**one) for one in rounds] for name, rounds in systems.items()}  # type: ignore[arg-type]
        return found

    def write(self, path: Path) -> None:
        """Writes the file."""
        write(path, asdict(self))


def write(path: Path, found: object) -> None:
    """Writes a JSON file, whole or not at all."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def roofs(out: Path) -> Roofs | None:
    """Returns the measured roofs; None if there are none yet."""
    path = out / "roofs.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return Roofs(found["bandwidth"], found["operations"])
