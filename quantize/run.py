"""From a checkpoint to a smaller one: check, measure, quantize, measure again, decide.

Both measurements go through tuneserve's own server and vLLM, on the same rows, so that the numbers are those that a
caller of the served model would see. A result that may have lost too much is never written (gate.py).

The held-out rows measure the first attempt and, if that does not pass, one other. That one is chosen on separate rows:
the best of many attempts on the rows that it is reported on would look better than it is.
"""

import logging
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from tuneserve import card, checkpoint
from tuneserve.checkpoint.rows import Row
from tuneserve.checkpoint.rows import sha256 as sha256_rows
from tuneserve.checkpoint.seen import keep, learned, trained_on, unseen
from tuneserve.errors import StepFailed, UserError
from tuneserve.evaluation.evaluate import held_out_rows, measure
from tuneserve.evaluation.measurement import Measurement
from tuneserve.machine import disk, tiers
from tuneserve.quantize import attempts, calibration, methods, preflight, race, sensitivity, weights
from tuneserve.quantize.attempts import Attempt
from tuneserve.quantize.gate import LOOKS, Gate
from tuneserve.quantize.preflight import Platform
from tuneserve.quantize.race import Ratio
from tuneserve.quantize.report import Report, comparison
from tuneserve.quantize.schemes import Recipe
from tuneserve.v1 import checkpoint_pb2 as pb

logger = logging.getLogger(__name__)

# Files that are written anew; all others (tokenizer, chat template, held-out rows) are copied byte by byte.
_REPLACED = shutil.ignore_patterns(
    checkpoint.MANIFEST, "config.json", "*.safetensors", "*.safetensors.index.json", "recipe.yaml"
)


def quantize(
    source: Path,
    output: Path,
    scheme: str,
    max_drop: float | None = 0.01,
    data: Sequence[Row] | None = None,
    overwrite: bool = False,
    before: Measurement | None = None,
    *,
    method: str | None = None,
    calibration_file: Path | None = None,
    fp8_cache: bool = False,
    reduce_range: bool = False,
    point_estimate: bool = False,
) -> Report:
    """Writes the checkpoint `source`, quantized, to `output`; returns and prints what that changed.

    `scheme`: a name in SCHEMES, or `auto` for the fastest of those that can be served here. `max_drop`: the most
    quality that may be lost, with 95 % confidence, as a share (0.01 is one point of accuracy, F1 or nDCG, or 1 % of
    perplexity); with None any result is written; `point_estimate` compares the measured drop itself with it, however
    few the rows are. `data`: rows to measure on in place of the checkpoint's own held-out rows. `before`: an earlier
    measurement of `source` on the same rows. `method`: the only method to try (methods.py). `calibration_file`: rows
    in place of those that the checkpoint keeps. `fp8_cache`: also store the KV cache in fp8. `reduce_range`: limit
    w8a8 weights to a range that is exact on CPUs without VNNI, too; on such CPUs this is always done.

    If too much is lost, the scheme's other methods are tried, then the blocks that lose most are left unquantized.
    Raises UserError for a scheme that can't be served here, before anything slow; StepFailed, with nothing written, if
    no attempt passes or vLLM can't serve the result.
    """
    if max_drop is not None and not max_drop >= 0:  # also refuses NaN, which would let everything pass
        raise UserError(f"max_drop is {max_drop}", "allowed: 0 or more, e.g. 0.01 for one point of accuracy")
    if max_drop is not None and max_drop >= 0.5:
        logger.warning("max_drop %g allows a drop of %.0f points: half a point is 0.005", max_drop, 100 * max_drop)
    if output.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{output}: inside the checkpoint that is read", "choose an output beside it")
    manifest = checkpoint.load(source)
    platform = preflight.this_platform()
    recipes = _recipes(scheme, source, manifest, platform, method, fp8_cache=fp8_cache, reduce_range=reduce_range)
    for remark in (remark for recipe in recipes for remark in preflight.remarks(recipe, platform)):
        logger.info("%s", remark)
    rows = unseen(data, [source]) if data is not None else held_out_rows(source, manifest)
    calibrating, choosing = calibration.split(calibration.load(source, manifest, calibration_file, rows))
    chosen = [(recipe, _methods(recipe, source, method, calibrating)) for recipe in recipes]
    if scheme == "auto" and not choosing:
        rows, choosing, before = rows[::2], rows[1::2], None
    gate = Gate(max_drop, point_estimate)
    gate.check(manifest, len(rows))
    # Results are smaller than the source; the best ones are kept while another is tried.
    disk.check(output, (3 if scheme == "auto" else 2) * checkpoint.size_of(manifest))
    with checkpoint.writing(output, overwrite) as target:
        if before is None:
            logger.info("measuring %s", source)
            before = measure(source, rows)
        work = _Work(source, manifest, target / ".attempts", gate, rows, choosing, calibrating, before)
        report, directory = _fastest(work, chosen) if scheme == "auto" else _hold(work, *chosen[0])
        print(report.table())
        for path in directory.iterdir():
            path.rename(target / path.name)
        shutil.rmtree(work.directory)
        result = checkpoint.read_manifest(target)
        result.lineage[-1].metrics.update(report.metrics())
        result.lineage[-1].measured_on = tiers.measured_on()
        card.write(target, result)
        checkpoint.seal(target, result)
    print(f"\n{output}")
    return report


