"""What quantization changed, for people and for the lineage."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tuneserve.evaluation import quality, significance
from tuneserve.evaluation.measurement import Measurement
from tuneserve.evaluation.significance import Difference
from tuneserve.quantize.race import Ratio
from tuneserve.quantize.schemes import Recipe
from tuneserve.v1 import checkpoint_pb2 as pb

ERROR = "root_mean_square_error"


@dataclass(frozen=True)
class Report:
    """One checkpoint before and after."""

    task: pb.Task
    recipe: Recipe
    before: Measurement
    after: Measurement
    # Bytes of the weight files.
    size_before: int
    size_after: int
    # The ratio of speeds from interleaved rounds; None if they were only measured one after the other.
    ratio: Ratio | None = None

    @property
    def drop(self) -> float:
        """How much quality was lost, in the unit of `quality.drop`; negative if it got better.

        For a regression, the larger of the loss of correlation and the rise of the error.
        """
        lost = quality.drop(self.task, self.before.metrics, self.after.metrics)
        return max(lost, self.error[0]) if self.error else lost

    @cached_property
    def error(self) -> tuple[float, float, float] | None:
        """The rise of a regression's root mean square error, from `significance.error_rise`; None for other tasks."""
        if ERROR not in self.before.metrics or not self.difference:
            return None
        return significance.error_rise(self.before.row_sums, self.after.row_sums)

    @property
    def flips(self) -> float | None:
        """Share of the rows whose predicted label or tags changed, for better or worse; None for generation."""
        pairs = list(zip(self.before.predictions, self.after.predictions, strict=True))
        return sum(old != new for old, new in pairs) / len(pairs) if pairs else None

    @property
    def headline(self) -> str:
        """The name of the metric that is compared."""
        return quality.headline(self.task, self.before.metrics).name

    @cached_property
    def difference(self) -> Difference | None:
        """The headline metric's paired difference with its interval; None if no results of single rows were kept."""
        if not (self.before.row_sums and self.after.row_sums):
            return None
        return significance.compare(self.headline, self.before.row_sums, self.after.row_sums)

    @property
    def drop_at_most(self) -> float:
        """The upper end of the drop's 95 % interval, in its unit; infinite if nothing is known of single rows."""
        found = self.difference
        if not found:
            return math.inf
        if not quality.headline(self.task, self.before.metrics).higher_is_better:
            return found.high / found.first
        return max(-found.low, self.error[2]) if self.error else -found.low

    def table(self) -> str:
        """Returns the report as a few lines for people."""
        old, new = self.before, self.after
        rows = [
            ("", "before", self.recipe.scheme.name, self.recipe.label),
            (self.headline, *(f"{one.metrics[self.headline]:.4f}" for one in (old, new)), self._lost()),
        ]
        if found := self.difference:
            rows.append(("  95 % interval", "", "", f"{found.low:+.4f} to {found.high:+.4f}, p {found.p_value:.2g}"))
            if self.error:
                rows.append(
                    (
                        "RMSE",
                        *(f"{one.metrics[ERROR]:.4f}" for one in (old, new)),
                        "{:+.4f} standard deviations, {:+.4f} to {:+.4f}".format(*self.error),
                    )
                )
            rows.append(("", "", "", f"a drop of at most {self.drop_at_most:.4f}, on {new.rows:,} rows; {found.test}"))
        if self.flips is not None:
            rows.append(("predictions changed", "", f"{self.flips:.2%}", f"of {new.rows} rows"))
        if "token_f1" in old.metrics and "token_f1" in new.metrics:
            rows.append(
                ("token_f1", *(f"{one.metrics['token_f1']:.4f}" for one in (old, new)), "of the answers' words")
            )
        rows.append(_times("size, MB", self.size_before / 1e6, self.size_after / 1e6))
        if old.memory_bytes and new.memory_bytes:
            rows.append(_times("memory, MB", old.memory_bytes / 1e6, new.memory_bytes / 1e6))
        name, *speeds, times = _times(old.unit, old.throughput, new.throughput)
        rows.append((name, *speeds, f"{self.ratio}, in turns" if self.ratio else f"{times}, one after the other"))
        if old.latency and new.latency:
            rows.append(_times("p50 of one, ms", old.latency.p50_ms, new.latency.p50_ms))
            rows.append(_times("p95 of one, ms", old.latency.p95_ms, new.latency.p95_ms))
        return "\n".join(f"{name:<20}{a:>10}{b:>10}   {note}".rstrip() for name, a, b, note in rows)

    def metrics(self) -> dict[str, float]:
        """Returns the metrics for the lineage: the new ones by name, and the old headline and cost as `*_before`."""
        return self.after.metrics | {
            **significance.ends(self.after.metrics, self.after.row_sums),
            f"{self.headline}_before": self.before.metrics[self.headline],
            **({f"{ERROR}_before": self.before.metrics[ERROR]} if self.error else {}),
            "drop": self.drop,
            **self._interval(),
            "size_bytes": self.size_after,
            "size_bytes_before": self.size_before,
            **_costs(self.after),
            **{f"{name}_before": cost for name, cost in _costs(self.before).items()},
            **({} if self.flips is None else {"predictions_changed": self.flips}),
            **(self.ratio.metrics() if self.ratio else {}),
        }

    def _interval(self) -> dict[str, float]:
        found = self.difference
        if not found:
            return {}
        ends = {"difference_low": found.low, "difference_high": found.high, "p_value": found.p_value}
        return {
            name: value for name, value in (ends | {"drop_at_most": self.drop_at_most}).items() if math.isfinite(value)
        }

    def _lost(self) -> str:
        lost = quality.drop(self.task, self.before.metrics, self.after.metrics)
        share = f"{abs(lost):.2%}" if self.task == pb.TASK_GENERATION else f"{abs(lost) * 100:.2f} points"
        return f"{share} {'worse' if lost > 0 else 'better'}" if lost else "same"


def comparison(reports: Sequence[Report], verdicts: Sequence[str]) -> str:
    """Returns a table of all attempts, one a line, below the original."""
    first = reports[0]
    lines = [
        ("scheme", first.headline, "change, 95 % interval", "MB", first.before.unit, "in turns", "p50, p95 ms", ""),
        ("as it was", *_columns(first, first.before, first.size_before), ""),
    ]
    for report, verdict in zip(reports, verdicts, strict=True):
        lines.append((report.recipe.label, *_columns(report, report.after, report.size_after), verdict))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines) + "\n"


def _columns(report: Report, measured: Measurement, size: int) -> tuple[str, ...]:
    change = report.difference if measured is report.after else None
    single = measured.latency
    return (
        f"{measured.metrics[report.headline]:.4f}",
        f"{change.low:+.4f} to {change.high:+.4f}" if change else "",
        f"{size / 1e6:.1f}",
        f"{measured.throughput:.0f}",
        str(report.ratio) if report.ratio and change else "",
        f"{single.p50_ms:.1f}, {single.p95_ms:.1f}" if single else "",
    )


def _times(name: str, old: float, new: float) -> tuple[str, str, str, str]:
    digits = 0 if old >= 1000 or "/s" in name else 1
    return name, f"{old:.{digits}f}", f"{new:.{digits}f}", f"x {new / old:.2f}"


def _costs(measured: Measurement) -> dict[str, float]:
    costs = {measured.unit.replace("/s", "_per_second"): measured.throughput}
    if measured.latency:
        costs |= {"latency_p50_ms": measured.latency.p50_ms, "latency_p95_ms": measured.latency.p95_ms}
    if measured.memory_bytes:
        costs["memory_bytes"] = measured.memory_bytes
    return costs
