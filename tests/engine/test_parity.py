"""`verify`: served and plain transformers answer alike; and a model whose weights are others is noticed."""

import shutil
from pathlib import Path

import pytest

from tuneserve import checkpoint
from tuneserve.evaluation import verify
from tuneserve.evaluation.evaluate import held_out_rows

pytestmark = pytest.mark.engine


def rows_of(directory: Path, manifest) -> list:
    if manifest.test_split.path:
        return held_out_rows(directory, manifest)[:24]
    return verify.sentences(manifest)


@pytest.mark.parametrize("name", ["sentiment", "topics", "ner", "chat"])
def test_served_as_transformers_answers(real, name):
    directory = real.directories[name]
    manifest = checkpoint.load(directory)
    found = verify.verify_at(real.server.addresses.grpc, name, directory, manifest, rows_of(directory, manifest))
    print(name, found)
    assert found.is_good


def test_a_conversation_has_the_token_ids_of_training(real):
    directory = real.directories["chat"]
    manifest = checkpoint.load(directory)
    row = {
        "messages": [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": "Why is the sky blue?"},
            {"role": "assistant", "content": "It scatters blue light."},
        ]
    }
    # Words across the border of prompt and answer; rows that are cut.
    rows = [row, {"prompt": "The sky is bl", "completion": "ue."}, {"prompt": "why " * 99, "completion": " because"}]
    manifest.max_length = 48
    found = verify.verify_at(real.server.addresses.grpc, "chat", directory, manifest, rows)
    assert found.different == 0
    assert found.largest <= found.limits[1]


def test_another_chat_model_is_noticed(real, tmp_path):
    from safetensors.torch import load_file, save_file

    directory = Path(shutil.copytree(real.directories["chat"], tmp_path / "other"))
    weights = load_file(directory / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.3.mlp.down_proj.weight"))
    weights[name] = weights[name] * 0.5
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    manifest = checkpoint.load(real.directories["chat"])
    rows = verify.sentences(manifest)
    found = verify.verify_at(real.server.addresses.grpc, "chat", directory, manifest, rows)
    print(found)
    assert not found.is_good


@pytest.mark.parametrize("name", ["sentiment", "ner"])
def test_other_weights_are_noticed(real, name, tmp_path):
    from safetensors.torch import load_file, save_file

    directory = Path(shutil.copytree(real.directories[name], tmp_path / "other"))
    weights = load_file(directory / "model.safetensors")
    weights["classifier.weight"] = weights["classifier.weight"].roll(1, 0)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    manifest = checkpoint.load(real.directories[name])
    rows = rows_of(real.directories[name], manifest)
    found = verify.verify_at(real.server.addresses.grpc, name, directory, manifest, rows)
    assert not found.is_good
