"""The step from a checkpoint to a smaller one: check, measure, quantize, measure again, decide.

Both measurements go through the product's own server and vLLM, on the same rows, so that the numbers are those a
caller of the served model would see. A result that lost too much is never written.
"""

import logging
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneserve import card, checkpoint, disk, tiers
from tuneserve.errors import StepFailed, UserError
from tuneserve.evaluate import held_out_rows, measure
from tuneserve.measurement import Measurement
from tuneserve.quantize import attempts, calibration, methods, preflight, sensitivity, weights
from tuneserve.quantize.attempts import Attempt
from tuneserve.quantize.report import Report, comparison
from tuneserve.quantize.schemes import Recipe
from tuneserve.rows import Row
from tuneserve.rows import sha256 as sha256_rows
from tuneserve.v1 import checkpoint_pb2 as pb

logger = logging.getLogger(__name__)

# Written anew; everything else (tokenizer, chat template, held-out rows) is copied byte by byte.
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
) -> Report:
    """Writes the checkpoint `source`, quantized, to `output`; returns and prints what that changed.

    `scheme`: a name in SCHEMES, or `auto` for the fastest of those served here. `max_drop`: the most quality that may
    be lost, as a share (0.01 is one point of accuracy or F1, or 1 % of perplexity); None keeps any result. `data`:
    rows to measure on in place of the checkpoint's own held-out rows. `before`: a measurement of `source` on the same
    rows, made earlier. `method`: the only one to try (methods.py). `calibration_file`: rows in place of those that
    the checkpoint keeps. `fp8_cache`: also the cache of keys and values in 8-bit floats. `reduce_range`: weights of
    w8a8 that are exact on CPUs without VNNI too; there they always are.

    Where too much is lost, the scheme's other methods are tried, and the blocks that lose most are left as they are.
    Raises UserError for what can't be served here, before anything slow; StepFailed, with nothing kept, when nothing
    holds or vLLM can't serve the result.
    """
    if max_drop is not None and not max_drop >= 0:  # also refuses NaN, which would let everything pass
        raise UserError(f"max_drop is {max_drop}", "allowed: 0 or more, e.g. 0.01 for one point of accuracy")
    if max_drop is not None and max_drop >= 0.5:
        logger.warning("max_drop %g lets %.0f points go: half a point is 0.005", max_drop, 100 * max_drop)
    if output.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{output}: inside the checkpoint that is read", "choose an output beside it")
    manifest = checkpoint.load(source)
    recipes = _recipes(scheme, source, manifest, method, fp8_cache=fp8_cache, reduce_range=reduce_range)
    if not reduce_range and any(recipe.reduce_range for recipe in recipes):
        logger.info("w8a8 gets weights of a reduced range: with the full one, products saturate on a CPU without VNNI")
    rows = list(data) if data is not None else held_out_rows(source, manifest)
    seen = calibration.load(source, manifest, calibration_file, rows)
    chosen = [(recipe, _methods(recipe, source, method, seen)) for recipe in recipes]
    # The result is smaller than the source; the best one is kept while another is tried.
    disk.check(output, 2 * checkpoint.size_of(manifest))
    with checkpoint.writing(output, overwrite) as target:
        if before is None:
            logger.info("measuring %s", source)
            before = measure(source, rows)
        work = _Work(source, manifest, target / ".attempts", max_drop, rows, seen, before)
        best = _fastest(work, chosen) if scheme == "auto" else _hold(work, *chosen[0])
        if max_drop is not None and best.report.spread > max_drop:
            logger.warning(
                "%d rows tell a drop to %.3f only, and %g is allowed: more of them with --data would tell it better",
                len(rows),
                best.report.spread,
                max_drop,
            )
        for path in best.directory.iterdir():
            path.rename(target / path.name)
        shutil.rmtree(work.directory)
        result = checkpoint.read_manifest(target)
        result.lineage[-1].metrics.update(best.report.metrics())
        result.lineage[-1].measured_on = tiers.measured_on()
        card.write(target, result)
        checkpoint.seal(target, result)
    print(f"\n{output}")
    return best.report


def _recipes(scheme: str, source: Path, manifest: pb.Checkpoint, method: str | None, **wanted: bool) -> list[Recipe]:
    platform = preflight.this_platform()
    if wanted["reduce_range"] and scheme not in ("auto", "w8a8"):
        raise UserError(f"--reduce-range with --scheme {scheme}", "it is for the int8 weights of w8a8")
    if scheme != "auto":
        return [preflight.check(scheme, manifest, source, platform, method or "rtn", **wanted)]
    if method:
        raise UserError("--method with --scheme auto", "auto tries the methods of each scheme: name a scheme, or none")
    preflight.check_checkpoint(manifest, source)
    if found := preflight.served(manifest, source, platform, **wanted):
        return found
    raise UserError(f"{source}: no scheme can be served here", "each --scheme alone says why")


