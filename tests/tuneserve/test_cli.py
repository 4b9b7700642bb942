"""What the shell sees: exit statuses, one clear line, no traceback."""

import json
import os
import re
import subprocess
import sys

import pytest

from tuneserve import checkpoint, inspect, schema

VERBS = (
    "validate",
    "finetune",
    "search",
    "merge",
    "predict",
    "soup",
    "quantize",
    "evaluate",
    "compare",
    "verify",
    "serve",
    "schema",
    "key",
    "bench",
    "call",
    "inspect",
    "demo",
    "samples",
)


def tuneserve(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tuneserve.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | {"TUNESERVE_PRELOADED": "1", "HF_HUB_OFFLINE": "1"},
    )


def refused(*arguments: object) -> str:
    """Runs a command that must refuse its input: status 2, an error, no traceback. Returns what it printed."""
    result = tuneserve(*arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert "rror: " in result.stderr
    return result.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb):
    result = tuneserve(verb, "--help")
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) > 5


def test_help_lists_every_verb():
    help_text = tuneserve("--help").stdout
    assert all(f"  {verb} " in help_text for verb in VERBS)


def test_help_is_whole():
    from tuneserve.cli import HEADINGS

    text = " ".join(tuneserve("--help").stdout.split())
    assert sorted(name for names in HEADINGS.values() for name in names) == sorted(VERBS)
    assert "Train: validate Check a training CONFIG and its data, without training. finetune Train" in text
    for shown in (
        text,
        tuneserve("call", "--help").stdout,
        tuneserve("call", "admin", "--help").stdout,
        tuneserve("samples", "--help").stdout,
    ):
        assert "..." not in shown.replace("[ARGS]...", "")


def test_a_mistyped_verb_is_named():
    assert "finetun" in refused("finetun", "x.yaml")


def test_serve_needs_models(tmp_path):
    assert "either --model" in refused("serve")
    assert "expected NAME=PATH" in refused("serve", "--model", "sentiment")
    assert "is not a directory" in refused("serve", "--model", f"a={tmp_path / 'nope'}")
    assert "error: drain_seconds: -1.0 is not allowed" in refused(
        "serve", "--model", f"a={tmp_path}", "--drain-seconds", "-1"
    )
    assert "no such file" in refused("serve", "--config", tmp_path / "nope.yaml")


def test_serve_refuses_a_pickle_before_loading(make_bert):
    directory = make_bert(labels=["a", "b"])
    (directory / "pytorch_model.bin").write_bytes(b"\x80")
    assert "pytorch_model.bin: pickled" in refused("serve", "--model", f"a={directory}")


def test_serve_refuses_a_port_in_use(make_bert):
    import socket

    directory = make_bert(labels=["a", "b"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"can't bind {address}" in refused("serve", "--model", f"a={directory}", "--listen", address)


def test_a_key_and_its_hash_for_the_tenants_file(tmp_path):
    from tuneserve.server.call.tenants import Tenants

    result = tuneserve("key")
    assert result.returncode == 0
    made = dict(line.split() for line in result.stdout.splitlines())
    path = tmp_path / "tenants.yaml"
    path.write_text(f"tenants:\n  search:\n    keys:\n      - {made['hash']}\n")
    assert Tenants(path).authenticate({"authorization": f"Bearer {made['key']}"}).name == "search"
    assert made["key"] not in result.stderr
    assert tuneserve("key").stdout != result.stdout


def test_training_config_mistakes_are_named(tmp_path):
    config = tmp_path / "train.yaml"
    assert "no such file" in refused("finetune", config).lower()
    config.write_text("task: sequence-classification\nbase_modle: x\ntrain: y.jsonl\noutput: z\n")
    assert "base_modle" in refused("finetune", config)
    assert "base_modle" in refused("validate", config)
    assert [path.name for path in tmp_path.iterdir()] == ["train.yaml"], "nothing is left behind"


def test_quantize_refuses_before_it_works(tmp_path, make_bert):
    directory = make_bert(labels=["a", "b"])
    assert "int3" in refused("quantize", directory, tmp_path / "out", "--scheme", "int3")
    assert "nf4" in refused("quantize", directory, tmp_path / "out", "--scheme", "nf4").lower()
    assert list(tmp_path.iterdir()) == []


def test_evaluate_needs_rows(make_bert):
    assert "--data" in refused("evaluate", make_bert(labels=["a", "b"]))


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


def test_inspect(make_bert, tmp_path):
    directory = make_bert()
    result = tuneserve("inspect", directory)
    assert result.returncode == 0
    assert "neg, pos" in result.stdout
    assert '"TASK_SEQUENCE_CLASSIFICATION"' in tuneserve("inspect", directory, "--json").stdout
    assert "no such directory" in refused("inspect", tmp_path / "nope")


def test_call_without_a_server_says_how_to_start_one():
    result = tuneserve("call", "models", "--target", "127.0.0.1:1", "--timeout", "5")
    assert result.returncode == 1
    assert "tuneserve serve" in result.stderr


@pytest.mark.parametrize("name", schema.FILES)
def test_schemas_are_printed(name):
    assert json.loads(tuneserve("schema", name).stdout) == schema.json_schema(name)


@pytest.mark.parametrize(
    ("module", "absent"),
    [("cli", "pydantic"), ("cli", "grpc"), ("server.config", "torch"), ("finetune.config", "torch")],
)
def test_what_is_slow_is_not_imported_before_it_is_needed(module, absent):
    code = f"import sys, tuneserve.{module}; sys.exit({absent!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_predict_refuses_before_it_works(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"review": "a"}\n')
    assert "--shard 2/2: give I/N" in refused("predict", tmp_path, rows, "-", "--shard", "2/2")
    assert "--column text: give NAME=COLUMN" in refused("predict", tmp_path, rows, "-", "--column", "text")
    assert "standard output can't be resumed" in refused("predict", tmp_path, rows, "-", "--resume")
    assert "no such file or folder" in refused("predict", tmp_path, tmp_path / "no.csv", "-")
    assert "config.json: missing" in refused("predict", tmp_path, rows, tmp_path / "out.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]
