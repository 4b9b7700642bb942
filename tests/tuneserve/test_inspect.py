"""tuneserve inspect."""

import re

from tuneserve import checkpoint, inspect

from .conftest import refused, tuneserve


def test_inspect_says_where_it_was_measured(make_bert, capsys):
    directory = make_bert()
    manifest = checkpoint.describe(directory)
    for name, tier in (("finetune", "cpu-avx2"), ("quantize", "cpu-avx512-bf16")):
        step = checkpoint.step(name, "x", {}, ())
        step.metrics["accuracy"], step.measured_on = 0.9, tier
        manifest.lineage.append(step)
    inspect.show_manifest(directory, manifest)
    assert re.search(r"measured on .* cpu-avx2 .* cpu-avx512-bf16", capsys.readouterr().out)


def test_inspect_shows_counts_in_full(make_bert, capsys):
    directory = make_bert(labels=["a", "b"])
    manifest = checkpoint.load(directory)
    manifest.lineage.add(name="finetune", metrics={"accuracy": 0.84466, "trained_parameters": 676608.0})
    inspect.show_manifest(directory, manifest)
    text = capsys.readouterr().out
    assert "676608" in text
    assert "0.8447" in text


def test_inspect_shows_how_an_encoder_is_asked(make_bert, capsys):
    directory = make_bert("Model", [])
    inspect.show_manifest(directory, checkpoint.describe(directory))
    text = capsys.readouterr().out
    assert re.search(r"pooling +mean", text)
    assert re.search(r"prompts +query 'who: '", text)


def test_inspect(make_bert, tmp_path):
    directory = make_bert()
    result = tuneserve("inspect", directory)
    assert result.returncode == 0
    assert "neg, pos" in result.stdout
    assert '"TASK_SEQUENCE_CLASSIFICATION"' in tuneserve("inspect", directory, "--json").stdout
    assert "no such directory" in refused("inspect", tmp_path / "nope")