def _methods(recipe: Recipe, source: Path, method: str | None, seen: Sequence[Row]) -> list[str]:
    """Returns the methods to try, in their order. Raises UserError where rows are needed and there are none."""
    if recipe.needs_rows and not seen:
        what = "--kv-cache fp8" if recipe.fp8_cache else f"--method {recipe.method}"
        raise UserError(
            f"{what} needs rows to calibrate with, and {source} keeps none",
            "give some of the training data with --calibration FILE.jsonl",
        )
    return [method] if method else methods.usable(recipe.scheme, preflight.model_type(source), bool(seen))


@dataclass(frozen=True)
class _Work:
    """What all attempts have in common."""

    source: Path
    manifest: pb.Checkpoint
    directory: Path  # of all attempts
    max_drop: float | None
    rows: Sequence[Row]  # measured on
    seen: Sequence[Row]  # calibrated with
    before: Measurement

    def carry(self, recipe: Recipe) -> Attempt:
        """Quantizes and measures."""
        logger.info("quantizing to %s", recipe.label)
        directory = self.directory / secrets.token_hex(4)
        shutil.copytree(self.source, directory, ignore=_REPLACED)
        weights.write(self.source, directory, self.manifest, recipe, self.seen)
        result = self._manifest(recipe)
        checkpoint.seal(directory, result)
        logger.info("measuring the result")
        after = measure(directory, self.rows)
        sizes = checkpoint.size_of(self.manifest), checkpoint.size_of(result)
        report = Report(self.manifest.task, recipe, self.before, after, *sizes)
        name = report.headline
        logger.info("%s: %s %.4f, %.4f before", recipe.label, name, after.metrics[name], self.before.metrics[name])
        # Not a number, from broken weights, is no pass.
        return Attempt(report, directory, self.max_drop is None or report.drop <= self.max_drop)

    def worst(self, attempt: Attempt) -> list[int]:
        """Returns the blocks that lose most; none without rows to find out with."""
        if not self.seen:
            return []
        return list(sensitivity.order(self.source, attempt.directory, self.manifest, self.seen))

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
            "max_drop": self.max_drop,
            "measured_on_sha256": sha256_rows(self.rows),
        }
        given = {name: value for name, value in settings.items() if value is not None or name == "max_drop"}
        packages = weights.PACKAGES[recipe.scheme.format]
        step = checkpoint.step("quantize", self.source.resolve().name, given, packages)
        if recipe.needs_rows or recipe.kept:
            step.data_sha256 = sha256_rows(self.seen)
        result.lineage.append(step)
        return result


def _hold(work: _Work, recipe: Recipe, methods: Sequence[str]) -> Attempt:
    tried = attempts.hold(recipe, methods, work.carry, work.worst)
    best = tried[-1]
    if len(tried) > 1:
        _show(work, tried, best if best.holds else None)
    print(best.report.table())
    if best.holds:
        return best
    report = best.report
    old, new = (one.metrics[report.headline] for one in (report.before, report.after))
    hint = f"{_blame(tried)}choose a scheme with more bits, or allow more with --max-drop"
    if not work.seen:
        hint += "; with --calibration FILE.jsonl, other methods and leaving blocks out are tried, too"
    raise StepFailed(
        f"{report.recipe.label} loses too much: {report.headline} {old:.4f} before, {new:.4f} after, "
        f"a drop of {report.drop:.4f} where {work.max_drop} is allowed; nothing was kept",
        hint,
    )


def _fastest(work: _Work, recipes: Sequence[tuple[Recipe, Sequence[str]]]) -> Attempt:
    # The method that needs no data first: it tells soonest how fast a scheme is.
    recipes = [(recipe, sorted(methods, key=lambda one: one != "rtn")) for recipe, methods in recipes]
    best, tried = attempts.fastest(recipes, work.carry, work.worst, work.before.throughput)
    if tried:
        _show(work, tried, best)
    if best is None:
        raise StepFailed(
            "nothing that can be served here is faster and holds the quality; nothing was kept",
            f"{_blame(tried)}serve the checkpoint as it is, name a --scheme to save memory,"
            " or allow more with --max-drop",
        )
    print(best.report.table())
    return best


def _blame(tried: Sequence[Attempt]) -> str:
    """Returns which blocks stop a scheme, where leaving them as they are was not enough."""
    # Of each scheme the last, which leaves out most.
    kept = {one.report.recipe.scheme.name: one.report.recipe.kept for one in tried if not one.holds}
    return "".join(
        f"blocks {', '.join(map(str, blocks))} lose most in {name}, and without them it is still too much; "
        for name, blocks in kept.items()
        if blocks
    )


def _show(work: _Work, tried: Sequence[Attempt], chosen: Attempt | None) -> None:
    before = work.before.throughput
    print(comparison([one.report for one in tried], [attempts.verdict(one, chosen, before) for one in tried]))
