"""The results of `make bench`, as tables in a terminal and in a file."""

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from statistics import median

import click
from rich.console import Console
from rich.table import Table

from tuneserve.benchmarks.claims import METHOD, MIN_ROUNDS, Claim, Ratio, interval, ratios
from tuneserve.benchmarks.machine import machine
from tuneserve.benchmarks.serving.interleave import Sample
from tuneserve.benchmarks.serving.overload import Overload

RESULTS = Path(__file__).parents[1] / "results"
# If unrelated programs use this many cores or more, the results are not valid.
DISTURBED_CORES = 0.1
# Of texts that two forms of one model answer alike: rounding and 8 bits may turn those on the border.
_SAME = 0.95


@dataclass(frozen=True)
class Answers:
    """How many texts got the same answer from a peer as from ours."""

    same: int
    texts: int

    @property
    def mark(self) -> str:
        """A peer that answers otherwise does other work."""
        return "" if self.same >= _SAME * self.texts else "answers otherwise"


@dataclass
class Report:
    """All results, by comparison."""

    rounds: int
    command: str = "make bench"
    regime: str = "cost"  # the module that describes it
    name: str = ""  # in the name of its file
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    starts: dict[str, list[float]] = field(default_factory=dict)  # seconds
    ratios: list[Ratio] = field(default_factory=list)
    overload: Overload | None = None
    missing: list[str] = field(default_factory=list)  # what could not be measured, and why
    answers: dict[str, Answers] = field(default_factory=dict)  # by peer

    def add(
        self, name: str, samples: dict[str, list[Sample]], rates: Sequence[Claim], cpu: Sequence[Claim] = ()
    ) -> None:
        """Adds a comparison's rounds, and what is promised of rates and of CPU times."""
        self.samples[name] = samples
        self.ratios += ratios(rates, {scenario: [one.rate for one in each] for scenario, each in samples.items()})
        self.ratios += ratios(cpu, {scenario: [one.system_ms for one in each] for scenario, each in samples.items()})

    @property
    def others_cores(self) -> float | None:
        """Cores that other programs used while this one measured, in the median job; None without jobs."""
        used = [one.others_cores for samples in self.samples.values() for each in samples.values() for one in each]
        return median(used) if used else None

    def to_json(self) -> dict[str, object]:
        """One object with every measurement."""
        return {
            "machine": machine(),
            "method": METHOD,
            "rounds": self.rounds,
            "others_cores": self.others_cores,
            "ratios": [ratio.to_json() for ratio in self.ratios],
            "starts_seconds": {name: [round(value, 2) for value in values] for name, values in self.starts.items()},
            "samples": {
                name: {scenario: [_rounded(one) for one in each] for scenario, each in samples.items()}
                for name, samples in self.samples.items()
            },
            "overload": self.overload.to_json() if self.overload else None,
            "missing": self.missing,
            "answers": {name: asdict(one) for name, one in self.answers.items()},
        }


@dataclass(frozen=True)
class _Rows:
    """A table before it is drawn: the first column is text, the others are right-aligned."""

    title: str
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]


