import importlib
from pathlib import Path
from typing import Any, get_args

import pytest

from tuneserve import checkpoint, formats
from tuneserve.checkpoint.tasks import TRAINABLE
from tuneserve.errors import UserError
from tuneserve.finetune import config

GOOD = {"task": "sequence-classification", "base_model": "org/model", "train": "d.jsonl", "output": "out"}


def parse(tmp_path: Path, **values: Any) -> config.FinetuneConfig:
    return config.parse({**GOOD, **values}, tmp_path)


def test_relative_paths_start_at_the_file_and_hub_ids_stay(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "task: generation\nbase_model: org/model\ntrain: data/d.jsonl\ntest: org/set/config:test\noutput: out\n"
    )
    found = config.load(tmp_path / "run.yaml")
    assert found.base_model == "org/model"
    assert found.train == str(tmp_path / "data/d.jsonl")
    assert found.test == "org/set/config:test"
    assert found.output == tmp_path / "out"
    assert found.test_size is None


def test_a_local_model_directory_wins_over_a_hub_id(tmp_path: Path) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert parse(tmp_path).base_model == str(tmp_path / "org" / "model")


def test_a_checkpoint_to_go_on_from_stands_for_the_base_model(tmp_path: Path) -> None:
    found = parse(tmp_path, base_model=None, continue_from="old", replay="old.jsonl")
    assert found.base_model == found.continue_from == str(tmp_path / "old")
    assert found.public()["continue_from"] == "old"
    assert found.public()["replay"] == "old.jsonl"


def test_defaults_are_resolved(tmp_path: Path) -> None:
    assert parse(tmp_path).test_size == 0.1
    assert parse(tmp_path).learning_rate == 5e-4
    assert parse(tmp_path, method="full").learning_rate == 5e-5
    assert parse(tmp_path, method="ia3").learning_rate == 5e-3


def test_entities_have_defaults_of_their_own_with_lora(tmp_path: Path) -> None:
    def found(**given: Any) -> tuple[float | None, float, int, int]:
        settings = parse(tmp_path, **{"task": "token-classification", **given})
        return settings.learning_rate, settings.epochs, settings.lora_rank, settings.lora_alpha

    assert found() == found(method="lora") == (2e-4, 14, 64, 256)
    assert found(learning_rate=1e-3, epochs=2) == (1e-3, 2, 64, 256)
    # Another rank, at the same scale.
    assert found(lora_rank=16) == (2e-4, 14, 16, 64)
    assert found(lora_alpha=32, lora_rank=None) == (2e-4, 14, 64, 32)
    assert found(method="full") == (5e-5, 3, 16, 32)
    assert found(method="dora") == found(task="sequence-classification") == (5e-4, 3, 16, 32)


def test_preference_learns_more_slowly(tmp_path: Path) -> None:
    assert parse(tmp_path, task="preference").learning_rate == pytest.approx(5e-5)
    assert parse(tmp_path, task="preference", method="rslora").learning_rate == pytest.approx(2e-5)
    assert parse(tmp_path, task="preference", learning_rate=1e-3).learning_rate == 1e-3
    assert parse(tmp_path, task="preference", chat_template="{{ messages }}").chat_template == "{{ messages }}"


@pytest.mark.parametrize("key", ["chat_template", "long_prompts", "train_on"])
def test_what_only_generation_has(tmp_path: Path, key: str) -> None:
    value = {"chat_template": "{{ messages }}", "long_prompts": "drop", "train_on": "last-turn"}[key]
    assert getattr(parse(tmp_path, task="generation", **{key: value}), key) == value
    with pytest.raises(UserError, match=f"{key} is given"):
        parse(tmp_path, **{key: value})


def test_the_lineage_gets_no_local_paths(tmp_path: Path) -> None:
    public = parse(tmp_path, base_model="./models/mine").public()
    assert public["base_model"] == "mine"
    assert public["train"] == "d.jsonl"
    assert str(tmp_path) not in str(public)