def _recipes(
    scheme: str, source: Path, manifest: pb.Checkpoint, platform: Platform, method: str | None, **wanted: bool
) -> list[Recipe]:
    if wanted["reduce_range"] and scheme not in ("auto", "w8a8"):
        raise UserError(f"--reduce-range with --scheme {scheme}", "it is for the int8 weights of w8a8")
    if scheme != "auto":
        return [preflight.check(scheme, manifest, source, platform, method or "rtn", **wanted)]
    if method:
        raise UserError("--method with --scheme auto", "auto tries the methods of each scheme: name a scheme, or none")
    preflight.check_checkpoint(manifest, source)
    if found := preflight.served(manifest, source, platform, **wanted):
        return found
    raise UserError(f"{source}: no scheme can be served here", "run each --scheme alone to see why")


def _methods(recipe: Recipe, source: Path, method: str | None, seen: Sequence[Row]) -> list[str]:
    """Returns the methods to try, in order. Raises UserError if rows are needed and there are none."""
    if recipe.needs_rows and not seen:
        what = "--kv-cache fp8" if recipe.fp8_cache else f"--method {recipe.method}"
        raise UserError(
            f"{what} needs rows to calibrate with, and {source} keeps none",
            "give some of the training data with --calibration FILE.jsonl",
        )
    return [method] if method else methods.usable(recipe.scheme, preflight.model_type(source), bool(seen))


@dataclass(frozen=True)
class _Work:
    """The inputs that all attempts share."""

    source: Path
    manifest: pb.Checkpoint
    directory: Path  # where all attempts are written
    gate: Gate
    rows: Sequence[Row]  # the held-out rows, which are reported
    choosing: Sequence[Row]
    calibrating: Sequence[Row]
    before: Measurement  # on the held-out rows

    @cached_property
    def before_choosing(self) -> Measurement:
        """The original, measured on the choosing rows."""
        logger.info("measuring %s on %d rows to choose on", self.source, len(self.choosing))
        return measure(self.source, self.choosing)

    def make(self, recipe: Recipe) -> Path:
        """Quantizes."""
        logger.info("quantizing to %s", recipe.label)
        directory = self.directory / secrets.token_hex(4)
        # In the checkpoint's own folder alone: the folder of an encoder's pooling has a config.json, too.
        shutil.copytree(
            self.source,
            directory,
            ignore=lambda folder, names: _REPLACED(folder, names) if Path(folder) == self.source else set(),
        )
        weights.write(self.source, directory, self.manifest, recipe, self.calibrating)
        result = self._manifest(recipe)
        if (known := trained_on(self.source)) is not None:
            # Rows for calibration and choosing count as seen by the result.
            keep(directory, result, np.append(known, learned([*self.calibrating, *self.choosing])))
        checkpoint.seal(directory, result)
        return directory

    def report(self, recipe: Recipe, directory: Path, *, choosing: bool = False) -> Report:
        """Measures a result on the held-out rows, or on the choosing rows."""
        rows, before = (self.choosing, self.before_choosing) if choosing else (self.rows, self.before)
        logger.info("measuring the result on %d rows%s", len(rows), " to choose on" if choosing else "")
        after = measure(directory, rows)
        size, smaller = (checkpoint.size_of(one) for one in (self.manifest, checkpoint.read_manifest(directory)))
        report = Report(self.manifest.task, recipe, before, after, size, smaller)
        name = report.headline
        logger.info("%s: %s %.4f, %.4f before", recipe.label, name, after.metrics[name], before.metrics[name])
        return report

    def rate(self, recipe: Recipe, directory: Path) -> Attempt:
        """Measures a result on the choosing rows."""
        report = self.report(recipe, directory, choosing=True)
        return Attempt(report, directory, self.gate.expected(report, len(self.rows)))

    def carry(self, recipe: Recipe) -> Attempt:
        """Quantizes, and measures the result on the choosing rows."""
        return self.rate(recipe, self.make(recipe))

    def worst(self, attempt: Attempt) -> list[int]:
        """Returns the blocks that lose most; an empty list if there are no rows to find out with."""
        if not self.calibrating:
            return []
        return list(sensitivity.order(self.source, attempt.directory, self.manifest, self.calibrating))

    def race(self, attempt: Attempt) -> Ratio:
        """Returns how much faster an attempt is than the original."""
        if preflight.this_platform().is_gpu or not race.fits(self.before_choosing.memory_bytes):
            logger.warning("not enough memory for two servers at once: speeds were measured one after the other")
            return Ratio(attempt.speed / self.before_choosing.throughput)
        return race.in_turns(self.source, attempt.directory, self.choosing)

    def _manifest(self, recipe: Recipe) -> pb.Checkpoint:
        result = pb.Checkpoint()
        result.CopyFrom(self.manifest)
        result.quantization = recipe.scheme.name
        settings = {
            "scheme": recipe.scheme.name,
            "method": recipe.method,
            "group_size": recipe.group_size,
            "kv_cache": "fp8" if recipe.fp8_cache else None,
            "reduce_range": recipe.reduce_range or None,
            "kept_blocks": recipe.kept or None,
            "max_drop": self.gate.max_drop,
            "point_estimate": self.gate.point_estimate or None,
            "measured_on_sha256": sha256_rows(self.rows),
        }
        given = {name: value for name, value in settings.items() if value is not None or name == "max_drop"}
        packages = weights.PACKAGES[recipe.scheme.format]
        step = checkpoint.step("quantize", self.source.resolve().name, given, packages)
        if recipe.needs_rows or recipe.kept:
            step.data_sha256 = sha256_rows(self.calibrating)
        result.lineage.append(step)
        return result


