"""Every method: which weights learn, that they learn, and that the merged model answers as the trained one did."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneserve import checkpoint
from tuneserve.errors import UserError
from tuneserve.finetune import config
from tuneserve.finetune.data.tokens import Target
from tuneserve.finetune.model import adapters, base_models

from ... import tiny

SEQUENCE = Target("sequence-classification", ("a", "b", "c"), "single-label", 32)
STEPS = 100

Run = Callable[..., Path]

# Raised by libraries at import or inside training; none of them is about this code.
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def parse(**more: object) -> config.FinetuneConfig:
    values = {"task": "sequence-classification", "base_model": "m", "train": "d.csv", "output": "o", **more}
    return config.parse(values, Path("/"))


def learning(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_an_adapter_is_in_every_layer_and_the_head_learns_whole(encoder: Path) -> None:
    model, new = base_models.load_model(SEQUENCE, str(encoder))
    trained = learning(adapters.choose_weights(model, new, parse(), STEPS))
    assert {name for name in trained if "lora_" not in name} == {
        f"base_model.model.classifier.modules_to_save.default.{kind}" for kind in ("weight", "bias")
    }
    assert any("intermediate.dense.lora_A" in name for name in trained)


@pytest.mark.parametrize("kind", ["roberta", "modernbert", "llama"])
def test_heads_of_several_modules_are_saved_whole(tmp_path: Path, kind: str) -> None:
    tiny.model("AutoModel", kind, pad_token_id=1).save_pretrained(tmp_path)
    model, new = base_models.load_model(SEQUENCE, str(tmp_path))
    expected = {"roberta": ["classifier"], "modernbert": ["head", "classifier"], "llama": ["score"]}
    assert new == expected[kind]
    adapted = adapters.choose_weights(model, new, parse(), STEPS)
    inside = [
        name for name, _ in adapted.named_parameters() if "lora_" in name and re.search("classifier|head|score", name)
    ]
    assert inside == []


def test_unknown_lora_targets_are_named(encoder: Path) -> None:
    model, new = base_models.load_model(SEQUENCE, str(encoder))
    with pytest.raises(UserError, match="lora_targets: no linear layer q_proj"):
        adapters.choose_weights(model, new, parse(lora_targets=["q_proj"]), STEPS)


def test_what_scores_the_vocabulary_can_have_no_adapter(chat: Path) -> None:
    model, new = base_models.load_model(Target("generation", (), "single-label", 32), str(chat))
    settings = parse(task="generation", lora_targets=["q_proj", "lm_head"])
    with pytest.raises(UserError, match="lora_targets: lm_head can't have an adapter"):
        adapters.choose_weights(model, new, settings, STEPS)


@pytest.mark.parametrize(
    ("last_layers", "first"), [(0, "bert.pooler"), (1, "bert.encoder.layer.1"), (2, "bert.encoder")]
)
def test_the_last_layers_alone(encoder: Path, last_layers: int, first: str) -> None:
    model, new = base_models.load_model(SEQUENCE, str(encoder))
    adapters.choose_weights(model, new, parse(method="full", last_layers=last_layers), STEPS)
    allowed = (first, "bert.pooler", "classifier")
    assert learning(model) == {name for name, _ in model.named_parameters() if name.startswith(allowed)}


def test_more_layers_than_there_are(encoder: Path) -> None:
    model, new = base_models.load_model(SEQUENCE, str(encoder))
    with pytest.raises(UserError, match="last_layers is 3"):
        adapters.choose_weights(model, new, parse(method="full", last_layers=3), STEPS)


@pytest.mark.train
@quiet
@pytest.mark.parametrize(
    ("base", "settings"),
    [
        ("encoder", {"method": "lora"}),
        ("encoder", {"method": "dora"}),
        ("encoder", {"method": "rslora", "learning_rate": 1e-3}),
        ("encoder", {"method": "adalora", "learning_rate": 2e-2}),
        ("encoder", {"method": "qlora"}),
        ("encoder", {"method": "full", "learning_rate": 1e-3}),
        ("encoder", {"method": "full", "learning_rate": 1e-3, "last_layers": 1}),
        # Too few weights to learn from random ones.
        ("trained", {"method": "ia3"}),
        ("trained", {"method": "full", "last_layers": 0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_each_learns_and_is_what_was_trained(
    run: Run, tmp_path: Path, request: pytest.FixtureRequest, reviews: Path, base: str, settings: dict[str, Any]
) -> None:
    output = run(
        tmp_path,
        task="sequence-classification",
        base_model=str(request.getfixturevalue(base)),
        train=str(reviews),
        test_size=0.2,
        epochs=40,
        batch_size=8,
        **{"learning_rate": 2e-3, **settings},
    )
    manifest = checkpoint.load(output)
    entry = [step for step in manifest.lineage if step.name == "finetune"][-1]
    assert entry.config["method"] == settings["method"]
    assert manifest.lineage[-1].metrics["accuracy"] >= 0.8
    assert (output.with_name("out-adapter")).exists() == (settings["method"] != "full")
    if settings["method"] != "full":
        assert manifest.lineage[-1].metrics["merged_logits_max_difference"] < 1e-3
    if "last_layers" in settings:
        assert entry.metrics["trained_parameters"] < 50_000


@pytest.mark.train
@quiet
@pytest.mark.parametrize("method", ["dora", "adalora", "ia3", "qlora"])
def test_a_chat_model_by_each(run: Run, tmp_path: Path, chat: Path, talk: Path, method: str) -> None:
    output = run(
        tmp_path, task="generation", base_model=str(chat), train=str(talk), method=method, epochs=15,
        learning_rate=1e-2 if method == "ia3" else 2e-2,
    )  # fmt: skip
    manifest = checkpoint.load(output)
    assert manifest.architecture == "LlamaForCausalLM"
    assert manifest.quantization == ""
    # IA3 scales what a random model has, which makes no answers.
    assert manifest.lineage[2].metrics["perplexity"] < (4 if method != "ia3" else 250)
