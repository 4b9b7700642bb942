"""`tuneserve demo`: from labelled text to gRPC answers, with real models and data that need no hub.

Fetches an encoder, a chat model, movie sentences rated by people, and questions with answers; fine-tunes both models
with LoRA, merges them, quantizes them to w8a8 with the quality measured through vLLM, serves both, and calls them. An
encoder beside them finds documents, from which questions are answered; a gate tells those that have no answer there.
"""

import json
import logging
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import yaml
from rich.console import Console
from rich.table import Table

from tuneserve import samples
from tuneserve.call.evaluate import evaluate_command
from tuneserve.client.documents import AnswerParts
from tuneserve.errors import StepFailed, UserError
from tuneserve.evaluation import significance
from tuneserve.evaluation.measurement import calling
from tuneserve.finetune import config as finetune_config
from tuneserve.finetune.pipeline import finetune
from tuneserve.machine.tiers import this_tier
from tuneserve.quantize import Report, quantize
from tuneserve.samples.packages import write_jsonl
from tuneserve.serving import launched
from tuneserve.v1 import answer_pb2, classification_pb2
from tuneserve.v1.answer_pb2_grpc import AnswerServiceStub
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

logger = logging.getLogger(__name__)

SENTENCES = (
    "A tender, funny and beautifully acted film.",
    "Two hours of my life that I will never get back.",
    "The plot is thin, but the actors carry it with charm.",
)
# One that no document answers, and one that has its answer in a document.
QUESTIONS = ("What is the capital of France?", "How high may a fence be without a permit?")
# Documents in the index: enough to look for one of them, and read in some seconds.
DOCUMENTS = 100
# Number of conversations to train on, by dtype. Float32 is for CPUs without native bf16, where each takes several times
# as long. After 100 in bf16, int8 cost 8 % of perplexity, and 13 % at most; after 300, 2 % and 5 %.
CHATS = {"float32": 100, "bfloat16": 300, "auto": 300}
# The largest drops allowed, with 95 % confidence, of accuracy and of perplexity. The chat model is small and loses some
# 2 % (4 % with weights of reduced range), and its 80 rows show that to within another 4 %.
MAX_DROP = {"sentiment": 0.015, "chat": 0.15}
SHOWN_METRICS = (
    "tuneserve_predictions_total",
    "tuneserve_texts_classified_total",
    "tuneserve_answers_total",
    "tuneserve_model_load_seconds",
    "vllm:prompt_tokens_total",
)


def settings(output: Path) -> dict[str, dict[str, Any]]:
    """The settings of the two training runs, as in a YAML file."""
    return {
        "sentiment": {
            "task": "sequence-classification",
            "base_model": str(samples.sentiment_encoder()),
            "train": str(samples.sentiment()),
            "output": str(output / "sentiment"),
            "test_size": 0.2,
            "max_train_rows": 1500,
            "max_test_rows": 1500,
            "max_length": 64,
            "epochs": 2,
            "batch_size": 32,
            "learning_rate": 1e-3,
        },
        "chat": {
            "task": "generation",
            "base_model": str(samples.chat_model()),
            "train": str(samples.questions()),
            "output": str(output / "chat"),
            "test_size": 0.1,
            "max_train_rows": CHATS[this_tier().dtype],
            "max_test_rows": 100,
            "max_length": 128,
            "epochs": 1,
            "batch_size": 8,
            "learning_rate": 5e-4,
            "lora_rank": 8,
            "lora_alpha": 16,
            "lora_targets": ["q_proj", "v_proj"],
        },
    }


def run(output: Path) -> None:
    """Runs the whole demo; the models stay in `output`, replacing those of an earlier run.

    In any case it ends with tables of what was done. Raises UserError or StepFailed if a step fails.
    """
    console = Console(highlight=False)
    steps, reports = Steps(console), dict[str, Report]()
    try:
        _run(output, console, steps.step, reports)
    finally:
        console.rule("[bold]Result", align="left")
        console.print(_results(reports))
        console.print(steps.table())
        if steps.failed:
            # Together with the error and the hint, these are the last three lines.
            print(f"failed: {steps.failed}", file=sys.stderr, flush=True)
    console.print(f"The models are in {output}/. Serve them yourself:")
    console.print(
        f"  tuneserve serve --config {output}/server.yaml",
        soft_wrap=True,
    )