def _hold(work: _Work, recipe: Recipe, methods: Sequence[str]) -> tuple[Report, Path]:
    first = replace(recipe, method=methods[0])
    directory = work.make(first)
    report = work.report(first, directory)
    if work.gate.holds(report):
        return report, directory
    tried: list[Attempt] = []
    if work.choosing and not work.gate.is_unclear(report):
        logger.info("this may lose too much: trying other methods")
        failed = [work.rate(first, directory)]
        tried = attempts.hold(recipe, methods[1:], work.carry, work.worst, failed=failed)
        best = attempts.best(tried)
        _show(work, tried, best)
        if best.directory != directory:
            directory = best.directory
            report = work.report(best.report.recipe, directory)
            if work.gate.holds(report):
                return report, directory
    print(report.table())
    hint = f"{_blame(tried)}choose a scheme with more bits, or allow more with --max-drop"
    if not work.calibrating:
        hint += "; with --calibration FILE.jsonl, other methods and leaving blocks out are tried, too"
    raise work.gate.refusal(report, hint)


def _fastest(work: _Work, recipes: Sequence[tuple[Recipe, Sequence[str]]]) -> tuple[Report, Path]:
    # The method that needs no data comes first: it is the quickest way to see how fast a scheme is.
    recipes = [(recipe, sorted(methods, key=lambda one: one != "rtn")) for recipe, methods in recipes]
    good, tried = attempts.fastest(recipes, work.carry, work.worst, work.race, work.before_choosing.throughput)
    if tried:
        _show(work, tried, good[0] if good else None)
    hint = (
        f"{_blame(tried)}serve the checkpoint as it is, name a --scheme to save memory, or allow more with --max-drop"
    )
    for attempt in good[:LOOKS]:
        report = replace(work.report(attempt.report.recipe, attempt.directory), ratio=attempt.report.ratio)
        if work.gate.holds(report):
            return report, attempt.directory
        print(report.table())
    if good:
        raise work.gate.refusal(report, hint)
    raise StepFailed("no scheme that can be served here is faster and keeps the quality; nothing was written", hint)


def _blame(tried: Sequence[Attempt]) -> str:
    """Returns which blocks lose most, for schemes in which leaving them unquantized was not enough."""
    # The last attempt of each scheme, which leaves out most blocks.
    kept = {one.report.recipe.scheme.name: one.report.recipe.kept for one in tried if not one.holds}
    return "".join(
        f"blocks {', '.join(map(str, blocks))} lose most in {name}, and without them it is still too much; "
        for name, blocks in kept.items()
        if blocks
    )


def _show(work: _Work, tried: Sequence[Attempt], chosen: Attempt | None) -> None:
    print(f"\non {len(work.choosing):,} rows to choose on:")
    print(comparison([one.report for one in tried], [attempts.verdict(one, chosen) for one in tried]))
