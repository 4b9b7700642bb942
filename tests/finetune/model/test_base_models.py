import importlib.util
import json
import re
from pathlib import Path

import pytest

from tuneserve.errors import UserError
from tuneserve.finetune.data.tokens import Target
from tuneserve.finetune.model import base_models

SEQUENCE = Target("sequence-classification", ("a", "b", "c"), "single-label", 32)


def test_every_servable_class_is_in_the_installed_vllm() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    # Read, not imported: importing vLLM takes many seconds.
    registry = (Path(spec.origin).parent / "model_executor/models/registry.py").read_text(encoding="utf-8")
    known = set(re.findall(r'^    "(\w+)": ', registry, re.MULTILINE))
    for names in base_models.SERVABLE.values():
        for name in names:
            # Decoders classify through vLLM's conversion of their language model.
            assert name in known or re.sub("(Sequence|Token)Classification", "CausalLM", name) in known, name


def test_decoders_that_judge_tokens_have_the_head_that_vllm_knows() -> None:
    """`score`, one linear layer: it has no class of its own for them."""
    import transformers

    for name in base_models.SERVABLE["token-classification"]:
        made_of = {kind.__name__ for kind in getattr(transformers, name).__mro__}
        assert "GenericForTokenClassification" in made_of or re.search("Bert|Roberta", name), name


@pytest.mark.parametrize(
    ("task", "model_type", "message"),
    [
        ("token-classification", "distilbert", "DistilBertForTokenClassification"),
        ("token-classification", "electra", "ElectraForTokenClassification"),
        ("token-classification", "gpt2", "GPT2ForTokenClassification"),
        ("sequence-classification", "electra", "ElectraForSequenceClassification"),
        ("generation", "bert", "BertLMHeadModel"),
        ("generation", "t5", "a t5 model"),
    ],
)
def test_what_vllm_can_not_serve_is_refused(tmp_path: Path, task: str, model_type: str, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UserError, match=f"vLLM has no {message} for {task}"):
        base_models.check_servable(task, str(tmp_path))


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "modernbert", "llama", "qwen3", "gemma2"])
def test_what_vllm_serves_is_accepted(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    base_models.check_servable("sequence-classification", str(tmp_path))
    base_models.check_servable("token-classification", str(tmp_path))


def test_a_missing_or_quantized_base_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not be loaded"):
        base_models.check_servable("generation", str(tmp_path))
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(UserError, match="is quantized"):
        base_models.check_servable("generation", str(tmp_path))


def test_an_adapter_is_no_base_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "PROMPT_TUNING"}))
    with pytest.raises(UserError, match=r"base_model: .* a PEFT adapter \(PROMPT_TUNING\), not a model") as caught:
        base_models.check_servable("generation", str(tmp_path))
    assert "train LoRA" in caught.value.hint


def test_new_modules_are_found_from_what_the_checkpoint_lacks(encoder: Path) -> None:
    model, new = base_models.load_model(SEQUENCE, str(encoder))
    assert new == ["classifier"]
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.problem_type == "single_label_classification"
