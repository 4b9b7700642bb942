"""What the shell sees: exit statuses, one clear line, no traceback."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from tuneserve.cli import Command
from tuneserve.errors import CheckpointError, StepFailed, UserError

from .conftest import refused, tuneserve

VERBS = (
    "validate",
    "finetune",
    "search",
    "merge",
    "predict",
    "soup",
    "retrain",
    "quantize",
    "evaluate",
    "compare",
    "verify",
    "serve",
    "worker",
    "schema",
    "key",
    "bench",
    "call",
    "index",
    "inspect",
    "fetch",
    "demo",
    "samples",
)


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


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        (["evaluate", "a"], "scipy", "train,quantize"),
        (["compare", "a", "b"], "scipy", "train,quantize"),
        (["fetch", "s3://bucket/a", "/nowhere/a"], "obstore", "fetch"),
    ],
)
def test_a_missing_package_is_named(command, package, extra, tmp_path):
    """As in the image that serves, without the packages for measuring."""
    command = [one.replace("/nowhere", str(tmp_path)) for one in command]
    code = f"import sys; sys.modules[{package!r}] = None; from tuneserve.cli import cli; cli({command})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 2
    assert result.stderr == (
        f"error: the Python package {package} is not installed\n"
        f"hint:  pip install 'tuneserve[{extra}]', or use the train image\n"
    )


def test_a_mistyped_verb_is_named():
    assert "finetun" in refused("finetun", "x.yaml")


@pytest.mark.parametrize(("kind", "status"), [(UserError, 2), (CheckpointError, 2), (StepFailed, 1)])
def test_our_errors_are_a_line_a_hint_and_a_status(kind, status):
    program = Command("program")

    @program.command()
    def fails() -> None:
        raise kind("x.yaml: no key 'lenght'", "did you mean length?")

    result = CliRunner().invoke(program, ["fails"])
    assert (result.exit_code, result.stdout) == (status, "")
    assert result.stderr == "error: x.yaml: no key 'lenght'\nhint:  did you mean length?\n"


def test_call_without_a_server_says_how_to_start_one():
    result = tuneserve("call", "models", "--target", "127.0.0.1:1", "--timeout", "5")
    assert result.returncode == 1
    assert "tuneserve serve" in result.stderr


@pytest.mark.parametrize(
    ("module", "absent"),
    [("cli", "pydantic"), ("cli", "grpc"), ("server.config", "torch"), ("finetune.config", "torch")],
)
def test_what_is_slow_is_not_imported_before_it_is_needed(module, absent):
    code = f"import sys, tuneserve.{module}; sys.exit({absent!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
