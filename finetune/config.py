"""The settings of one training run: a YAML file, every key checked before anything is loaded."""

import difflib
import hashlib
import importlib.util
import string
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from tuneserve import yamls
from tuneserve.checkpoint import TASKS
from tuneserve.errors import UserError

# By how they train: the learning rate unless told.
METHODS = {"lora": 5e-4, "dora": 5e-4, "rslora": 2e-4, "adalora": 2e-3, "ia3": 5e-3, "qlora": 5e-4, "full": 5e-5}
TRACKERS = ("wandb", "mlflow")
# The formats of files.
FORMATS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".txt": "conll",
}
# Settings that may be paths.
PATHS = ("base_model", "continue_from", "train", "replay", "test", "teacher", "output")
# What makes another loss than the plain one.
OBJECTIVE = ("class_weights", "label_smoothing", "focal_gamma", "rdrop_alpha", "fgm_epsilon")
# fmt: off
COLUMNS = (
    "text", "text_pair", "label", "labels", "head", "tail", "tokens", "tags", "entities", "messages", "tools",
    "prompt", "completion",
)
# fmt: on


@dataclass(frozen=True)
class FinetuneConfig:
    """What to train, on what, and how. Build it with `load` or `parse`, which check it."""

    task: str
    base_model: str  # a Hugging Face directory or hub id; what `continue_from` says where that is given
    train: str  # a file, or a data set id on the hub: owner/name[/config][:split]
    output: Path

    continue_from: str | None = None  # in place of base_model: a checkpoint made here, whose labels are kept
    replay: str | None = None  # rows of the data that it was trained on, mixed with the new: less is forgotten
    replay_share: float | None = None  # of the training rows that are old ones: 0.2; alone, of those it keeps itself

    test: str | None = None
    test_size: float | None = None  # share of `train` held out when there is no `test`; 0.1 unless told
    validation_size: float | None = None  # share of `train` that tells which epoch was best; its weights are kept
    format: str | None = None  # of both files, where the suffix does not tell
    columns: Mapping[str, str] | None = None  # our name: the file's
    prompt_template: str | None = None  # generation: the prompt, with {columns} of the row in it
    chat_template: str | None = None  # generation: Jinja, or a file of it, in place of the base model's; saved with it
    group_column: str | None = None  # rows with the same value in it are all trained on, or all held out
    labels: tuple[str, ...] | None = None  # fixes the order; sorted otherwise. Entity types for tokens
    problem_type: str = "single-label"
    max_train_rows: int | None = None
    max_test_rows: int | None = None
    # In the checkpoint, with some of the training rows: what quantize works with. Digests of all of these always are.
    keep_test_split: bool = True

    method: str = "lora"  # one of METHODS
    last_layers: int | None = None  # full: only so many of the last layers learn, and the head; 0 for the head alone
    keep_layers: int | None = None  # full: only so many of the base model's layers stay, evenly spread: depth.py
    max_length: int = 512  # tokens; longer rows are cut: of generation, the beginning of the prompt
    long_prompts: str = "cut"  # generation: or "drop", which leaves out rows whose prompt would have to be cut
    train_on: str = "all-turns"  # generation: which answers of a conversation are learned; or "last-turn", the measured
    packing: bool = False  # generation: several short rows in one of max_length tokens, none of which sees another
    epochs: float = 3.0
    early_stopping: int | None = None  # end after so many epochs in which the validation loss did not get better
    batch_size: int = 16  # of all processes together
    gradient_accumulation: int = 1
    gradient_checkpointing: bool | None = None  # less memory for a third more time; unless told, generation on GPUs
    learning_rate: float | None = None  # that of METHODS unless told
    schedule: str = "linear"  # how the learning rate falls after the warm-up
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    save_steps: int | None = None  # how often the state is saved that --resume goes on from; each epoch unless told
    temperature_scaling: bool = False  # texts: confidence made to match accuracy (calibration), on the validation rows
    report_to: tuple[str, ...] | None = None  # besides OUTPUT-report: wandb, mlflow, by transformers' integrations
    seed: int = 42
    save_dtype: str = "bfloat16"  # of the checkpoint's weights; float32: as they were trained, and twice the size
    precision: str = "auto"  # bf16 where the hardware has it

    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0  # costs half the speed on CPUs
    lora_targets: tuple[str, ...] | None = None  # module names; every linear layer but the head unless told

    teacher: str | None = None  # a model trained for the same labels, whose answers are learned too: distillation.py
    distillation_weight: float = 0.5  # of its answers in the loss, against that of the labels
    distillation_temperature: float = 2.0

    neftune_alpha: float | None = None  # noise on the embeddings, 5 to 15 (Jain et al. 2023)
    # For classifiers, of texts and of tokens: see objectives.py.
    class_weights: str | Mapping[str, float] | None = None  # balanced, or a number for some of the labels
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    rdrop_alpha: float = 0.0
    fgm_epsilon: float = 0.0
    # Changed copies of each training row, and how many of their words are missing, have changed places, or are others
    # of the same meaning.
    augment_copies: int = 0
    word_dropout: float = 0.1
    word_swap: float = 0.0
    synonyms: float = 0.0  # English, from WordNet through NLTK

    def public(self) -> dict[str, Any]:
        """Returns the settings for the lineage: local paths by their last name only."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        for key in PATHS:
            if key in values and Path(values[key]).is_absolute():
                values[key] = Path(values[key]).name
        if self.chat_template:
            # Long; what it says is in the checkpoint.
            values["chat_template"] = f"SHA-256 {hashlib.sha256(self.chat_template.encode()).hexdigest()}"
        return values


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the names of settings, as `public` gives them, that differ between two runs.

    An older release knew fewer, and did what the new ones do by default.
    """
    defaults = {one.name: one.default for one in fields(FinetuneConfig)}
    return [key for key in sorted({*before, *now}) if before.get(key, defaults.get(key)) != now.get(key)]