class Steps:
    """The steps that were started, and how long each took."""

    def __init__(self, console: Console) -> None:
        self.failed = ""  # the step that an error ended
        self._console = console
        self._seconds: dict[str, float] = {}

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Runs and times the block as a step. An unexpected error is printed with its traceback, and raised as
        StepFailed.
        """
        self._console.rule(f"[bold]{title}", align="left")
        started, self.failed = time.monotonic(), title
        try:
            yield
        except (UserError, StepFailed):
            raise
        except Exception as error:
            logger.exception("%s", title)
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise StepFailed(said, "this is a defect: please report it, with the traceback above") from error
        finally:
            self._seconds[title] = time.monotonic() - started
        self.failed = ""

    def table(self) -> Table:
        """A table of the time that each step took, and of what failed."""
        table = Table("where the time went", "seconds")
        for title, seconds in self._seconds.items():
            table.add_row(f"{title}: failed" if title == self.failed else title, f"{seconds:.0f}")
        table.add_row("all", f"{sum(self._seconds.values()):.0f}")
        return table


def _run(
    output: Path,
    console: Console,
    stage: Callable[[str], AbstractContextManager[None]],
    reports: dict[str, Report],
) -> None:
    with stage("Fetch the sample models and data"):
        if not find_spec("lancedb"):  # here, and not after minutes
            raise UserError("LanceDB is missing, which keeps the documents", "pip install 'tuneserve[answer]'")
        runs = settings(output.resolve())
        for name, values in runs.items():
            console.print(f"{name}: {Path(values['base_model']).name}, {Path(values['train']).name}")
        console.print(f"documents: {samples.e5().name}, {samples.faq().name}")
    for name, values in runs.items():
        with stage(f"Fine-tune {name} with LoRA, merge, verify"):
            finetune(finetune_config.parse(values, Path.cwd(), name), overwrite=True)
    for name in runs:
        with stage(f"Quantize {name} to w8a8, measured through vLLM"):
            smaller = output / f"{name}-w8a8"
            reports[name] = quantize(output / name, smaller, "w8a8", max_drop=MAX_DROP[name], overwrite=True)
    with stage("Index documents, and fit a gate: which questions they answer"):
        gate = _index(console, output.resolve())
    with stage("Serve both, and the index, and call them"):
        models = {name: output.resolve() / f"{name}-w8a8" for name in runs}
        _call(console, write_server_file(output.resolve(), models, gate))


def write_server_file(output: Path, models: Mapping[str, Path], gate: Path | None) -> Path:
    """Writes the file of a server of these models, and of an index of documents with its encoder. Returns its path."""
    file = output / "server.yaml"
    paths = {**models, "encoder": samples.e5()}
    index = {"path": str(output / "faq"), "embedding": "encoder"} | ({"gate": str(gate)} if gate else {})
    content = {"models": {name: {"path": str(path)} for name, path in paths.items()}, "indexes": {"faq": index}}
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return file


def _index(console: Console, output: Path) -> Path:
    """Writes documents to the index, and fits a gate to the questions that they answer. Returns its path."""
    with samples.faq().open(encoding="utf-8") as lines:
        rows = {f"faq-{number}": json.loads(line) for number, line in enumerate(islice(lines, DOCUMENTS))}
    # Without their questions, which would be found word by word: the gate would learn that others have no answer.
    documents = [answer_pb2.Document(id=id_, text=row["positive"]) for id_, row in rows.items()]
    questions, gate = output / "questions.jsonl", output / "gate.json"
    write_jsonl(questions, ({"query": row["query"], "documents": [id_]} for id_, row in rows.items()))
    file = write_server_file(output, {}, None)
    with launched("--config", str(file)) as server:
        with calling(server.addresses.grpc) as channel:
            request = answer_pb2.UpsertDocumentsRequest(index="faq", documents=documents)
            AnswerServiceStub(channel).UpsertDocuments(request, timeout=300)
        console.print(f"  {len(documents)} documents, and as many questions:")
        options = ("--index", "faq", "--gate", str(gate), "--target", server.addresses.grpc)
        evaluate_command.main([*options, str(questions)], standalone_mode=False)
    return gate


def _call(console: Console, file: Path) -> None:
    with launched("--config", str(file)) as server, calling(server.addresses.grpc) as channel:
        request = classification_pb2.ClassifyRequest(
            model="sentiment", inputs=[classification_pb2.ClassifyInput(text=text) for text in SENTENCES]
        )
        answer = ClassificationServiceStub(channel).Classify(request, timeout=60)
        for text, result in zip(SENTENCES, answer.results, strict=True):
            console.print(f"  {result.labels[0].label:<9}{result.labels[0].score:.2f}  {text}")
        _answer(console, channel)
        console.print("\n  from /metrics:")
        with urllib.request.urlopen(f"http://{server.addresses.metrics}/metrics", timeout=10) as page:
            for line in page.read().decode().splitlines():
                if line.startswith(SHOWN_METRICS):
                    console.print(f"  {line}", markup=False)
    console.print("  stopped")


def _answer(console: Console, channel: grpc.Channel) -> None:
    """Has questions answered from the documents in the index."""
    stub = AnswerServiceStub(channel)
    for question in QUESTIONS:
        console.print(f"\n  {question}", soft_wrap=True)
        parts = AnswerParts()
        asked = answer_pb2.AnswerMessage(role="user", content=question)
        for part in stub.Answer(answer_pb2.AnswerRequest(index="faq", messages=[asked], limit=1), timeout=60):
            parts.add(part)
        answer = parts.joined()
        if answer.end.outcome == answer_pb2.ANSWER_OUTCOME_NOT_FOUND:
            console.print("  The documents have no answer.")
        for one in answer.end.citations:
            said = f"  {answer.text[one.start : one.end]} [{one.document_id}, {one.document_start}-{one.document_end}]"
            console.print(said, markup=False, soft_wrap=True)


def _results(reports: dict[str, Report]) -> Table:
    table = Table("model", "step", "quality", "95 % interval", "rows", "size, MB", "through gRPC")
    for name, report in reports.items():
        headline = report.headline
        rows = (("merged", report.before, report.size_before), ("w8a8", report.after, report.size_after))
        for step, measured, size in rows:
            table.add_row(
                name,
                step,
                f"{headline} {measured.metrics[headline]:.4f}",
                "{:.3g} to {:.3g}".format(*significance.interval(headline, measured.row_sums)),
                str(measured.rows),
                f"{size / 1e6:.1f}",
                f"{measured.throughput:.0f} {measured.unit}",
            )
    return table
