"""The search space: the `search` key of a config file, checked value by value.

search:
  learning_rate: {low: 1e-5, high: 1e-3, log: true}
  method: [lora, full]
  lora_rank: [8, 16, 32]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneserve import settings
from tuneserve.errors import UserError
from tuneserve.finetune import config as config_module
from tuneserve.finetune.config import WRITERS, FinetuneConfig
from tuneserve.finetune.fields import number_from_text

if TYPE_CHECKING:
    import optuna

# Settings that can't be searched, because results would not be comparable: another base model or teacher, for example,
# may have seen the validation rows.
# fmt: off
FIXED = {
    "task", "base_model", "teacher", "continue_from", "replay", "replay_share", "train", "output", "test", "test_size",
    "validation_size", "format", "columns", "prompt_template", "chat_template", "group_column", "long_prompts",
    "labels", "problem_type", "max_train_rows", "max_test_rows", "keep_test_split", "precision", "save_steps",
    "save_dtype", "report_to", "answer_metrics", "seed",
    "back_translation", "text_language", "translation_server", "translation_model", "translation_rows",
}
# fmt: on
SEARCHED = [key for key in FinetuneConfig.model_fields if key not in FIXED]


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`; with `log`, each order of magnitude as likely as another."""

    low: float
    high: float
    log: bool


@dataclass(frozen=True)
class Space:
    """The settings to choose from, by their keys."""

    settings: Mapping[str, Range | list[Any]]

    @property
    def keys(self) -> list[str]:
        """The method comes first, because other settings depend on it."""
        return sorted(self.settings, key=lambda key: key != "method")

    def choose(self, trial: "optuna.Trial", values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a config's values with those that the trial proposes."""
        chosen: dict[str, Any] = {}
        for key in self.keys:
            setting = self.settings[key]
            if not _fits(key, chosen.get("method", values.get("method", "lora"))):
                continue
            if isinstance(setting, list):
                chosen[key] = trial.suggest_categorical(key, setting)
            elif _is_whole(key):
                chosen[key] = trial.suggest_int(key, int(setting.low), int(setting.high), log=setting.log)
            else:
                chosen[key] = trial.suggest_float(key, setting.low, setting.high, log=setting.log)
        return self.with_values(values, chosen)

    def with_values(self, values: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a config's values with the chosen ones, without settings that the chosen method does not have."""
        merged = {**values, **chosen}
        return {key: value for key, value in merged.items() if _fits(key, merged.get("method", "lora"))}

    def public(self) -> dict[str, Any]:
        """Returns the space in the form of the config file."""
        return {key: value if isinstance(value, list) else vars(value) for key, value in self.settings.items()}


def load(path: Path) -> tuple[dict[str, Any], Space]:
    """Returns the values of a config file without `search`, and the search space. Raises UserError naming the key."""
    values = config_module.read(path)
    space = values.pop("search", None)
    if not isinstance(space, dict) or not space:
        raise UserError(f"{path}: search is missing", "for example search: {learning_rate: [1e-4, 5e-4]}")
    if not values.get("validation_size"):
        raise UserError(f"{path}: validation_size is missing", "trials are compared on validation rows: 0.2, or so")
    if values.get("task") in WRITERS and "max_length" in space:
        raise UserError(
            f"{path}: search: max_length can't be compared for {values['task']}",
            "each max_length counts other tokens of the validation rows: set max_length outside of search",
        )
    return values, Space({key: _setting(f"{path}: search: {key}", key, value) for key, value in space.items()})


def _setting(where: str, key: str, value: Any) -> Range | list[Any]:
    if key not in SEARCHED:
        raise UserError(f"{where} is not a setting that can be searched", "allowed: " + ", ".join(SEARCHED))
    found = value
    if isinstance(value, dict):
        if not {"low", "high"} <= value.keys() <= {"low", "high", "log"} or not isinstance(value.get("log", 0), int):
            raise UserError(f"{where} is {value}", "give {low: 1, high: 2}, and log: true where magnitudes matter")
        found = [value["low"], value["high"]]
    if not isinstance(found, list) or not found or not all(isinstance(one, str | int | float) for one in found):
        raise UserError(f"{where} is {value!r}", "give a list of choices, or {low: 1, high: 2, log: false}")
    if settings.type_of(FinetuneConfig, key) == "a number":
        found = [number_from_text(one) for one in found]
    for one in found:
        if error := settings.wrong(FinetuneConfig, key, one):
            raise UserError(f"{where} has {one!r}", error.hint)
    if not isinstance(value, dict):
        return found
    low, high = found
    if isinstance(low, str) or isinstance(high, str) or not low < high or (value.get("log") and not low > 0):
        raise UserError(f"{where} is {value}", "low is a number below high, and above 0 with log: true")
    return Range(low, high, bool(value.get("log", False)))


def _fits(key: str, method: str) -> bool:
    """Returns whether a method has the setting."""
    if key.startswith("lora_"):
        return method not in ("full", "ia3")
    return method == "full" or key not in ("last_layers", "keep_layers")


def _is_whole(key: str) -> bool:
    return settings.type_of(FinetuneConfig, key) == "a whole number"
