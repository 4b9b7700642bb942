"""Is the new checkpoint better? Both are measured on the same held-out rows, through the server and vLLM.

Old rows are those that the old checkpoint held out: they show what was forgotten. New ones are the feedback that the
new checkpoint held out: they show what was learned. Neither model was trained on any of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneserve import checkpoint
from tuneserve.checkpoint.rows import Row, input_key
from tuneserve.checkpoint.seen import unseen
from tuneserve.checkpoint.tasks import Headline
from tuneserve.errors import UserError
from tuneserve.evaluation import quality, significance
from tuneserve.evaluation.evaluate import held_out_rows, measure
from tuneserve.evaluation.significance import Difference
from tuneserve.retrain.policy import RetrainConfig


@dataclass(frozen=True)
class Gain:
    """How much better the new model is on some rows, and the ends of the interval: 0.01 is one point of accuracy, F1
    or nDCG, or 1 % less perplexity.
    """

    rows: int
    before: float
    after: float
    gain: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.before:.4f} -> {self.after:.4f} ({self.low:+.4f} to {self.high:+.4f}) on {self.rows} rows"


def gain(headline: Headline, rows: int, found: Difference) -> Gain:
    """Returns a difference as a gain."""
    if headline.higher_is_better:
        change = found.second - found.first
        return Gain(rows, found.first, found.second, change, found.low, found.high)
    low, high = -found.high / found.first, -found.low / found.first
    return Gain(rows, found.first, found.second, 1 - found.second / found.first, low, high)


def compare(old: Path, new: Path) -> tuple[str, Gain, Gain]:
    """Returns the metric, and the gains on the old and on the new held-out rows. Raises UserError if there are none."""
    manifests = checkpoint.load(old), checkpoint.load(new)
    before, after = rows_of(old, new)
    measured = [measure(one, [*before, *after]) for one in (old, new)]
    headline = quality.headline(manifests[0].task, measured[0].metrics)
    parts: list[Gain] = []
    for count, part in ((len(before), slice(len(before))), (len(after), slice(len(before), None))):
        first, second = (one.row_sums[part] for one in measured)
        parts.append(gain(headline, count, significance.compare(headline.name, first, second)))
    return headline.name, parts[0], parts[1]


def rows_of(old: Path, new: Path) -> tuple[list[Row], list[Row]]:
    """Returns the old and the new held-out rows."""
    before = unseen(held_out_rows(old, checkpoint.read_manifest(old)), [new])
    known = set(map(input_key, before))
    after = [row for row in held_out_rows(new, checkpoint.read_manifest(new)) if input_key(row) not in known]
    if not after:
        raise UserError(f"{new}: no new rows are held out", "a larger finetune.test_size, or more rows (min_rows)")
    return before, unseen(after, [old, new])


def verdict(policy: RetrainConfig, old: Gain, new: Gain) -> str:
    """Returns why the new checkpoint is not better by the policy; an empty text if it is. NaN is never better."""
    lost, gained = (-old.gain, new.gain) if policy.point_estimate else (-old.low, new.low)
    sure = "" if policy.point_estimate else ", with 95 % confidence,"
    wrong: Sequence[str] = [
        *([] if lost <= policy.max_drop else [f"old rows may lose{sure} {lost:.4f}; max_drop is {policy.max_drop:g}"]),
        *([] if gained > policy.min_gain else [f"new rows gain{sure} {gained:.4f}; min_gain is {policy.min_gain:g}"]),
    ]
    return "; ".join(wrong)
