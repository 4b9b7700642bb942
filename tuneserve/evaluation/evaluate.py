"""Measures a checkpoint's quality and speed on held-out rows, through tuneserve's own server and engine.

The rows are those that finetune kept in the checkpoint and never trained on, or rows that the caller gives.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tuneserve import checkpoint
from tuneserve.checkpoint import entities
from tuneserve.checkpoint.rows import Row, read
from tuneserve.checkpoint.seen import unseen
from tuneserve.checkpoint.tasks import Headline
from tuneserve.errors import UserError
from tuneserve.evaluation import quality, significance
from tuneserve.evaluation.measurement import MODEL, PROMPTS, Measurement, measure_at
from tuneserve.evaluation.significance import Difference
from tuneserve.machine import tiers
from tuneserve.serving import launched, resident_bytes
from tuneserve.v1 import checkpoint_pb2 as pb

# Fields of a measurement with a value for each row.
_BY_ROW = ("predictions", "row_sums")

logger = logging.getLogger(__name__)


def measure(directory: Path, rows: Sequence[Row] | None = None) -> Measurement:
    """Serves a checkpoint and measures it on `rows`, by default its own held-out ones.

    Raises UserError for rows that don't fit the task; StepFailed if the server can't serve the checkpoint.
    """
    manifest = checkpoint.load(directory)
    rows = held_out_rows(directory, manifest) if rows is None else rows
    check_rows(manifest, rows)
    if warning := tiers.saturation(manifest, directory, tiers.this_tier()):
        logger.warning("%s: %s", directory, warning)
    logger.info("starting the server")
    with launched("--model", f"{MODEL}={directory.resolve()}") as server:
        measured = measure_at(server.addresses.grpc, manifest, rows, directory)
        return replace(measured, memory_bytes=resident_bytes(server.process.pid))


def compare(first: Path, second: Path, rows: Sequence[Row] | None = None) -> tuple[Headline, Difference]:
    """Measures two checkpoints on the same rows, by default the held-out ones of the first; compares the headline
    metric.

    Rows that one of them was trained on are left out (seen.py).
    Returns the metric and its difference. Raises UserError if they can't be compared.
    """
    manifests = checkpoint.load(first), checkpoint.load(second)
    for field in ("task", "labels", "problem_type"):
        if getattr(manifests[0], field) != getattr(manifests[1], field):
            raise UserError(
                f"{first} and {second} differ in {field}", "compare checkpoints of the same task and labels"
            )
    # The first was never trained on its own held-out rows.
    rows = unseen(held_out_rows(first, manifests[0]), [second]) if rows is None else unseen(rows, [first, second])
    old, new = measure(first, rows), measure(second, rows)
    headline = quality.headline(manifests[0].task, old.metrics)
    return headline, significance.compare(headline.name, old.row_sums, new.row_sums)


def show_comparison(headline: Headline, found: Difference) -> None:
    """Prints the result of `compare`."""
    change = found.second - found.first
    print(f"{headline.name:<20}{found.first:>10.4f}{found.second:>10.4f}")
    print(f"difference          {change:>+20.4f}   95 % interval: {found.low:+.4f} to {found.high:+.4f}")
    print(f"p                   {found.p_value:>20.4f}   {found.test}, two-sided")
    if math.isnan(found.p_value):
        print("not comparable: a model's scores contain NaN")
        return
    verdict = "better" if (change > 0) == headline.higher_is_better else "worse"
    print(f"the second is {verdict}" if found.is_significant else "no difference that these rows could show")


def held_out_rows(directory: Path, manifest: pb.Checkpoint) -> list[Row]:
    """Returns the held-out rows that a checkpoint keeps. Raises UserError if it keeps none, or if they were changed."""
    split = manifest.test_split
    if not split.path:
        raise UserError(f"{directory}: no held-out rows inside", "give rows to measure on with --data FILE.jsonl")
    return kept_rows(directory, split, "--data FILE.jsonl")


def kept_rows(directory: Path, split: pb.TestSplit, instead: str) -> list[Row]:
    """Returns rows that a checkpoint keeps. Raises UserError if they don't match its manifest, with `instead` as
    hint.
    """
    if checkpoint.sha256_file(directory / split.path) != split.sha256:
        raise UserError(
            f"{directory / split.path}: not the rows that {checkpoint.MANIFEST} names",
            f"copy the checkpoint again, or give rows with {instead}",
        )
    return read(directory / split.path)


def check_rows(manifest: pb.Checkpoint, rows: Sequence[Row]) -> None:
    """Raises UserError naming the first row that does not fit the checkpoint's task or labels."""
    if not rows:
        raise UserError("no rows to measure on", "give at least one row")
    for number, row in enumerate(rows, start=1):
        if problem := _problem(manifest, row):
            raise UserError(f"row {number}: {problem}")


