"""The settings of one training run: a YAML file, every key checked before anything is loaded."""

import hashlib
import importlib.util
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from tuneserve import settings, yamls
from tuneserve.errors import UserError
from tuneserve.settings import Count, Listed, Refused, Settings, Text

Method = Literal["lora", "dora", "rslora", "adalora", "ia3", "qlora", "full"]
# The learning rate unless told.
METHODS: Mapping[Method, float] = {
    "lora": 5e-4,
    "dora": 5e-4,
    "rslora": 2e-4,
    "adalora": 2e-3,
    "ia3": 5e-3,
    "qlora": 5e-4,
    "full": 5e-5,
}
Format = Literal["conll", "csv", "jsonl", "parquet"]
# By the suffix of a file.
FORMATS: Mapping[str, Format] = {
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
# fmt: off
Column = Literal[
    "text", "text_pair", "label", "labels", "head", "tail", "tokens", "tags", "entities", "messages", "tools",
    "prompt", "completion",
]
# fmt: on
# Settings that may be paths.
PATHS = ("base_model", "continue_from", "train", "replay", "test", "teacher", "output")
# What makes another loss than the plain one.
OBJECTIVE = ("class_weights", "label_smoothing", "focal_gamma", "rdrop_alpha", "fgm_epsilon")


def number_from_text(value: Any) -> Any:
    """Returns the number where a text is one: YAML 1.1 reads 2e-4 (no dot) as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def template_columns(template: str) -> list[str]:
    """Returns the {columns} of a `prompt_template`."""
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def _template(text: str) -> str:
    try:
        names = template_columns(text)
    except ValueError:
        names = []
    if not names or not all(name.isidentifier() for name in names):
        raise Refused(f"{text!r} is not allowed", "allowed: text with {columns} of your rows in it")
    return text


def _different(texts: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise Refused(f"{twice!r} is a duplicate", "allowed: a list of different texts")
    return texts


def _local(text: str, info: ValidationInfo) -> Path:
    return ((info.context or Path()) / Path(text).expanduser()).resolve()


def _output(value: object, info: ValidationInfo) -> object:
    return _local(value, info) if isinstance(value, str) and value.strip() else value


def _path_or_id(text: str, info: ValidationInfo) -> str:
    """A hub id stays as it is; whatever exists, or is written like a path, becomes an absolute path."""
    path = _local(text, info)
    looks_local = text.startswith((".", "/", "~")) or path.suffix in FORMATS
    return str(path) if path.exists() or looks_local else text


def _jinja(text: str, info: ValidationInfo) -> str:
    """Returns a template that is given as such, or as a file."""
    if "{{" in text or "{%" in text:
        return text
    path = _local(text, info)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise Refused(f"{path}: {reason}", "give a file of Jinja, or the template itself") from None


_PathOrId = Annotated[Text, AfterValidator(_path_or_id)]
_LocalText = Annotated[Text, AfterValidator(lambda text, info: str(_local(text, info)))]
_Output = Annotated[Path, BeforeValidator(_output)]
_Texts = Annotated[tuple[Text, ...], Field(min_length=1), AfterValidator(_different), Listed]
_Number = BeforeValidator(number_from_text)
_Share = Annotated[float, Field(gt=0, le=0.9), _Number]
_Part = Annotated[float, Field(ge=0, le=0.9), _Number]
_Ratio = Annotated[float, Field(ge=0, le=1), _Number]
_Weights = Annotated[Mapping[Text, Annotated[float, Field(gt=0, le=1000)]], Field(min_length=1)]
_Trackers = Annotated[tuple[Literal["wandb", "mlflow"], ...], Field(min_length=1), AfterValidator(_different), Listed]


def _schema(schema: dict[str, Any]) -> None:
    """What a file may say beside the fields: `continue_from` stands for the base model, and `search` reads more."""
    del schema["properties"]["base_model"]["default"]
    schema["oneOf"] = [{"required": ["base_model"]}, {"required": ["continue_from"]}]
    schema["properties"]["search"] = {"type": "object", "description": "what `tuneserve search` tries, and only that"}


class FinetuneConfig(Settings):
    """What to train, on what, and how: the file of `tuneserve finetune`, `validate` and `search`."""

    # `load` and `parse` build it, and fill in what is by default as other settings are.

    model_config = ConfigDict(json_schema_extra=_schema)

    task: Literal["sequence-classification", "token-classification", "generation"] = Field(
        description="what the model is to do"
    )
    base_model: _PathOrId = Field(
        default="", description="a Hugging Face directory or a hub id; needed, unless `continue_from` is given"
    )
    train: _PathOrId = Field(description="a file, or the id of a data set on the hub: owner/name[/config][:split]")
    output: _Output = Field(description="the directory of the checkpoint that is made")
    continue_from: _LocalText | None = Field(
        default=None, description="in place of `base_model`: a checkpoint made here, whose labels are kept"
    )
    replay: _PathOrId | None = Field(
        default=None, description="rows that the checkpoint was trained on, mixed with the new ones: less is forgotten"
    )
    replay_share: _Share | None = Field(
        default=None,
        description="share of the training rows that are old ones; without `replay`, of those that the checkpoint "
        "keeps; null: 0.2 with `replay`",
    )
    test: _PathOrId | None = Field(default=None, description="held-out rows, as `train`")
    test_size: _Share | None = Field(
        default=None, description="share of `train` that is held out when there is no `test`; null: 0.1"
    )
    validation_size: _Share | None = Field(
        default=None, description="share of `train` that tells which epoch was best; its weights are kept"
    )
    format: Format | None = Field(default=None, description="of the files; null: by their suffix")
    columns: Mapping[Column, Text] | None = Field(default=None, description="our name of a column: the file's")
    prompt_template: Annotated[Text, AfterValidator(_template)] | None = Field(
        default=None, description="generation: the prompt, with {columns} of the row in it"
    )
    chat_template: Annotated[Text, AfterValidator(_jinja)] | None = Field(
        default=None, description="generation: Jinja, or a file of it, in place of the base model's; saved with it"
    )
    group_column: Text | None = Field(
        default=None, description="rows with the same value in it are all trained on, or all held out"
    )
    labels: _Texts | None = Field(
        default=None,
        description="the labels in their order, or the entity types of tokens; null: those of the data, sorted",
    )
    problem_type: Literal["single-label", "multi-label", "regression"] = Field(
        default="single-label", description="what labels are; sequence-classification"
    )
    max_train_rows: Count | None = Field(default=None, description="no more rows are trained on")
    max_test_rows: Count | None = Field(default=None, description="no more rows are held out for the test")
    keep_test_split: bool = Field(
        default=True,
        description="held-out rows are kept in the checkpoint, with some of the training rows: what quantize works "
        "with; digests of all rows always are",
    )
    method: Method = Field(default="lora", description="an adapter by how it trains, or full: every weight")
    last_layers: int | None = Field(
        default=None,
        ge=0,
        description="full: only so many of the last layers learn, and the head; 0 for the head alone",
    )
    keep_layers: Count | None = Field(
        default=None, description="full: only so many of the base model's layers stay, evenly spread"
    )
    max_length: int = Field(
        default=512, ge=8, description="tokens; longer rows are truncated: of generation, the beginning of the prompt"
    )
    long_prompts: Literal["cut", "drop"] = Field(
        default="cut", description="generation: drop leaves out rows whose prompt would have to be truncated"
    )
    train_on: Literal["all-turns", "last-turn"] = Field(
        default="all-turns",
        description="generation: which answers of a conversation are learned; the last one is measured",
    )
    packing: bool = Field(
        default=False,
        description="generation: several short rows in one of `max_length` tokens, none of which sees another",
    )
    epochs: Annotated[float, Field(gt=0, le=1000), _Number] = Field(
        default=3.0, description="passes over the training rows"
    )
    early_stopping: Count | None = Field(
        default=None, description="end after so many epochs in which the validation loss did not get better"
    )
    batch_size: Count = Field(default=16, description="rows of one step, on all processes together")
    gradient_accumulation: Count = Field(default=1, description="parts that a batch is computed in, for less memory")
    gradient_checkpointing: bool | None = Field(
        default=None, description="less memory for a third more time; null: generation on GPUs"
    )
    learning_rate: Annotated[float, Field(gt=0, le=1), _Number] | None = Field(
        default=None,
        description="null: by the method, " + ", ".join(f"{rate:g} for {method}" for method, rate in METHODS.items()),
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="how the learning rate falls after the warm-up"
    )
    weight_decay: _Ratio = Field(default=0.01, description="of AdamW")
    warmup_ratio: _Ratio = Field(default=0.1, description="share of the steps in which the learning rate rises")
    save_steps: Count | None = Field(
        default=None, description="how often the state is saved that --resume goes on from; null: each epoch"
    )
    temperature_scaling: bool = Field(
        default=False, description="texts: confidence made to match accuracy (calibration), on the validation rows"
    )
    report_to: _Trackers | None = Field(
        default=None, description="trackers besides OUTPUT-report, by transformers' integrations"
    )
    seed: int = Field(default=42, ge=0, description="of every choice by chance")
    save_dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="of the checkpoint's weights; float32: as they were trained, and twice the size"
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="of the training; auto: bf16 where the hardware has it"
    )
    lora_rank: Count = Field(default=16, description="of the adapter's matrices")
    lora_alpha: Count = Field(default=32, description="the adapter counts alpha / rank times; rslora: alpha / √rank")
    lora_dropout: _Part = Field(default=0.0, description="costs half the speed on CPUs")
    lora_targets: _Texts | None = Field(
        default=None, description="names of modules; null: every linear layer but the head"
    )
    teacher: _PathOrId | None = Field(
        default=None, description="a model trained for the same labels, whose answers are learned too (distillation)"
    )
    distillation_weight: Annotated[float, Field(gt=0, le=1), _Number] = Field(
        default=0.5, description="of the teacher's answers in the loss, against that of the labels"
    )
    distillation_temperature: Annotated[float, Field(gt=0, le=100), _Number] = Field(
        default=2.0, description="of both models' answers"
    )
    neftune_alpha: Annotated[float, Field(ge=0, le=100), _Number] | None = Field(
        default=None, description="noise on the embeddings, 5 to 15 (Jain et al. 2023)"
    )
    class_weights: Literal["balanced"] | _Weights | None = Field(
        default=None, description="classifiers: balanced, or a number for some of the labels"
    )
    label_smoothing: _Part = Field(
        default=0.0, description="classifiers: probability taken from the right label and spread over the others"
    )
    focal_gamma: Annotated[float, Field(ge=0, le=10), _Number] = Field(
        default=0.0, description="classifiers: how much less rows count that are right already (focal loss)"
    )
    rdrop_alpha: Annotated[float, Field(ge=0, le=100), _Number] = Field(
        default=0.0, description="classifiers: weight of the difference between two passes with dropout (R-Drop)"
    )
    fgm_epsilon: Annotated[float, Field(ge=0, le=10), _Number] = Field(
        default=0.0, description="classifiers: size of an adversarial step on the embeddings (FGM)"
    )
    augment_copies: int = Field(
        default=0, ge=0, description="classifiers: changed copies of each training row, by the three settings below"
    )
    word_dropout: _Part = Field(default=0.1, description="share of a copy's words dropped")
    word_swap: _Ratio = Field(default=0.0, description="share of a copy's words swapped")
    synonyms: _Ratio = Field(
        default=0.0, description="share of a copy's words replaced by synonyms: English, from WordNet through NLTK"
    )

    @field_validator("class_weights", mode="wrap")
    @classmethod
    def _balanced_or_weights(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        # One error, where each of the two forms has its own.
        try:
            return check(value)
        except ValidationError:
            raise Refused(
                f"{value!r} is not allowed", "allowed: balanced, or a mapping of labels to numbers above 0"
            ) from None

    @model_validator(mode="after")
    def _check_together(self) -> "FinetuneConfig":
        given = [key for key in type(self).model_fields if key in self.model_fields_set]
        if not self.base_model and not self.continue_from:
            raise Refused("base_model is missing", "base_model: a Hugging Face directory or a hub id")
        if self.base_model and self.continue_from:
            raise Refused("both base_model and continue_from are given", "give one of them")
        if self.test and self.test_size:
            raise Refused("both test and test_size are given", "give one of them")
        for key in ("replay", "replay_share"):
            if key in given and not self.continue_from:
                raise Refused(f"{key} is given, and no continue_from", "name the checkpoint that old rows trained")
        if self.problem_type != "single-label" and self.task != "sequence-classification":
            raise Refused(f"problem_type is {self.problem_type}", "only sequence-classification has problem_type")
        for key in ("prompt_template", "chat_template", "long_prompts", "train_on"):
            if key in given and self.task != "generation":
                raise Refused(f"{key} is given", "only generation has prompts")
        for key in ("labels", "class_weights", "label_smoothing", "focal_gamma", "rdrop_alpha", "teacher"):
            if getattr(self, key) and self.problem_type == "regression":
                raise Refused(f"{key} is given", "a regression has numbers, not classes")
        for key in given:
            if key.startswith("lora_") and self.method in ("full", "ia3"):
                raise Refused(f"{key} is given", f"method {self.method} has no such setting: leave it out")
        if self.last_layers is not None and self.method != "full":
            raise Refused("last_layers is given", "it is for method: full; adapters are in every layer")
        if self.keep_layers and self.method != "full":
            raise Refused("keep_layers is given", "it is for method: full; an adapter belongs to a whole model")
        if self.early_stopping and not self.validation_size:
            raise Refused("early_stopping is given, and no validation_size", "for example validation_size: 0.1")
        if self.validation_size and self.save_steps:
            raise Refused("both validation_size and save_steps are given", "with the first, epochs are saved")
        for key in given:
            if key.startswith("distillation_") and not self.teacher:
                raise Refused(f"{key} is given, and no teacher", "name the model that teaches")
        if self.teacher and self.method == "adalora":
            raise Refused("teacher is given", "adalora has a loss of its own: choose another method")
        if self.packing and self.task != "generation":
            raise Refused("packing is given", "it is for generation; classifiers have one answer a row")
        for key in OBJECTIVE:
            if getattr(self, key) and self.task == "generation":
                raise Refused(f"{key} is given", "it is for classifiers; neftune_alpha is for every task")
            if getattr(self, key) and self.method == "adalora":
                raise Refused(f"{key} is given", "adalora has a loss of its own: choose another method")
        if self.method == "adalora" and (self.validation_size or self.save_steps):
            key = "validation_size" if self.validation_size else "save_steps"
            raise Refused(f"{key} is given", "the ranks of adalora can't be saved and loaded within a run")
        if self.temperature_scaling and (self.task != "sequence-classification" or self.problem_type == "regression"):
            raise Refused("temperature_scaling is given", "it is for probabilities of whole texts' labels")
        if self.temperature_scaling and not self.validation_size:
            raise Refused("temperature_scaling is given, and no validation_size", "for example validation_size: 0.1")
        for package in self.report_to or ():
            # A folder that is called so, as wandb leaves one, has no origin.
            if (spec := importlib.util.find_spec(package)) is None or spec.origin is None:
                raise Refused(f"report_to has {package}, which is not installed", f"pip install {package}")
        if self.augment_copies and self.task == "generation":
            raise Refused("augment_copies is given", "answers are not to be changed: it is for classifiers")
        if self.labels and self.task == "generation":
            raise Refused("labels are given", "generation has no labels")
        return self

    def public(self) -> dict[str, Any]:
        """Returns the settings for the lineage: local paths by their last name only."""
        values = self.model_dump(exclude_none=True)
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
    defaults = {name: field.default for name, field in FinetuneConfig.model_fields.items()}
    return [key for key in sorted({*before, *now}) if before.get(key, defaults.get(key)) != now.get(key)]


def load(path: Path) -> FinetuneConfig:
    """Reads a YAML file; relative paths in it are relative to its directory.

    Raises UserError naming the key and what is allowed.
    """
    return parse(read(path), path.parent, str(path))


def read(path: Path) -> dict[str, Any]:
    """Returns the values of a YAML file as they are. Raises UserError for one that has none."""
    values = yamls.read(path, "give a YAML file; finetune/examples has one for each task")
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a mapping of settings", "write one `key: value` a line")
    return values


def parse(values: Mapping[str, Any], directory: Path, name: str = "config") -> FinetuneConfig:
    """Returns the checked settings. `directory` is what relative paths start from, `name` is for messages."""
    if "search" in values:
        raise UserError(f"{name}: search is given", "`tuneserve search` tries it, and writes a config without it")
    given = {key: value for key, value in values.items() if value is not None}
    config = settings.build(FinetuneConfig, given, name, directory)
    # Within the bounds of their fields, all of them.
    return config.model_copy(
        update={
            "base_model": config.continue_from or config.base_model,
            "replay_share": config.replay_share or (0.2 if config.replay else None),
            "test_size": config.test_size or (None if config.test else 0.1),
            "learning_rate": config.learning_rate or METHODS[config.method],
        }
    )