Check = tuple[Callable[[Any], bool], str]


def _choice(*allowed: str) -> Check:
    return (lambda value: value in allowed), "one of " + ", ".join(allowed)


def _whole(low: int) -> Check:
    return (lambda value: _is_number(value) and isinstance(value, int) and value >= low), (
        f"a whole number, {low} or more"
    )


def _number(low: float, high: float, *, above: bool = False) -> Check:
    def check(value: Any) -> bool:
        return _is_number(value) and (low < value if above else low <= value) and value <= high

    return check, f"a number {'above' if above else 'from'} {low:g} to {high:g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value)) and len(set(value)) == len(value)


def _is_trackers(value: Any) -> bool:
    return _is_texts(value) and set(value) <= set(TRACKERS)


def _is_columns(value: Any) -> bool:
    return isinstance(value, dict) and all(key in COLUMNS and _is_text(name) for key, name in value.items())


def template_columns(template: str) -> list[str]:
    """Returns the {columns} of a `prompt_template`."""
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def _is_template(value: Any) -> bool:
    try:
        names = template_columns(value)
    except (TypeError, ValueError):
        return False
    return bool(names) and all(name.isidentifier() for name in names)


def _is_weights(value: Any) -> bool:
    return value == "balanced" or (
        isinstance(value, dict)
        and bool(value)
        and all(_is_text(key) and _is_number(weight) and 0 < weight <= 1000 for key, weight in value.items())
    )


_TEXT: Check = (_is_text, "text")
_TEXTS: Check = (_is_texts, "a list of different texts (quote words such as yes, no and numbers)")
_FLAG: Check = (lambda value: isinstance(value, bool), "true or false")

