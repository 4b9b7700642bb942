"""The settings of one training run: a YAML file, every key checked before anything is loaded."""

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from tuneserve import settings, yamls
from tuneserve.errors import UserError
from tuneserve.evaluation import answers
from tuneserve.finetune.fields import (
    AnswerMetrics,
    ClassWeights,
    Column,
    Jinja,
    LocalText,
    Number,
    Output,
    Part,
    PathOrId,
    Pooling,
    Prompts,
    Ratio,
    Share,
    Sizes,
    Template,
    Texts,
    Trackers,
)
from tuneserve.formats import Format
from tuneserve.settings import Count, Refused, Settings, Text

Method = Literal["lora", "dora", "rslora", "adalora", "ia3", "qlora", "full"]
# The default learning rate of each method.
METHODS: Mapping[Method, float] = {
    "lora": 5e-4,
    "dora": 5e-4,
    "rslora": 2e-4,
    "adalora": 2e-3,
    "ia3": 5e-3,
    "qlora": 5e-4,
    "full": 5e-5,
}
# Defaults of LoRA for entities, as tried in benchmarks/training/recipes.py: with larger rates the model may end up
# predicting none. With another rank, alpha keeps its ratio.
ENTITIES: Mapping[str, Any] = {"learning_rate": 2e-4, "epochs": 14.0, "lora_rank": 64}
ENTITIES_SCALE = 4
_OF_ENTITIES = "token-classification with lora: "
# The tasks with labels, those of queries and passages, and those whose models write.
CLASSIFIERS = ("sequence-classification", "token-classification")
PAIRS = ("embedding", "ranking")
WRITERS = ("generation", "preference")
# The texts of a row that can be translated and back. Entities would be lost, and answers must not be changed.
BACK_TRANSLATED: Mapping[str, tuple[str, ...]] = {
    "sequence-classification": ("text", "text_pair"),
    "embedding": ("query",),
    "ranking": ("query",),
}
# Wrong passages for each right one, by default.
RANKED = 4
# Settings whose values may be paths.
PATHS = ("base_model", "continue_from", "train", "replay", "test", "teacher", "output")
# Settings that change the loss.
OBJECTIVE = ("class_weights", "label_smoothing", "focal_gamma", "rdrop_alpha", "fgm_epsilon")


def _schema(schema: dict[str, Any]) -> None:
    """Adds to the schema what the fields can't say: `continue_from` replaces `base_model`, and the key `search`."""
    del schema["properties"]["base_model"]["default"]
    schema["oneOf"] = [{"required": ["base_model"]}, {"required": ["continue_from"]}]
    schema["properties"]["search"] = {"type": "object", "description": "the search space, for `tuneserve search` only"}


