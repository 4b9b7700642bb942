"""The step from a checkpoint to a smaller one: check, measure, quantize, measure again, decide.

Both measurements go through the product's own server and vLLM, on the same rows, so that the numbers are those a
caller of the served model would see. A result that lost too much is never written.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tuneserve import card, checkpoint, quality, significance
from tuneserve.errors import StepFailed, UserError
from tuneserve.evaluate import held_out_rows, measure
from tuneserve.measurement import Measurement
from tuneserve.quantize import preflight, weights
from tuneserve.quantize.schemes import SCHEMES
from tuneserve.rows import Row
from tuneserve.rows import sha256 as sha256_rows
from tuneserve.significance import Difference
from tuneserve.v1 import checkpoint_pb2 as pb

logger = logging.getLogger(__name__)

# Written anew; everything else (tokenizer, chat template, held-out rows) is copied byte by byte.
_REPLACED = shutil.ignore_patterns(
    checkpoint.MANIFEST, "config.json", "*.safetensors", "*.safetensors.index.json", "recipe.yaml"
)


@dataclass(frozen=True)
class Report:
    """What quantizing changed."""

    task: pb.Task
    scheme: str
    before: Measurement
    after: Measurement
    # Bytes of the weight files.
    size_before: int
    size_after: int

    @property
    def drop(self) -> float:
        """How much quality was lost, as `quality.drop` counts it; negative when it got better."""
        return quality.drop(self.task, self.before.metrics, self.after.metrics)

    @property
    def flips(self) -> float | None:
        """Share of the rows whose predicted label or tags changed, right or wrong; None for generation."""
        pairs = list(zip(self.before.predictions, self.after.predictions, strict=True))
        return sum(old != new for old, new in pairs) / len(pairs) if pairs else None

    @property
    def headline(self) -> str:
        """The metric that is compared."""
        return quality.headline(self.task, self.before.metrics).name

    @cached_property
    def difference(self) -> Difference | None:
        """The headline metric's difference, with its interval, from what each row says; None where no row was kept."""
        if not (self.before.row_sums and self.after.row_sums):
            return None
        return significance.compare(self.headline, self.before.row_sums, self.after.row_sums)

    def table(self) -> str:
        """Returns the report as a few lines for people."""
        headline = self.headline
        old, new = self.before, self.after
        rows = [
            ("", "before", self.scheme, ""),
            (headline, f"{old.metrics[headline]:.4f}", f"{new.metrics[headline]:.4f}", self._lost()),
            ("size, MB", f"{self.size_before / 1e6:.1f}", f"{self.size_after / 1e6:.1f}",
             f"x {self.size_after / self.size_before:.2f}"),
            (old.unit, f"{old.throughput:.0f}", f"{new.throughput:.0f}",
             f"x {new.throughput / old.throughput:.2f}"),
        ]  # fmt: skip
        if found := self.difference:
            change = f"{found.low:+.4f} to {found.high:+.4f}, p {found.p_value:.2g}"
            rows.insert(2, ("  95 % of samples", "", "", change))
        if self.flips is not None:
            rows.append(("predictions changed", "", f"{self.flips:.2%}", f"of {new.rows} rows"))
        return "\n".join(f"{name:<20}{a:>10}{b:>10}   {note}".rstrip() for name, a, b, note in rows)

    def metrics(self) -> dict[str, float]:
        """Returns what the lineage keeps: the new metrics by name, and the old headline and cost as `*_before`."""
        speed = self.after.unit.replace("/s", "_per_second")
        return self.after.metrics | {
            f"{self.headline}_before": self.before.metrics[self.headline],
            "drop": self.drop,
            **self._interval(),
            "size_bytes": self.size_after,
            "size_bytes_before": self.size_before,
            speed: self.after.throughput,
            f"{speed}_before": self.before.throughput,
            **({} if self.flips is None else {"predictions_changed": self.flips}),
        }

    def _interval(self) -> dict[str, float]:
        found = self.difference
        return {"difference_low": found.low, "difference_high": found.high, "p_value": found.p_value} if found else {}

    def _lost(self) -> str:
        share = f"{abs(self.drop):.2%}" if self.task == pb.TASK_GENERATION else f"{abs(self.drop) * 100:.2f} points"
        return f"{share} {'worse' if self.drop > 0 else 'better'}" if self.drop else "same"


def quantize(
    source: Path,
    output: Path,
    scheme: str,
    max_drop: float | None = 0.01,
    data: Sequence[Row] | None = None,
    overwrite: bool = False,
    before: Measurement | None = None,
) -> Report:
    """Writes the checkpoint `source`, quantized, to `output`; returns and prints what that changed.

    `scheme`: a name in SCHEMES. `max_drop`: the most quality that may be lost, as a share (0.01 is one point of
    accuracy or F1, or 1 % of perplexity); None keeps any result. `data`: rows to measure on in place of the
    checkpoint's own held-out rows. `before`: a measurement of `source` on the same rows, made earlier.

    Raises UserError for a scheme that can't be served here, before anything slow; StepFailed, with nothing kept,
    when too much quality is lost or vLLM can't serve the result.
    """
    if max_drop is not None and not max_drop >= 0:  # also refuses NaN, which would let everything pass
        raise UserError(f"max_drop is {max_drop}", "allowed: 0 or more, e.g. 0.01 for one point of accuracy")
    if output.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{output}: inside the checkpoint that is read", "choose an output beside it")
    manifest = checkpoint.load(source)
    chosen, group_size = preflight.check(scheme, manifest, source, preflight.this_platform())
    rows = list(data) if data is not None else held_out_rows(source, manifest)
    with checkpoint.writing(output, overwrite) as target:
        if before is None:
            logger.info("measuring %s", source)
            before = measure(source, rows)
        logger.info("quantizing to %s", scheme)
        shutil.copytree(source, target, ignore=_REPLACED, dirs_exist_ok=True)
        weights.write(source, target, manifest, chosen, group_size)
        result = _result(manifest, source, scheme, max_drop, group_size, rows)
        checkpoint.seal(target, result)
        logger.info("measuring the result")
        after = measure(target, rows)
        report = Report(manifest.task, scheme, before, after, checkpoint.size_of(manifest), checkpoint.size_of(result))
        print(report.table())
        _gate(report, max_drop)
        result.lineage[-1].metrics.update(report.metrics())
        card.write(target, result)
        checkpoint.seal(target, result)
    print(f"\n{output}")
    return report


def _result(
    manifest: pb.Checkpoint,
    source: Path,
    scheme: str,
    max_drop: float | None,
    group_size: int | None,
    rows: Sequence[Row],
) -> pb.Checkpoint:
    result = pb.Checkpoint()
    result.CopyFrom(manifest)
    result.quantization = scheme
    settings = {"scheme": scheme, "max_drop": max_drop, "measured_on_sha256": sha256_rows(rows)}
    if group_size is not None:
        settings["group_size"] = group_size
    packages = weights.PACKAGES[SCHEMES[scheme].method]
    result.lineage.append(checkpoint.step("quantize", source.resolve().name, settings, packages))
    return result


def _gate(report: Report, max_drop: float | None) -> None:
    if max_drop is not None and not report.drop <= max_drop:  # NaN, from broken weights, is no pass
        headline = report.headline
        raise StepFailed(
            f"{report.scheme} loses too much: {headline} {report.before.metrics[headline]:.4f} before, "
            f"{report.after.metrics[headline]:.4f} after, "
            f"a drop of {report.drop:.4f} where {max_drop} is allowed; nothing was kept",
            "choose a scheme with more bits, or allow more with --max-drop",
        )
