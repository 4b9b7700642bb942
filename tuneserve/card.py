"""The model card: README.md of a checkpoint that tuneserve trained, for people and the Hugging Face hub.

All of it comes from the manifest, without anything that differs between two equal runs. Licence and language are not
known here, and are left out.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from tuneserve import checkpoint
from tuneserve.checkpoint.tasks import TASKS
from tuneserve.evaluation import quality
from tuneserve.v1 import checkpoint_pb2 as pb

_KINDS = {
    pb.PROBLEM_TYPE_SINGLE_LABEL: "a classifier: one of its labels for each text",
    pb.PROBLEM_TYPE_MULTI_LABEL: "a classifier: any number of its labels for each text",
    pb.PROBLEM_TYPE_REGRESSION: "a model that gives each text a number",
}
_SEARCH = (pb.TASK_EMBEDDING, pb.TASK_RANKING)
# The metrics for which the hub has a name.
_METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "entity_precision": "precision",
    "entity_recall": "recall",
    "entity_f1": "f1",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "mean_absolute_error": "mae",
    "perplexity": "perplexity",
    "chrf": "chrf",
    "bleu": "bleu",
    "rouge1": "rouge1",
    "rouge2": "rouge2",
    "rougeL": "rougeL",
    "ndcg@10": "ndcg_at_10",
    "mrr@10": "mrr_at_10",
    "recall@1": "recall_at_1",
    "recall@10": "recall_at_10",
}


def write(directory: Path, manifest: pb.Checkpoint) -> None:
    """Writes the card of a checkpoint that tuneserve trained; cards of other models are left as they are."""
    if any(step.name == "finetune" for step in manifest.lineage):
        (directory / checkpoint.CARD).write_text(text(manifest), encoding="utf-8")


def text(manifest: pb.Checkpoint) -> str:
    """Returns the card: YAML for the hub, then Markdown."""
    trained = next(step for step in reversed(manifest.lineage) if step.name == "finetune")
    settings = json_format.MessageToDict(trained.config)
    name, base = Path(settings["output"]).name, manifest.lineage[0].source
    parts = [
        f"---\n{_front_matter(manifest, name, base, settings)}\n---",
        f"# {_plain(name)}",
        _about(manifest, trained, base, settings),
        *_labels(manifest),
        *_quality(manifest),
        _use(manifest),
        _limits(manifest),
        "## Made with",
        _table(("setting", "value"), [(key, settings[key]) for key in sorted(settings) if key != "output"]),
        _table(("package", "version"), sorted(trained.packages.items())),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(manifest: pb.Checkpoint, name: str, base: str, settings: dict[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    task = TASKS[manifest.task].pipeline
    results = [
        EvalResult(
            task_type=task,
            dataset_type="held-out",
            dataset_name="held-out rows",
            metric_type=_METRICS[key],
            metric_name=key,
            metric_value=round(value, 4),
        )
        for key, value in manifest.lineage[-1].metrics.items()
        if key in _METRICS
    ]
    results.sort(key=lambda result: list(_METRICS).index(str(result.metric_name)))
    return str(
        ModelCardData(
            base_model=base,
            base_model_relation="quantized" if manifest.quantization else "finetune",
            library_name="sentence-transformers" if manifest.task in _SEARCH else "transformers",
            pipeline_tag=task,
            tags=["tuneserve", settings["method"], *filter(None, [manifest.quantization])],
            model_name=name,
            eval_results=results or None,
        )
    )


def _about(manifest: pb.Checkpoint, trained: pb.Step, base: str, settings: dict[str, Any]) -> str:
    kinds = {
        pb.TASK_TOKEN_CLASSIFICATION: "a model that finds entities in texts",
        pb.TASK_GENERATION: "a text generator",
        pb.TASK_RANKING: "a cross-encoder: the score of a query with a passage",
        pb.TASK_EMBEDDING: "an encoder for search: texts as vectors, a query near the passages that answer it",
    }
    kind = kinds.get(manifest.task) or _KINDS[manifest.problem_type]
    rows, steps = trained.metrics["train_rows"], " -> ".join(step.name for step in manifest.lineage)
    lines = [
        f"This is {kind}. It was fine-tuned from `{_code(base)}` with the method `{settings['method']}` on "
        f"{rows:,.0f} rows, and measured on {manifest.test_split.rows:,} others that it never saw. "
        f"It was trained and measured with at most {manifest.max_length:,} tokens a row. Its steps: {steps}."
    ]
    if manifest.quantization:
        lines.append(
            f"**Its weights are quantized: `{_code(manifest.quantization)}`.** "
            f"They take {manifest.lineage[-1].metrics['size_bytes'] / 1e6:,.1f} MB."
        )
    hashes = [("training", trained.data_sha256), ("held-out", manifest.test_split.sha256)]
    lines.append("\n".join(f"- SHA-256 of the {which} rows: `{digest}`" for which, digest in hashes if digest))
    return "\n\n".join(lines)


def _labels(manifest: pb.Checkpoint) -> Iterable[str]:
    if manifest.label_distribution:
        shares = sorted(manifest.label_distribution.items(), key=lambda one: (-one[1], one[0]))
        yield "## Labels"
        yield _table(("label", "share of the training rows"), [(name, f"{share:.1%}") for name, share in shares])


def _quality(manifest: pb.Checkpoint) -> Iterable[str]:
    metrics = manifest.lineage[-1].metrics
    preferred = ("reward_accuracy", "win_rate", "base_win_rate")
    shown = (*preferred, *_METRICS, "calibration_error", "unscaled_calibration_error")
    whole = [(key, f"{metrics[key]:.4f}", _interval(metrics, key)) for key in shown if key in metrics]
    if not whole:
        return
    yield "## Quality"
    where = f" Measured on: {_plain(manifest.lineage[-1].measured_on)}." if manifest.lineage[-1].measured_on else ""
    yield f"On the {manifest.test_split.rows:,} held-out rows, which it never saw.{where}"
    yield _table(("metric", "value", "95 % interval"), whole)
    columns = ("precision", "recall", "f1", "support")
    end = "/support"
    names = sorted(key.removesuffix(end) for key in metrics if key.endswith(end))
    if names:
        rows = [
            (name, *(f"{metrics[f'{name}/{column}']:.{0 if column == 'support' else 3}f}" for column in columns))
            for name in names
        ]
        yield _table(("label", *columns), rows)
    if manifest.HasField("temperature"):
        yield (
            f"Divide its logits by {manifest.temperature:.4g} before softmax or sigmoid, so that confidence matches "
            "accuracy (calibration). tuneserve does this; transformers does not by itself."
        )
    headline = quality.headline(manifest.task, metrics).name
    if f"{headline}_before" in metrics:
        yield f"Before it was quantized, its {headline} on these rows was {metrics[f'{headline}_before']:.4f}."
    if "drop_at_most" in metrics:
        drop, most = metrics["drop"], metrics["drop_at_most"]
        yield f"That is a drop of {drop:.4f}, and with 95 % confidence of at most {most:.4f}."


def _interval(metrics: Mapping[str, float], name: str) -> str:
    low, high = (metrics[key] if (key := f"{name}_{end}") in metrics else None for end in ("low", "high"))
    return "" if low is None or high is None else f"{low:.4f} to {high:.4f}"


def _use(manifest: pb.Checkpoint) -> str:
    example = '"The film was good."'
    is_chat = manifest.task == pb.TASK_GENERATION and manifest.chat_template_sha256
    call = "chat" if is_chat else TASKS[manifest.task].call
    served = ["tuneserve serve --model mine=PATH", f"tuneserve call {call} --model mine {example}"]
    loaded = [
        "from transformers import pipeline",
        "",
        f'print(pipeline("{TASKS[manifest.task].pipeline}", model="PATH")({example}))',
    ]
    library = "transformers"
    if manifest.task == pb.TASK_EMBEDDING:
        library, prompt = "sentence-transformers", ', prompt_name="query"' if "query" in manifest.prompts else ""
        loaded[0] = "from sentence_transformers import SentenceTransformer"
        loaded[2] = f'print(SentenceTransformer("PATH").encode({example}{prompt}))'
    if manifest.task == pb.TASK_RANKING:
        library, pair = "sentence-transformers", '"How was the film?", "The film was good."'
        served[1] = f"echo {example} | tuneserve call rank --model mine " + '"How was the film?"'
        loaded[0] = "from sentence_transformers import CrossEncoder"
        loaded[2] = f'print(CrossEncoder("PATH").predict([({pair})]))'
    lines = ["Served over gRPC on vLLM:", "", "```sh", *served, "```", ""]
    lines += [f"In {library}:", "", "```python", *loaded, "```"]
    return "\n".join(["## Use", "", *lines])


def _limits(manifest: pb.Checkpoint) -> str:
    lines = [
        f"It was not measured on more than {manifest.max_length:,} tokens.",
        "It was not measured on other kinds of text than its rows: measure its quality there before relying on it.",
        "It repeats the errors and gaps of its base model and its rows.",
    ]
    if manifest.task == pb.TASK_GENERATION:
        lines.append("It writes likely text, which is not always true.")
    elif manifest.task in _SEARCH:
        lines.append("Its scores order passages. Which score is good enough depends on the queries.")
    elif manifest.problem_type != pb.PROBLEM_TYPE_REGRESSION:
        lines.append("It knows only its own labels, and answers with them whatever the text is.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_plain(_shown(cell)) for cell in line) + " |" for line in lines)


def _shown(value: object) -> str:
    # All numbers of a Struct are floats.
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(text: str) -> str:
    """Returns untrusted text escaped for Markdown, in one line."""
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())
