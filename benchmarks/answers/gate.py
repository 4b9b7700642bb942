"""How well a gate tells whether an index answers a question: FAQs, each question with its answer and without it.

    python -m tuneserve.benchmarks.answers.gate WORK [--report FILE]

multilingual-e5-small finds the passages, untuned, tuned, and tuned with a cross-encoder after it: the models that
quality.py trains, and keeps in WORK. The questions about building are those that no training has seen. Each is judged
by gates that other questions fitted (cross-validation), and the intervals are of a bootstrap over questions. Some
questions are answered by more than one passage, so without their own answer they are not without any: `as read` counts
what a reader found (faqs.ALSO). The last column is of questions about something else: those of the other FAQ, judged by
a gate for this one. The last line of stdout is the result as JSON.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import grpc
from rich.table import Table

from tuneserve import samples
from tuneserve.benchmarks.answers import faqs, quality, served
from tuneserve.client import Client
from tuneserve.evaluation import gate_fitting
from tuneserve.evaluation.gate import features
from tuneserve.v1 import answer_pb2 as pb
from tuneserve.v1.answer_pb2_grpc import AnswerServiceStub

PROMISE = 0.85
LABELS: Sequence[tuple[str, Mapping[int, Sequence[int]]]] = (("as labelled", {}), ("as read", faqs.ALSO))
Found = Sequence[pb.SearchResponse]


def judged(
    questions: Sequence[tuple[str, int]],
    found: Found,
    also: Mapping[int, Sequence[int]],
    others: Sequence[tuple[str, int]],
    found_for_others: Found,
) -> dict[str, float]:
    """Returns what a gate does; `also` are further answers by a question's own, and `others` have none in the index."""
    rows = [
        row
        for place, ((question, answer), response) in enumerate(zip(questions, found, strict=True))
        for row in gate_fitting.seen(
            place, question, response.passages, {str(one) for one in (answer, *also.get(answer, ()))}
        )
    ]
    judge = gate_fitting.fitted(rows, "", "").answerable
    stopped = [
        judge.probability(features(question, response.passages)) < judge.threshold
        for (question, _), response in zip(others, found_for_others, strict=True)
    ]
    return gate_fitting.measured(rows) | {"others_stopped": sum(stopped) / len(stopped)}


def table(sets: Mapping[str, Mapping[str, float]]) -> Table:
    """Returns what was measured, for people."""
    names = ("set", "AUROC", "answerable pass", "others stopped", "another topic's stopped")
    drawn = Table(*names, title=f"Gates of FAQs: AUROC promised {PROMISE:g}")
    for name, got in sets.items():
        auroc = f"{got['auroc']:.3f} ({got['low']:.3f} to {got['high']:.3f})"
        drawn.add_row(name, auroc, *(f"{got[share]:.0%}" for share in ("passed", "stopped", "others_stopped")))
    return drawn


@click.command()
@click.argument("work", type=click.Path(path_type=Path, file_okay=False))
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Also write the table here.")
def main(work: Path, report: Path | None) -> None:
    """Measure gates on FAQs; the trainings of quality.py are kept in the folder WORK."""
    work.mkdir(parents=True, exist_ok=True)
    building, debian = faqs.zaragoza(), faqs.debian("debian-faq")
    models = {"encoder": samples.e5()} | quality.trainings(work, building)
    untuned, tuned = {"embedding": "encoder"}, {"embedding": "tuned", "ranking": "ranking"}
    asked = {building.name: building.questions[: faqs.HELD_OUT], debian.name: debian.questions}
    sets = {f"{faq.name}{kind}": faq for faq in (building, debian) for kind in ("", "-tuned")}
    indexes = {name: tuned if name.endswith("-tuned") else untuned for name in sets}
    measured = {}
    with served.answering(models, indexes) as (address, _), grpc.insecure_channel(address) as channel:
        search = AnswerServiceStub(channel).Search
        with Client(address) as client:
            for name, faq in sets.items():
                served.write(client, name, faq.documents())
        for name, faq in sets.items():
            questions, others = asked[faq.name], asked[(debian if faq is building else building).name]
            for ranked in (False, True) if indexes[name] is tuned else (False,):
                found, for_others = (quality.asked(search, name, some, ranked) for some in (questions, others))
                # Only the one FAQ was read.
                for labels, also in LABELS[: 2 if faq is building else 1]:
                    row = f"{name}{', ranked' if ranked else ''}, {labels}"
                    try:
                        measured[row] = judged(questions, found, also, others, for_others)
                    except ValueError as error:
                        click.echo(f"{row}: no gate: {error}", err=True)
    served.conclude(table(measured), {"sets": measured}, report)


if __name__ == "__main__":
    main()