def show(measurement: Measurement, as_json: bool = False) -> None:
    """Prints a measurement as a table, or as one line of JSON without the predictions."""
    [headline] = measurement.metrics.keys() & significance.METRICS
    low, high = significance.interval(headline, measurement.row_sums)
    if as_json:
        values = {key: value for key, value in asdict(measurement).items() if key not in _BY_ROW}
        # JSON has no infinity and no NaN.
        values["interval"] = [end if math.isfinite(end) else None for end in (low, high)]
        print(json.dumps(values | {"measured_on": tiers.measured_on()}))
        return
    for name, value in measurement.metrics.items():
        sure = f"   95 % interval: {low:.4f} to {high:.4f}" if name == headline else ""
        print(f"{name:<32}{value:>12.0f}" if name.endswith("/support") else f"{name:<32}{value:>12.4f}{sure}")
    how = f"   {PROMPTS} new prompts at once" if measurement.unit == "tokens/s" else ""
    print(f"{'output ' * bool(how) + measurement.unit:<32}{measurement.throughput:>12.1f}{how}")
    if single := measurement.latency:
        print(f"{'latency of one, ms':<32}{single.p50_ms:>12.1f}   95 % within {single.p95_ms:.1f}")
    if measurement.memory_bytes:
        print(f"{'memory of the server, MB':<32}{measurement.memory_bytes / 1e6:>12.0f}")
    print(f"{measurement.rows} rows in {measurement.seconds:.1f} s on {tiers.measured_on()}")


def _problem(manifest: pb.Checkpoint, row: Row) -> str:
    """Returns why a row does not fit, or an empty text."""
    if manifest.task == pb.TASK_GENERATION:
        if isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str) and row["prompt"]:
            return ""
        messages = row.get("messages")
        if not isinstance(messages, list) or len(messages) < 2 or messages[-1].get("role") != "assistant":
            return "needs `messages` that end with the assistant's answer, or `prompt` and `completion`"
        return ""
    if manifest.task in (pb.TASK_EMBEDDING, pb.TASK_RANKING):
        negatives = row.get("negatives", [])
        texts = [row.get("query"), row.get("positive"), *(negatives if isinstance(negatives, list) else [None])]
        return (
            ""
            if all(map(_is_text, texts))
            else "needs `query` and `positive`, and `negatives`, if any, as a list of texts"
        )
    if manifest.task == pb.TASK_TOKEN_CLASSIFICATION:
        if not _is_text(row.get("text")) or not isinstance(row.get("entities"), list):
            return "needs `text` and `entities`, or `tokens` and `tags`, lists of the same length"
        end = 0
        for start, stop, _ in (spans := [_span(one) for one in row["entities"]]):
            if not end <= start < stop <= len(row["text"]):
                return "`entities` are not {start, end, label} within the text, in order and without overlap"
            end = stop
        known: Sequence[str] = entities.types(manifest.labels)
        chosen = [label for _, _, label in spans]
    else:
        if not _is_text(row.get("text")):
            return "`text` must be a text that is not empty"
        name = "labels" if manifest.problem_type == pb.PROBLEM_TYPE_MULTI_LABEL else "label"
        if name not in row:
            return f"`{name}` is missing"
        if manifest.problem_type == pb.PROBLEM_TYPE_REGRESSION:
            return "" if isinstance(row["label"], int | float) else "`label` must be a number"
        chosen, known = row["labels"] if name == "labels" else [row["label"]], manifest.labels
    unknown = [label for label in chosen if label not in known]
    return f"label {unknown[0]!r} is unknown; allowed: {', '.join(known)}" if unknown else ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _span(one: Any) -> tuple[int, int, Any]:
    """Returns start, end and label; an empty span for an invalid one."""
    if isinstance(one, dict) and type(one.get("start")) is int and type(one.get("end")) is int:
        return one["start"], one["end"], one.get("label")
    return 0, 0, None