CHECKS: dict[str, Check] = {
    "task": _choice(*TASKS),
    "base_model": _TEXT,
    "train": _TEXT,
    "output": _TEXT,
    "continue_from": _TEXT,
    "replay": _TEXT,
    "replay_share": _number(0, 0.9, above=True),
    "test": _TEXT,
    "test_size": _number(0, 0.9, above=True),
    "format": _choice(*sorted(set(FORMATS.values()))),
    "columns": (_is_columns, f"a mapping of {', '.join(COLUMNS)} to your columns"),
    "prompt_template": (_is_template, "text with {columns} of your rows in it"),
    "chat_template": _TEXT,
    "group_column": _TEXT,
    "labels": _TEXTS,
    "problem_type": _choice("single-label", "multi-label", "regression"),
    "max_train_rows": _whole(1),
    "max_test_rows": _whole(1),
    "keep_test_split": _FLAG,
    "method": _choice(*METHODS),
    "last_layers": _whole(0),
    "keep_layers": _whole(1),
    "validation_size": _number(0, 0.9, above=True),
    "max_length": _whole(8),
    "long_prompts": _choice("cut", "drop"),
    "train_on": _choice("all-turns", "last-turn"),
    "packing": _FLAG,
    "epochs": _number(0, 1000, above=True),
    "early_stopping": _whole(1),
    "batch_size": _whole(1),
    "gradient_accumulation": _whole(1),
    "gradient_checkpointing": _FLAG,
    "learning_rate": _number(0, 1, above=True),
    "schedule": _choice("linear", "cosine", "constant"),
    "weight_decay": _number(0, 1),
    "warmup_ratio": _number(0, 1),
    "save_steps": _whole(1),
    "save_dtype": _choice("bfloat16", "float32"),
    "teacher": _TEXT,
    "distillation_weight": _number(0, 1, above=True),
    "distillation_temperature": _number(0, 100, above=True),
    "temperature_scaling": _FLAG,
    "report_to": (_is_trackers, "a list of " + ", ".join(TRACKERS)),
    "neftune_alpha": _number(0, 100),
    "class_weights": (_is_weights, "balanced, or a mapping of labels to numbers above 0"),
    "label_smoothing": _number(0, 0.9),
    "focal_gamma": _number(0, 10),
    "rdrop_alpha": _number(0, 100),
    "fgm_epsilon": _number(0, 10),
    "augment_copies": _whole(0),
    "word_dropout": _number(0, 0.9),
    "word_swap": _number(0, 1),
    "synonyms": _number(0, 1),
    "lora_rank": _whole(1),
    "lora_alpha": _whole(1),
    "lora_dropout": _number(0, 0.9),
    "lora_targets": _TEXTS,
    "seed": _whole(0),
    "precision": _choice("auto", "bf16", "fp32"),
}


def load(path: Path) -> FinetuneConfig:
    """Reads a YAML file; relative paths in it are relative to its directory.

    Raises UserError naming the key and what is allowed.
    """
    return parse(read(path), path.parent, str(path))


def read(path: Path) -> dict[str, Any]:
    """Returns the values of a YAML file as they are. Raises UserError for one that has none."""
    try:
        values = yamls.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}", "give a YAML file; finetune/examples has one for each task"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a mapping of settings", "write one `key: value` a line")
    return values


def parse(values: Mapping[str, Any], directory: Path, name: str = "config") -> FinetuneConfig:
    """Returns the checked settings. `directory` is what relative paths start from, `name` is for messages."""
    if "search" in values:
        raise UserError(f"{name}: search is given", "`tuneserve search` tries it, and writes a config without it")
    for key in values:
        if key not in CHECKS:
            close = difflib.get_close_matches(str(key), CHECKS, n=1)
            raise UserError(
                f"{name}: unknown key {key}",
                f"did you mean {close[0]}?" if close else "allowed: " + ", ".join(CHECKS),
            )
    given = {key: value for key, value in values.items() if value is not None}
    if "continue_from" in given:
        if "base_model" in given:
            raise UserError(f"{name}: both base_model and continue_from are given", "give one of them")
        given["base_model"] = given["continue_from"]
    for key in ("task", "base_model", "train", "output"):
        if key not in given:
            raise UserError(f"{name}: {key} is missing", f"{key}: {CHECKS[key][1]}")
    for key, value in given.items():
        check, allowed = CHECKS[key]
        value = number_from_text(key, value)
        if not check(value):
            raise UserError(f"{name}: {key} is {value!r}", f"allowed: {allowed}")
        given[key] = tuple(value) if isinstance(value, list) else value
    config = FinetuneConfig(**given | {"output": _local(directory, given["output"])})
    _check_together(config, given, name)
    old = config.continue_from and str(_local(directory, config.continue_from))
    return replace(
        config,
        base_model=old or _path_or_id(directory, config.base_model),
        continue_from=old,
        train=_path_or_id(directory, config.train),
        replay=config.replay and _path_or_id(directory, config.replay),
        replay_share=config.replay_share or (0.2 if config.replay else None),
        test=config.test and _path_or_id(directory, config.test),
        teacher=config.teacher and _path_or_id(directory, config.teacher),
        chat_template=config.chat_template and _jinja(directory, config.chat_template, name),
        test_size=config.test_size or (None if config.test else 0.1),
        learning_rate=config.learning_rate or METHODS[config.method],
    )