def compared(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the arguments of a comparison to a command: two checkpoints, and how many rounds."""
    help = f"Rounds of each comparison. Fewer than {MIN_ROUNDS} show ratios, but can't show that a promise is kept."
    rounds = click.option("--rounds", type=click.IntRange(1), default=MIN_ROUNDS, show_default=True, help=help)
    path = click.Path(path_type=Path, exists=True, file_okay=False)
    return click.argument("classifier", type=path)(click.argument("chat", type=path)(rounds(command)))


def conclude(report: Report, file: Path | bool) -> None:
    """Prints the tables and one JSON object, and writes `file`, or where it is true one of benchmarks/results.

    Exits with status 1 unless all promises are kept and everything was measured.
    """
    show(report)
    if file:
        click.echo(f"written: {write(report, file if isinstance(file, Path) else None)}", err=True)
    click.echo(json.dumps(report.to_json(), separators=(",", ":")))
    if report.missing or any(ratio.verdict not in (None, "kept") for ratio in report.ratios):
        sys.exit(1)


def show(report: Report) -> None:
    """Prints the tables."""
    console = Console()
    for table in _tables(report):
        drawn = Table(title=table.title, title_justify="left")
        for index, heading in enumerate(table.heading):
            drawn.add_column(heading, justify="right" if index else "left")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
    for line in _notes(report):
        console.print(line)


def write(report: Report, path: Path | None = None) -> Path:
    """Writes the tables to a file, or to a new one of benchmarks/results, and returns it."""
    facts, today = machine(), date.today().isoformat()
    path = path or _new(f"{today}-{report.name}{facts['kind']}")
    lines = [f"# {today}, {report.name.replace('-', ' ')}{facts['kind'].upper()}", ""]
    lines += [f"Machine: {facts['tier']}, {facts['cpu']}. {facts['versions']}. Preloaded: {facts['preloaded']}.", ""]
    regime = f"regime in `benchmarks/serving/{report.regime}.py`"
    lines += [f"`{report.command}`, {report.rounds} rounds, {regime}. {METHOD}."]
    lines += [f"A promise is kept, or not, where the whole interval says so, from {MIN_ROUNDS} rounds on."]
    for table in _tables(report):
        lines += ["", f"## {table.title}", "", _line(table.heading), "|---|" + "---:|" * (len(table.heading) - 1)]
        lines += [_line(row) for row in table.rows]
    lines += ["", *_notes(report), ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _new(name: str) -> Path:
    """A result does not replace another one of its day."""
    path = RESULTS / f"{name}.md"
    for number in itertools.count(2):
        if not path.exists():
            break
        path = RESULTS / f"{name}-{number}.md"
    return path


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _tables(report: Report) -> list[_Rows]:
    tables, tier = [], machine()["tier"]
    if report.ratios:
        rows = [
            [one.claim.name, one.interval.text(2), str(one.interval.rounds), one.promise, one.verdict or ""]
            for one in report.ratios
        ]
        tables.append(_Rows(f"Ratios, on {tier}", ["ours", "ratio", "rounds", "promise", ""], rows))
    if report.starts:
        rows = [[name, interval(values).text(1)] for name, values in report.starts.items()]
        tables.append(_Rows(f"Start, or end of an engine, to the next answer, on {tier}", ["", "seconds"], rows))
    if report.answers:
        rows = [[name, f"{one.same} of {one.texts}", one.mark] for name, one in report.answers.items()]
        tables.append(_Rows("The answer that ours gives", ["", "texts", ""], rows))
    heading = ["", "per second", "TTFT, ms", "front end", "engine", "client"]
    for name, samples in report.samples.items():
        rows = [[scenario, *_cells(each)] for scenario, each in samples.items()]
        unit = "texts" if "classification" in name else "output tokens"
        tables.append(_Rows(f"{name.capitalize()}, on {tier}: {unit} a second; CPU ms each", heading, rows))
    if report.overload:
        rows = [
            [key.replace("_", " "), "-" if value is None else f"{value:,.6g}"]
            for key, value in report.overload.medians().items()
        ]
        title = f"Overload, on {tier}: {report.overload.times:g} times the peak, median of the rounds"
        tables.append(_Rows(title, ["", ""], rows))
    return tables


def _cells(samples: Sequence[Sample]) -> list[str]:
    first = [one.first_token_ms for one in samples if one.first_token_ms is not None]
    return [
        interval([one.rate for one in samples]).text(1),
        f"{median(first):,.0f}" if first else "",
        *(f"{median(cpu):.2f}" for cpu in zip(*((s.front_ms, s.engine_ms, s.client_ms) for s in samples), strict=True)),
    ]


def _notes(report: Report) -> list[str]:
    notes = [f"Not measured: {reason}" for reason in report.missing]
    if (used := report.others_cores) is not None:
        notes.append(f"Other programs used {used:.2f} cores of the machine in the median job.")
        if used > DISTURBED_CORES:
            notes.append("That is too much: the ratios are only rough, and the other figures are not valid.")
    return notes


def _rounded(sample: Sample) -> dict[str, float | None]:
    return {key: None if value is None else round(value, 3) for key, value in asdict(sample).items()}
