"""A run's report, in `OUTPUT-report`: a page for people, the same as numbers, and TensorBoard's files.

report.html     one page, no network: curves, confusion, reliability, classes, mistakes, data, settings
metrics.json    settings, versions, seed, hashes, metrics, and the loss of each step
tensorboard/    event files: tensorboard --logdir OUTPUT-report/tensorboard
"""

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

from tuneserve import checkpoint
from tuneserve.evaluation import quality
from tuneserve.finetune.report.sections import Finished, sections
from tuneserve.page import render

logger = logging.getLogger(__name__)

PAGE, NUMBERS = "report.html", "metrics.json"
# By task, the metrics at the top of the page beside the headline metric.
# fmt: off
_TILES = (
    "macro_f1", "calibration_error", "entity_precision", "entity_recall", "spearman", "mean_absolute_error",
    "recall@1", "recall@10", "mrr@10", "win_rate", "base_win_rate", "perplexity",
    "chrf", "bleu", "rouge1", "rouge2", "rougeL",
)
# fmt: on


def write(directory: Path, run: Finished, tensorboard: Path, overwrite: bool) -> None:
    """Writes the report, whole or not at all. `tensorboard`: the directory of the run's event files.

    Errors here are only logged: the checkpoint is worth more than its report.
    """
    try:
        with checkpoint.writing(directory, overwrite) as folder:
            (folder / NUMBERS).write_text(json.dumps(numbers(run), indent=1, ensure_ascii=False), encoding="utf-8")
            (folder / PAGE).write_text(page(run), encoding="utf-8")
            shutil.copytree(tensorboard, folder / tensorboard.name)
    except Exception:
        logger.exception("%s could not be written; the checkpoint is complete", directory)
    else:
        logger.info("report: %s", directory / PAGE)


def numbers(run: Finished) -> dict[str, Any]:
    """Returns the report for programs. NaN and infinity become null."""
    entry = run.step
    return {
        "task": run.config.task,
        "labels": list(run.manifest.labels),
        "settings": run.settings,
        "packages": dict(entry.packages),
        "seed": entry.seed,
        "data_sha256": entry.data_sha256,
        "test_sha256": run.manifest.test_split.sha256,
        "rows": {"train": len(run.lengths), "validation": len(run.split.validation), "test": len(run.split.test)},
        "metrics": _finite(dict(entry.metrics) | dict(run.manifest.lineage[-1].metrics)),
        "history": [_finite(one) for one in run.history],
    }


def page(run: Finished) -> str:
    """Returns the page."""
    metrics = run.answers.metrics
    headline = quality.headline(run.manifest.task, metrics).name
    names = [headline, *(name for name in _TILES if name in metrics and name != headline)]
    parts = [run.config.task, run.config.problem_type if run.config.task == "sequence-classification" else ""]
    base = run.config.public()["base_model"]
    return render(
        title=run.config.output.name,
        summary=f"{', '.join(filter(None, parts))}; base model {base}, method {run.config.method}; "
        f"measured on {len(run.split.test):,} rows that training never saw{_sure(run, headline)}",
        tiles=[(name.replace("_", " "), f"{metrics[name]:.4g}") for name in names],
        sections=sections(run),
    )


def _sure(run: Finished, headline: str) -> str:
    ends = [run.manifest.lineage[-1].metrics.get(f"{headline}_{end}") for end in ("low", "high")]
    return "" if None in ends else f"; {headline} {ends[0]:.4g} to {ends[1]:.4g} (95 % interval)"


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