def _check_together(config: FinetuneConfig, given: Mapping[str, Any], name: str) -> None:
    if config.test and config.test_size:
        raise UserError(f"{name}: both test and test_size are given", "give one of them")
    for key in ("replay", "replay_share"):
        if key in given and not config.continue_from:
            raise UserError(
                f"{name}: {key} is given, and no continue_from", "name the checkpoint that old rows trained"
            )
    if config.problem_type != "single-label" and config.task != "sequence-classification":
        raise UserError(
            f"{name}: problem_type is {config.problem_type}", "only sequence-classification has problem_type"
        )
    for key in ("prompt_template", "chat_template", "long_prompts", "train_on"):
        if key in given and config.task != "generation":
            raise UserError(f"{name}: {key} is given", "only generation has prompts")
    for key in ("labels", "class_weights", "label_smoothing", "focal_gamma", "rdrop_alpha", "teacher"):
        if given.get(key) and config.problem_type == "regression":
            raise UserError(f"{name}: {key} is given", "a regression has numbers, not classes")
    for key in given:
        if key.startswith("lora_") and config.method in ("full", "ia3"):
            raise UserError(f"{name}: {key} is given", f"method {config.method} has no such setting: leave it out")
    if config.last_layers is not None and config.method != "full":
        raise UserError(f"{name}: last_layers is given", "it is for method: full; adapters are in every layer")
    if config.keep_layers and config.method != "full":
        raise UserError(f"{name}: keep_layers is given", "it is for method: full; an adapter belongs to a whole model")
    if config.early_stopping and not config.validation_size:
        raise UserError(f"{name}: early_stopping is given, and no validation_size", "for example validation_size: 0.1")
    if config.validation_size and config.save_steps:
        raise UserError(f"{name}: both validation_size and save_steps are given", "with the first, epochs are saved")
    for key in given:
        if key.startswith("distillation_") and not config.teacher:
            raise UserError(f"{name}: {key} is given, and no teacher", "name the model that teaches")
    if config.teacher and config.method == "adalora":
        raise UserError(f"{name}: teacher is given", "adalora has a loss of its own: choose another method")
    if config.packing and config.task != "generation":
        raise UserError(f"{name}: packing is given", "it is for generation; classifiers have one answer a row")
    for key in OBJECTIVE:
        if given.get(key) and config.task == "generation":
            raise UserError(f"{name}: {key} is given", "it is for classifiers; neftune_alpha is for every task")
        if given.get(key) and config.method == "adalora":
            raise UserError(f"{name}: {key} is given", "adalora has a loss of its own: choose another method")
    if config.method == "adalora" and (config.validation_size or config.save_steps):
        key = "validation_size" if config.validation_size else "save_steps"
        raise UserError(f"{name}: {key} is given", "the ranks of adalora can't be saved and loaded within a run")
    if config.temperature_scaling and (config.task != "sequence-classification" or config.problem_type == "regression"):
        raise UserError(f"{name}: temperature_scaling is given", "it is for probabilities of whole texts' labels")
    if config.temperature_scaling and not config.validation_size:
        raise UserError(
            f"{name}: temperature_scaling is given, and no validation_size", "for example validation_size: 0.1"
        )
    for package in config.report_to or ():
        # A folder that is called so, as wandb leaves one, has no origin.
        if (spec := importlib.util.find_spec(package)) is None or spec.origin is None:
            raise UserError(f"{name}: report_to has {package}, which is not installed", f"pip install {package}")
    if config.augment_copies and config.task == "generation":
        raise UserError(f"{name}: augment_copies is given", "answers are not to be changed: it is for classifiers")
    if config.labels and config.task == "generation":
        raise UserError(f"{name}: labels are given", "generation has no labels")


def number_from_text(key: str, value: Any) -> Any:
    """Returns the number where a setting is one: YAML 1.1 reads 2e-4 (no dot) as text."""
    if isinstance(value, str) and FIELD_TYPES[key] in (float, float | None):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _jinja(directory: Path, text: str, name: str) -> str:
    """Returns a template that is given as such, or as a file."""
    if "{{" in text or "{%" in text:
        return text
    path = _local(directory, text)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(
            f"{name}: chat_template: {path}: {reason}", "give a file of Jinja, or the template itself"
        ) from None


FIELD_TYPES = {field.name: field.type for field in fields(FinetuneConfig)}


def _local(directory: Path, text: str) -> Path:
    return (directory / Path(text).expanduser()).resolve()


def _path_or_id(directory: Path, text: str) -> str:
    """A hub id stays as it is; whatever exists, or is written like a path, becomes an absolute path."""
    path = _local(directory, text)
    looks_local = text.startswith((".", "/", "~")) or path.suffix in FORMATS
    return str(path) if path.exists() or looks_local else text