class FinetuneConfig(Settings):
    """What to train, on what, and how: the file of `tuneserve finetune`, `validate` and `search`."""

    # `load` and `parse` build it, and fill in the defaults that depend on other settings.

    model_config = ConfigDict(json_schema_extra=_schema)

    task: Literal[
        "sequence-classification", "token-classification", "generation", "preference", "embedding", "ranking"
    ] = Field(description="the model's task; preference makes a model for generation")
    base_model: PathOrId = Field(
        default="", description="a Hugging Face directory or a hub id; required unless `continue_from` is given"
    )
    train: PathOrId = Field(description="a file, or the id of a data set on the hub: owner/name[/config][:split]")
    output: Output = Field(description="the directory that the checkpoint is written to")
    continue_from: LocalText | None = Field(
        default=None,
        description="instead of `base_model`: a checkpoint of tuneserve to continue from; its labels are kept",
    )
    replay: PathOrId | None = Field(
        default=None,
        description="rows that the checkpoint was trained on, mixed with the new ones to reduce forgetting",
    )
    replay_share: Share | None = Field(
        default=None,
        description="share of old rows among the training rows; without `replay` they come from the rows that the "
        "checkpoint keeps; null: 0.2 with `replay`",
    )
    test: PathOrId | None = Field(default=None, description="held-out rows: a file or a data set id, as for `train`")
    test_size: Share | None = Field(
        default=None, description="share of `train` that is held out when there is no `test`; null: 0.1"
    )
    validation_size: Share | None = Field(
        default=None, description="share of `train` used for validation; the weights of the best epoch are kept"
    )
    format: Format | None = Field(default=None, description="format of the files; null: by their suffix")
    columns: Mapping[Column, Text] | None = Field(default=None, description="maps our column names to the file's")
    prompt_template: Template | None = Field(
        default=None,
        description="generation and preference: template of the prompt, with {column} for the row's columns",
    )
    chat_template: Jinja | None = Field(
        default=None,
        description="generation and preference: a Jinja template, or a file of one, instead of the base model's; saved "
        "with the model",
    )
    pooling: Pooling | None = Field(
        default=None, description="embedding: how the tokens' vectors become one; null: as the base model's files say"
    )
    prompts: Prompts | None = Field(
        default=None,
        description="embedding: texts before each query and each passage, such as `query: `; null: those of the base "
        "model's files; {}: none",
    )
    matryoshka: Sizes | None = Field(
        default=None,
        description="embedding: numbers of first dimensions that are trained to be good vectors by themselves",
    )
    mined_negatives: int | None = Field(
        default=None,
        ge=0,
        description="embedding and ranking: number of wrong passages added to each row: the most similar ones of other "
        f"rows; null: {RANKED} for ranking, 0 for embedding",
    )
    ranking_loss: Literal["bce", "listwise"] = Field(
        default="bce",
        description="ranking: bce: whether each pair is right, so that scores are probabilities; listwise: the right "
        "passage among the wrong ones",
    )
    preference_beta: Annotated[float, Field(gt=0, le=10), Number] = Field(
        default=0.1, description="preference: the larger, the nearer the model stays to its base model"
    )
    group_column: Text | None = Field(
        default=None, description="rows with the same value in this column are either all trained on or all held out"
    )
    labels: Texts | None = Field(
        default=None,
        description="the labels in order (token-classification: entity types); null: those of the data, sorted",
    )
    problem_type: Literal["single-label", "multi-label", "regression"] = Field(
        default="single-label", description="sequence-classification: the kind of labels"
    )
    max_train_rows: Count | None = Field(default=None, description="at most this many rows are trained on")
    max_test_rows: Count | None = Field(default=None, description="at most this many rows are held out for the test")
    keep_test_split: bool = Field(
        default=True,
        description="keep the held-out rows and some training rows in the checkpoint, for quantize; digests of all "
        "rows are always kept",
    )
    method: Method = Field(default="lora", description="the kind of adapter; full: train every weight")
    last_layers: int | None = Field(
        default=None,
        ge=0,
        description="full: train only this many of the last layers, and the head; 0: the head alone",
    )
    keep_layers: Count | None = Field(
        default=None, description="full: keep only this many of the base model's layers, evenly spread"
    )
    max_length: int = Field(
        default=512, ge=8, description="tokens; longer rows are truncated (generation: the prompt, at its beginning)"
    )
    long_prompts: Literal["truncate", "drop"] = Field(
        default="truncate",
        description="generation: drop leaves out rows whose prompt would have to be truncated",
    )
    train_on: Literal["all-turns", "last-turn"] = Field(
        default="all-turns",
        description="generation: which answers of a conversation are trained on; metrics are of the last answer",
    )
    answer_metrics: AnswerMetrics | None = Field(
        default=None,
        description="generation and preference: metrics of the model's own answers to held-out rows: chrf and bleu for "
        "translations, rouge for summaries",
    )
    packing: bool = Field(
        default=False,
        description="generation: pack short rows into sequences of `max_length` tokens; no row attends to another",
    )
    epochs: Annotated[float, Field(gt=0, le=1000), Number] = Field(
        default=3.0, description=f"passes over the training rows; {_OF_ENTITIES}{ENTITIES['epochs']:g}"
    )
    early_stopping: Count | None = Field(
        default=None, description="stop after this many epochs without a better validation loss"
    )
    batch_size: Count = Field(default=16, description="rows per batch, of all processes together")
    gradient_accumulation: Count = Field(
        default=1, description="batches per optimizer step: with a smaller `batch_size`, saves memory"
    )
    gradient_checkpointing: bool | None = Field(
        default=None,
        description="saves memory, takes a third more time; null: only for generation and preference on GPUs",
    )
    learning_rate: Annotated[float, Field(gt=0, le=1), Number] | None = Field(
        default=None,
        description="null: depends on the method: "
        + ", ".join(f"{rate:g} for {method}" for method, rate in METHODS.items())
        + f"; {_OF_ENTITIES}{ENTITIES['learning_rate']:g}; preference: a tenth of that",
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="how the learning rate falls after the warm-up"
    )
    weight_decay: Ratio = Field(default=0.01, description="of AdamW")
    warmup_ratio: Ratio = Field(default=0.1, description="share of the steps in which the learning rate rises")
    save_steps: Count | None = Field(
        default=None, description="steps between two saves of the state for --resume; null: save after each epoch"
    )
    temperature_scaling: bool = Field(
        default=False,
        description="sequence-classification: calibrate on the validation rows, so that confidence matches accuracy",
    )
    report_to: Trackers | None = Field(
        default=None, description="trackers besides OUTPUT-report, through transformers' integrations"
    )
    seed: int = Field(default=42, ge=0, description="seed of all random choices")
    save_dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16",
        description="dtype of the checkpoint's weights; float32: as they were trained, and twice the size",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="precision of training; auto: bf16 where the hardware supports it"
    )
    lora_rank: Count = Field(
        default=16, description=f"rank of the adapter's matrices; {_OF_ENTITIES}{ENTITIES['lora_rank']}"
    )
    lora_alpha: Count = Field(
        default=32,
        description="the adapter's output is scaled by alpha / rank; rslora: by alpha / √rank; "
        f"{_OF_ENTITIES}{ENTITIES_SCALE} times the rank",
    )
    lora_dropout: Part = Field(default=0.0, description="dropout in the adapter; costs half the speed on CPUs")
    lora_targets: Texts | None = Field(
        default=None, description="names of the modules to adapt; null: every linear layer but the head"
    )
    teacher: PathOrId | None = Field(
        default=None, description="distillation: a model trained for the same labels, whose outputs are learned too"
    )
    distillation_weight: Annotated[float, Field(gt=0, le=1), Number] = Field(
        default=0.5, description="weight of the teacher's outputs in the loss, against the loss of the labels"
    )
    distillation_temperature: Annotated[float, Field(gt=0, le=100), Number] = Field(
        default=2.0, description="temperature that softens the outputs of both models"
    )
    neftune_alpha: Annotated[float, Field(ge=0, le=100), Number] | None = Field(
        default=None, description="noise on the embeddings (NEFTune), 5 to 15 (Jain et al. 2023)"
    )
    class_weights: ClassWeights = Field(
        default=None, description="classifiers: balanced, or a weight for each of some labels"
    )
    label_smoothing: Part = Field(
        default=0.0, description="classifiers: probability taken from the right label and spread over the others"
    )
    focal_gamma: Annotated[float, Field(ge=0, le=10), Number] = Field(
        default=0.0, description="classifiers: focal loss; the higher, the less well-predicted rows count"
    )
    rdrop_alpha: Annotated[float, Field(ge=0, le=100), Number] = Field(
        default=0.0, description="classifiers: weight of the difference between two passes with dropout (R-Drop)"
    )
    fgm_epsilon: Annotated[float, Field(ge=0, le=10), Number] = Field(
        default=0.0, description="classifiers: size of an adversarial step on the embeddings (FGM)"
    )
    augment_copies: int = Field(
        default=0,
        ge=0,
        description="classifiers: number of changed copies of each training row; the next three say how",
    )
    word_dropout: Part = Field(default=0.1, description="share of a copy's words dropped")
    word_swap: Ratio = Field(default=0.0, description="share of a copy's words swapped")
    synonyms: Ratio = Field(
        default=0.0, description="share of a copy's words replaced by synonyms: English, from WordNet through NLTK"
    )

    back_translation: Texts | None = Field(
        default=None,
        description="classifiers of texts, embedding and ranking: languages through which training rows are translated "
        "and back, by a served model; one new row for each",
    )
    text_language: Text = Field(default="English", description="the language of the rows, for back_translation")
    translation_server: Text | None = Field(
        default=None, description="back_translation: a running server, host:port; its key is in TUNESERVE_KEY"
    )
    translation_model: Text | None = Field(
        default=None, description="back_translation: the generation model, or alias, that translates"
    )
    translation_rows: Count = Field(default=1000, description="back_translation: at most this many rows are translated")

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
                raise Refused(
                    f"{key} is given, and no continue_from", "name the checkpoint that was trained on the old rows"
                )
        if self.problem_type != "single-label" and self.task != "sequence-classification":
            raise Refused(f"problem_type is {self.problem_type}", "only sequence-classification has problem_type")
        for key in ("prompt_template", "chat_template", "answer_metrics"):
            if key in given and self.task not in WRITERS:
                raise Refused(f"{key} is given", f"it is for {' and '.join(WRITERS)}")
        for key in ("long_prompts", "train_on"):
            if key in given and self.task != "generation":
                raise Refused(f"{key} is given", "it is for generation")
        if "preference_beta" in given and self.task != "preference":
            raise Refused("preference_beta is given", "it is for preference")
        if self.task == "preference" and self.method == "full":
            raise Refused(
                "method is full",
                "answers are compared with the base model's, the model without its adapter: method: lora",
            )
        for key in ("lora_dropout", "neftune_alpha"):
            if key in given and self.task == "preference":
                raise Refused(f"{key} is given", "preference compares the model with its base model, without noise")
        if self.task == "preference" and self.continue_from:
            raise Refused("continue_from is given", "preference begins with a finished model: give it as base_model")
        for key in ("pooling", "prompts", "matryoshka"):
            if key in given and self.task != "embedding":
                raise Refused(f"{key} is given", "only embedding has vectors")
        if "mined_negatives" in given and self.task not in PAIRS:
            raise Refused("mined_negatives is given", f"it is for {' and '.join(PAIRS)}")
        if "ranking_loss" in given and self.task != "ranking":
            raise Refused("ranking_loss is given", "it is for ranking")
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
            raise Refused("both validation_size and save_steps are given", "with validation_size, each epoch is saved")
        for key in given:
            if key.startswith("distillation_") and not self.teacher:
                raise Refused(f"{key} is given, and no teacher", "name the model that teaches")
        if self.teacher and self.method == "adalora":
            raise Refused("teacher is given", "adalora has a loss of its own: choose another method")
        if self.packing and self.task != "generation":
            raise Refused("packing is given", "it is for generation; classifiers have one answer a row")
        if self.teacher and self.task in (*PAIRS, "preference"):
            raise Refused("teacher is given", f"{self.task} learns from pairs alone")
        for key in OBJECTIVE:
            if getattr(self, key) and self.task not in CLASSIFIERS:
                raise Refused(f"{key} is given", "it is for classifiers; neftune_alpha is for every task")
            if getattr(self, key) and self.method == "adalora":
                raise Refused(f"{key} is given", "adalora has a loss of its own: choose another method")
        if self.method == "adalora" and self.task in (*PAIRS, "preference"):
            raise Refused("method is adalora", "it has a loss of its own: choose another method")
        if self.method == "adalora" and (self.validation_size or self.save_steps):
            key = "validation_size" if self.validation_size else "save_steps"
            raise Refused(f"{key} is given", "the ranks of adalora can't be saved and loaded within a run")
        if self.temperature_scaling and (self.task != "sequence-classification" or self.problem_type == "regression"):
            raise Refused("temperature_scaling is given", "it is for probabilities of whole texts' labels")
        if self.temperature_scaling and not self.validation_size:
            raise Refused("temperature_scaling is given, and no validation_size", "for example validation_size: 0.1")
        for package in self.report_to or ():
            # A plain folder of that name, such as the one that wandb leaves behind, has no origin.
            if (spec := importlib.util.find_spec(package)) is None or spec.origin is None:
                raise Refused(f"report_to has {package}, which is not installed", f"pip install {package}")
        if packages := answers.missing(self.answer_metrics or ()):
            raise Refused(f"answer_metrics needs {packages[0]}, which is not installed", "pip install tuneserve[train]")
        if self.augment_copies and self.task not in CLASSIFIERS:
            raise Refused("augment_copies is given", "it is for classifiers: answers must not be changed")
        if self.back_translation and self.task not in BACK_TRANSLATED:
            raise Refused("back_translation is given", f"it is for {', '.join(BACK_TRANSLATED)}")
        for key in ("text_language", "translation_server", "translation_model", "translation_rows"):
            if key in given and not self.back_translation:
                raise Refused(f"{key} is given, and no back_translation", "for example back_translation: [German]")
        for key in ("translation_server", "translation_model"):
            if self.back_translation and not getattr(self, key):
                raise Refused(f"back_translation is given, and no {key}", "name a running server, and its model")
        if self.labels and self.task not in CLASSIFIERS:
            raise Refused("labels are given", f"{self.task} has no labels")
        return self

    def public(self) -> dict[str, Any]:
        """Returns the settings for the lineage: local paths by their last name only."""
        values = self.model_dump(exclude_none=True)
        for key in PATHS:
            if key in values and Path(values[key]).is_absolute():
                values[key] = Path(values[key]).name
        # An address is nobody else's business, and the same translations may come from another.
        values.pop("translation_server", None)
        if self.chat_template:
            # Too long for the lineage; the checkpoint has the template itself.
            values["chat_template"] = f"SHA-256 {hashlib.sha256(self.chat_template.encode()).hexdigest()}"
        return values


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the names of settings, as `public` gives them, that differ between two runs.

    An older release had fewer settings, and did what the defaults of the new ones do.
    """
    defaults = {name: field.default for name, field in FinetuneConfig.model_fields.items()}
    return [key for key in sorted({*before, *now}) if before.get(key, defaults.get(key)) != now.get(key)]


def load(path: Path) -> FinetuneConfig:
    """Reads a YAML file; relative paths in it are relative to its directory.

    Raises UserError naming the key and what is allowed.
    """
    return parse(read(path), path.parent, str(path))


def read(path: Path) -> dict[str, Any]:
    """Returns the values of a YAML file, unchecked. Raises UserError for a file that is no mapping."""
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
    # All of them are within the bounds of their fields.
    return config.model_copy(
        update={
            **_defaults(config),
            "base_model": config.continue_from or config.base_model,
            "replay_share": config.replay_share or (0.2 if config.replay else None),
            "test_size": config.test_size or (None if config.test else 0.1),
        }
    )


def _defaults(config: FinetuneConfig) -> dict[str, Any]:
    """Returns the defaults that depend on the task and the method, of settings that are not given."""
    defaults: dict[str, Any] = {"learning_rate": METHODS[config.method]}
    if config.task == "token-classification" and config.method == "lora":
        rank = config.lora_rank if "lora_rank" in config.model_fields_set else ENTITIES["lora_rank"]
        defaults = {**ENTITIES, "lora_alpha": ENTITIES_SCALE * rank}
    if config.task == "preference":
        # Larger ones make both answers of a pair unlikely.
        defaults["learning_rate"] = METHODS[config.method] / 10
    if config.task in PAIRS:
        defaults["mined_negatives"] = RANKED if config.task == "ranking" else 0
    return {key: value for key, value in defaults.items() if key not in config.model_fields_set}
