"""Small models that are like large ones."""

import json

import pytest

from tuneserve.benchmarks.serving import small_model


@pytest.mark.parametrize("pooling", [True, False])
def test_a_small_model_is_of_the_same_kind(make_bert, make_llama, tmp_path, pooling):
    from transformers import AutoTokenizer

    path = make_bert() if pooling else make_llama()
    (path / "tuneserve.json").write_text("{}")
    output = tmp_path / "small"
    vocabulary = small_model.write(path, output, pooling=pooling)
    config, whole = (json.loads((one / "config.json").read_text()) for one in (output, path))
    assert config["architectures"] == whole["architectures"]
    assert (config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"]) == (1, 32, 1)
    assert (output / "model.safetensors").stat().st_size < 4 << 20
    assert vocabulary == config["vocab_size"]
    text = "the film was good"
    assert AutoTokenizer.from_pretrained(output)(text) == AutoTokenizer.from_pretrained(path)(text)
    assert not (output / "tuneserve.json").exists(), "that describes another model"
