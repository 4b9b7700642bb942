"""The quality gate: a result is written only if it is shown to lose no more quality than allowed.

The upper end of the drop's 95 % interval is compared with the allowed drop. So on each look at the held-out rows, a
result that lost more passes in one case of forty; with at most LOOKS looks, in one case of twenty.
"""

import math
from dataclasses import dataclass

from tuneserve.errors import StepFailed, UserError
from tuneserve.evaluation import significance
from tuneserve.quantize.report import ERROR, Report
from tuneserve.v1 import checkpoint_pb2 as pb

# Looks of one command at the held-out rows: for the first attempt, and for the one then chosen on other rows.
LOOKS = 2
# Fewer values than this show nothing at 95 %, however similar they are.
_FEWEST = 6


@dataclass(frozen=True)
class Gate:
    """The largest drop allowed, in the unit of `quality.drop`; with None every result passes.

    `point_estimate` compares the measured drop itself with it, however few the rows are.
    """

    max_drop: float | None
    point_estimate: bool = False

    def check(self, manifest: pb.Checkpoint, rows: int) -> None:
        """Raises UserError if there are too few rows to pass, even if nothing changes on any of them."""
        if self.max_drop is None or self.point_estimate or rows >= (needed := _least(manifest, self.max_drop)):
            return
        if math.isinf(needed):
            raise UserError(
                "max_drop is 0: no number of rows can show that nothing at all is lost",
                "allow a little with --max-drop, or decide by the measured drop with --point-estimate",
            )
        allowed = "" if rows < _FEWEST else f"; allow {_above(significance.unseen(rows)):g} or more with --max-drop"
        raise UserError(
            f"{rows:,} held-out rows can't show that at most {self.max_drop:g} is lost: it takes {needed:,} even if no "
            "answer changes",
            f"measure on more with --data FILE.jsonl, best on some thousand{allowed}; or decide by the drop itself with"
            " --point-estimate",
        )

    def holds(self, report: Report) -> bool:
        """Whether a result may be written; False for NaN."""
        return self.max_drop is None or (report.drop if self.point_estimate else report.drop_at_most) <= self.max_drop

    def is_unclear(self, report: Report) -> bool:
        """Whether there are too few rows for any result that changes as many answers to pass."""
        spread = report.drop_at_most - report.drop
        return not self.point_estimate and self.max_drop is not None and report.drop <= self.max_drop < spread

    def expected(self, report: Report, rows: int) -> bool:
        """Whether a result with this drop on other rows is expected to pass on `rows` held-out ones."""
        if self.max_drop is None or self.point_estimate:
            return self.holds(report)
        margin = (report.drop_at_most - report.drop) * math.sqrt(report.after.rows / rows)
        return report.drop + margin <= self.max_drop

    def refusal(self, report: Report, hint: str) -> StepFailed:
        """Returns the error for a report that does not pass, with a remedy. `hint`: the remedy if it lost too much."""
        assert self.max_drop is not None
        old, new = (one.metrics[report.headline] for one in (report.before, report.after))
        error = [one.metrics[ERROR] for one in (report.before, report.after) if report.error]
        errors = "{} {:.4f} before, {:.4f} after, ".format(ERROR, *error) if error else ""
        what = f"{report.headline} {old:.4f} before, {new:.4f} after, {errors}a drop of {report.drop:.4f}"
        if not report.drop <= self.max_drop:
            return StepFailed(
                f"{report.recipe.label} loses too much: {what} where {self.max_drop:g} is allowed; no checkpoint is"
                " written",
                hint,
            )
        needed = self.rows_needed(report)
        return StepFailed(
            f"{report.recipe.label} may lose too much: {what}, and with 95 % confidence of at most "
            f"{report.drop_at_most:.4f} where {self.max_drop:g} is allowed; no checkpoint is written",
            f"{report.after.rows:,} rows are too few to tell: measure on "
            + (f"about {needed:,} " if needed else "more ")
            + f"with --data FILE.jsonl, allow {_above(report.drop_at_most):g} with --max-drop, or decide by the drop"
            " itself with --point-estimate",
        )

    def rows_needed(self, report: Report) -> int | None:
        """Returns the number of rows on which the same drop would pass; the interval shrinks with their square root.

        None if no number would be enough, or the rows don't show it.
        """
        if self.max_drop is None or not report.drop < self.max_drop or not math.isfinite(report.drop_at_most):
            return None
        ratio = (report.drop_at_most - report.drop) / (self.max_drop - report.drop)
        return int(_above(report.after.rows * ratio**2))


def _least(manifest: pb.Checkpoint, max_drop: float) -> float:
    """Returns the smallest number of rows that can show a drop of at most `max_drop`."""
    if not max_drop:
        return math.inf
    numbers = manifest.task == pb.TASK_GENERATION or manifest.problem_type == pb.PROBLEM_TYPE_REGRESSION
    return _FEWEST if numbers else significance.rows_unseen(max_drop)


def _above(value: float) -> float:
    """Rounds up to two significant digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value / unit - 1e-9) * unit, 12)