def test_the_choices_are_those_that_the_code_has() -> None:
    assert set(get_args(config.FinetuneConfig.model_fields["task"].annotation)) == set(TRAINABLE)
    assert set(get_args(config.FinetuneConfig.model_fields["problem_type"].annotation)) == set(checkpoint.PROBLEM_TYPES)
    assert set(get_args(config.Method)) == set(config.METHODS)
    assert set(get_args(formats.Format)) == set(formats.FORMATS.values())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1}, "unknown key 'learning_rat'"),
        ({"task": "regression"}, "task: 'regression' is not allowed"),
        ({"epochs": 0}, "epochs: 0 is not allowed"),
        ({"epochs": True}, "epochs: expected a number, found True"),
        ({"epochs": float("nan")}, "epochs: nan is not allowed"),
        ({"batch_size": 1.5}, "batch_size: expected a whole number, found 1.5"),
        ({"batch_size": "8"}, "batch_size: expected a whole number, found '8'"),
        ({"learning_rate": "fast"}, "learning_rate: expected a number, found 'fast'"),
        ({"lora_dropout": 1.0}, "lora_dropout: 1.0 is not allowed"),
        ({"labels": ["a", "a"]}, "labels: 'a' is a duplicate"),
        ({"labels": [True, False]}, r"labels\[0\]: expected text, found True"),
        ({"labels": "a"}, "labels: expected a list, found 'a'"),
        ({"columns": {"sentence": "text"}}, "columns: 'sentence' is not allowed"),
        ({"keep_test_split": "yes"}, "keep_test_split: expected true or false, found 'yes'"),
        ({"train": ["d.jsonl"]}, "train: expected text, found "),
        ({"test": "t.jsonl", "test_size": 0.1}, "both test and test_size"),
        ({"task": "generation", "labels": ["a"]}, "labels are given"),
        ({"task": "generation", "problem_type": "multi-label"}, "problem_type is multi-label"),
        ({"train": None}, "train is missing"),
        ({"method": "full", "lora_rank": 8}, "lora_rank is given"),
        ({"method": "ia3", "lora_targets": ["query"]}, "lora_targets is given"),
        ({"last_layers": 2}, "last_layers is given"),
        ({"early_stopping": 2}, "early_stopping is given, and no validation_size"),
        ({"validation_size": 0.1, "save_steps": 5}, "both validation_size and save_steps"),
        ({"method": "adalora", "focal_gamma": 2}, "focal_gamma is given"),
        ({"method": "adalora", "validation_size": 0.1}, "validation_size is given"),
        ({"task": "generation", "class_weights": "balanced"}, "class_weights is given"),
        ({"task": "generation", "augment_copies": 1}, "augment_copies is given"),
        ({"continue_from": "old"}, "both base_model and continue_from"),
        ({"replay": "old.jsonl"}, "replay is given, and no continue_from"),
        ({"replay_share": 0.5}, "replay_share is given, and no continue_from"),
        ({"distillation_weight": 0.5}, "distillation_weight is given, and no teacher"),
        ({"teacher": "big", "problem_type": "regression"}, "teacher is given"),
        ({"teacher": "big", "method": "adalora"}, "teacher is given"),
        ({"keep_layers": 3}, "keep_layers is given"),
        ({"temperature_scaling": True}, "temperature_scaling is given, and no validation_size"),
        ({"temperature_scaling": True, "validation_size": 0.1, "task": "generation"}, "temperature_scaling is given"),
        ({"temperature_scaling": True, "validation_size": 0.1, "problem_type": "regression"}, "temperature_scaling is"),
        ({"report_to": ["tensorboard"]}, r"report_to\[0\]: 'tensorboard' is not allowed"),
        ({"report_to": "wandb"}, "report_to: expected a list, found 'wandb'"),
        ({"pooling": "mean"}, "pooling is given"),
        ({"prompts": {}}, "prompts is given"),
        ({"task": "embedding", "pooling": "max"}, "pooling: 'max' is not allowed"),
        ({"task": "embedding", "prompts": {"title": "t"}}, "prompts: 'title' is not allowed"),
        ({"task": "embedding", "matryoshka": [64, 64]}, "matryoshka: 64 is a duplicate"),
        ({"task": "embedding", "method": "adalora"}, "method is adalora"),
        ({"task": "embedding", "teacher": "big"}, "teacher is given"),
        ({"task": "embedding", "labels": ["a"]}, "labels are given"),
        ({"task": "embedding", "focal_gamma": 1.0}, "focal_gamma is given"),
        ({"task": "embedding", "augment_copies": 1}, "augment_copies is given"),
        ({"mined_negatives": 2}, "mined_negatives is given"),
        ({"task": "embedding", "ranking_loss": "bce"}, "ranking_loss is given"),
        ({"task": "ranking", "pooling": "cls"}, "pooling is given"),
        ({"task": "ranking", "method": "adalora"}, "method is adalora"),
        ({"task": "ranking", "teacher": "big"}, "teacher is given"),
        ({"task": "ranking", "temperature_scaling": True, "validation_size": 0.1}, "temperature_scaling is given"),
        ({"task": "preference", "method": "full"}, "method is full"),
        ({"task": "preference", "method": "adalora"}, "method is adalora"),
        ({"task": "preference", "base_model": None, "continue_from": "old"}, "continue_from is given"),
        ({"task": "preference", "teacher": "big"}, "teacher is given"),
        ({"task": "preference", "lora_dropout": 0.1}, "lora_dropout is given"),
        ({"task": "preference", "neftune_alpha": 5}, "neftune_alpha is given"),
        ({"task": "preference", "packing": True}, "packing is given"),
        ({"task": "preference", "train_on": "last-turn"}, "train_on is given"),
        ({"task": "preference", "labels": ["a"]}, "labels are given"),
        ({"task": "preference", "preference_beta": 0}, "preference_beta: 0 is not allowed"),
        ({"preference_beta": 0.1}, "preference_beta is given"),
        ({"answer_metrics": ["chrf"]}, "answer_metrics is given"),
        ({"task": "generation", "answer_metrics": ["meteor"]}, r"answer_metrics\[0\]: 'meteor' is not allowed"),
        ({"task": "generation", "answer_metrics": ["bleu", "bleu"]}, "answer_metrics: 'bleu' is a duplicate"),
        ({"back_translation": ["German"]}, "back_translation is given, and no translation_server"),
        ({"back_translation": ["German"], "translation_server": "a:1"}, "and no translation_model"),
        ({"translation_rows": 5}, "translation_rows is given, and no back_translation"),
        ({"task": "token-classification", "back_translation": ["German"]}, "back_translation is given"),
        ({"task": "generation", "back_translation": ["German"]}, "back_translation is given"),
        ({"class_weights": "rare"}, "class_weights: 'rare' is not allowed"),
        ({"class_weights": {"a": 0}}, "class_weights: {'a': 0} is not allowed"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(tmp_path, **values)
    assert caught.value.hint


def test_a_tracker_has_to_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    # What wandb itself leaves in the working directory.
    (tmp_path / "wandb").mkdir()
    with pytest.raises(UserError, match="report_to has wandb, which is not installed") as caught:
        parse(tmp_path, report_to=["wandb"])
    assert caught.value.hint == "pip install wandb"
    (tmp_path / "wandb" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert parse(tmp_path, report_to=["wandb"]).report_to == ("wandb",)


def test_a_misspelt_key_gets_the_closest_one(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        parse(tmp_path, learning_rat=1)
    assert caught.value.hint == "did you mean learning_rate?"


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", ""])
def test_files_that_are_no_settings(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=r"run\.yaml"):
        config.load(tmp_path / "run.yaml")
    with pytest.raises(UserError, match=r"none\.yaml"):
        config.load(tmp_path / "none.yaml")


def test_the_examples_are_good() -> None:
    examples = sorted((Path(__file__).parents[2] / "finetune" / "examples").glob("*.yaml"))
    assert [config.load(example).task for example in examples] == [
        "generation",
        "token-classification",
        "sequence-classification",
        "preference",
        "sequence-classification",
        "embedding",
        "sequence-classification",
        "sequence-classification",
    ]
