"""What training is compared with, and what is said of it."""

import json

import pytest
from click.testing import CliRunner
from rich.console import Console

from tuneserve.benchmarks.training import beside_trainer
from tuneserve.benchmarks.training.beside_trainer import Sample
from tuneserve.benchmarks.training.plain import Training
from tuneserve.machine.tiers import measured_on

GIVEN = Training("sequence-classification", "m", "a", "b", "out", 64, 8, 1.0, 1e-3, 0, False)


def test_what_is_said_names_rounds_method_and_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"plain": [100.0, 110.0, 90.0], "ours": [150.0, 154.0, 135.0]}
    samples = {name: [Sample(rate, 0.8, 0.0) for rate in some] for name, some in rates.items()}
    monkeypatch.setattr(beside_trainer, "trainings", lambda scratch, texts, chats: [GIVEN, GIVEN])
    monkeypatch.setattr(beside_trainer, "measure", lambda given, rounds, console: samples)
    monkeypatch.setattr(beside_trainer, "Console", lambda **options: Console(width=300, **options))
    result = CliRunner().invoke(beside_trainer.main, ["--rounds", "3", "--chats", "0"], catch_exceptions=False)
    found = json.loads(result.stdout.splitlines()[-1])
    ratio = found["sequence-classification"]["ratio"]
    assert ratio["mean"] == pytest.approx((1.5 * 1.4 * 1.5) ** (1 / 3))
    assert ratio["low"] < 1.4 < 1.5 < ratio["high"]
    assert (ratio["rounds"], found["rounds"], found["machine"]["tier"]) == (3, 3, measured_on())
    assert measured_on() in result.stdout
    assert "Student" in found["method"]
