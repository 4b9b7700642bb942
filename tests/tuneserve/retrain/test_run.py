"""The whole loop: a real tiny model, real training, the real engine and server."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneserve import checkpoint
from tuneserve.checkpoint import rows
from tuneserve.client import Client
from tuneserve.errors import UserError
from tuneserve.retrain import policy
from tuneserve.retrain.run import retrain
from tuneserve.serving import Addresses, launched

from ... import tiny
from ...finetune.conftest import WORDS

pytestmark = [
    pytest.mark.engine,
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

TRAINING = {"method": "full", "batch_size": 8, "learning_rate": 2e-3, "max_length": 64, "precision": "fp32"}
KNOWN, NEW = {"good": "positive", "bad": "negative"}, {"great": "positive", "awful": "negative"}


def reviews(words: dict[str, str], count: int) -> list[rows.Row]:
    """Sentences whose label one word decides."""
    chance, fillers = random.Random(7), [word for word in WORDS if word not in KNOWN | NEW]
    names = list(words)
    found: dict[str, rows.Row] = {}
    while len(found) < count:
        word = names[len(found) % len(names)]
        text = " ".join([*chance.sample(fillers, 4), "was", word])
        found[text] = {"text": text, "label": words[word]}
    return list(found.values())


@pytest.fixture(scope="module")
def root(run: Callable[..., Path], encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's models_root, with `base`, which knows two words."""
    root = tmp_path_factory.mktemp("root")
    # vLLM's attention on CPUs wants heads of 32.
    wide = tmp_path_factory.mktemp("models") / "wide"
    shutil.copytree(encoder, wide)
    words = json.loads((wide / "config.json").read_text())["vocab_size"]
    tiny.model("AutoModel", "bert", vocab_size=words, hidden_size=64).save_pretrained(wide)
    rows.write(root / "known.jsonl", reviews(KNOWN, 200))
    run(
        root,
        task="sequence-classification",
        base_model=str(wide),
        train="known.jsonl",
        test_size=0.25,
        epochs=15,
        output="base",
        **{key: value for key, value in TRAINING.items() if key not in ("max_length", "precision")},
    )
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Addresses]:
    """The real server of that checkpoint."""
    config = root / "server.yaml"
    config.write_text(
        json.dumps({"models": {"a": {"path": "base"}}, "models_root": ".", "admin_listen": "127.0.0.1:0"})
    )
    with launched("--config", str(config)) as found:
        yield found.addresses


def made(root: Path, server: Addresses, name: str, feedback: list[rows.Row], **canary: Any) -> Path:
    """Writes a policy and its feedback."""
    kept = [{**row, "request_id": f"r-{number}"} for number, row in enumerate(feedback)]
    rows.write(root / f"kept-{name}" / "ann" / "a" / "labels.jsonl", kept)
    file = root / f"{name}.yaml"
    values = {
        "feedback": f"kept-{name}/*/a/labels.jsonl",
        "checkpoint": "base",
        "output": name,
        "min_rows": 100,
        "max_drop": 0.05,
        "point_estimate": name == "better",
        "finetune": {**TRAINING, "epochs": 15},
        "server": {"target": server.admin, "model": "a", "models_root": ".", "seconds": 0, **canary},
    }
    file.write_text(yaml.safe_dump(values))
    return file


def targets(server: Addresses) -> dict[str, int]:
    with Client(server.admin) as client:
        [alias] = client.aliases()
    return {target.model: target.weight for target in alias.targets}


def test_worse_feedback_changes_nothing(root: Path, server: Addresses, capsys: pytest.CaptureFixture[str]) -> None:
    worse, before = reviews(KNOWN | NEW, 120), targets(server)
    labels = [row["label"] for row in worse]
    random.Random(3).shuffle(labels)
    file = made(root, server, "worse", [{**row, "label": label} for row, label in zip(worse, labels, strict=True)])
    retrain(policy.load(file), root)
    said = capsys.readouterr().out
    assert "0001 is not better: " in said
    assert "canary" not in said
    assert targets(server) == before
    assert not (root / "worse" / "current").exists()
    manifest = checkpoint.load(root / "worse" / "0001")
    assert [step.name for step in manifest.lineage][-1] == "compare"
    # The same rows are not tried again.
    retrain(policy.load(file), root)
    assert capsys.readouterr().out == "waiting: 0 new rows, min_rows is 100\n"


def test_better_feedback_is_promoted_also_by_runs_that_are_killed(
    root: Path, server: Addresses, capsys: pytest.CaptureFixture[str]
) -> None:
    file = made(root, server, "better", reviews(NEW, 120), seconds=600, percent=30)
    [old] = targets(server)
    retrain(policy.load(file), root, dry_run=True)
    assert "would train on 120 new rows" in capsys.readouterr().out
    assert not (root / "better").exists()
    kill(file, lambda: (root / "better" / "0001-training").exists())
    assert targets(server) == {old: 1}
    kill(file, lambda: len(targets(server)) == 2)
    new = f"a@{checkpoint.version_of(checkpoint.load(root / 'better' / '0001'))}"
    assert targets(server) == {old: 70, new: 30}

    made(root, server, "better", reviews(NEW, 120), percent=30)
    retrain(policy.load(file), root)
    said = capsys.readouterr().out
    assert f"0001 canary: 30 % of a to {new}, the others to {old}" in said
    assert "0001 is promoted: " in said
    assert targets(server) == {new: 1}
    manifest = checkpoint.load(root / "better" / "current")
    assert [step.name for step in manifest.lineage][-3:] == ["finetune", "compare", "promote"]
    assert manifest.lineage[-1].metrics["accuracy"] > 0.9
    with Client(server.grpc) as client:
        found = client.classify("a", [row["text"] for row in reviews(NEW, 120)])
    assert {one.best.label for one in found} == {"positive", "negative"}
    right = [one.best.label == row["label"] for one, row in zip(found, reviews(NEW, 120), strict=True)]
    assert sum(right) > 110

    # What was learned is not new, and may go.
    retrain(policy.load(file), root)
    assert capsys.readouterr().out == "waiting: 0 new rows, min_rows is 100\n"
    file.write_text(file.read_text() + "remove_learned: true\n")
    retrain(policy.load(file), root)
    assert capsys.readouterr().out.startswith("removed 120 rows that were learned from ")
    assert (root / "kept-better" / "ann" / "a" / "labels.jsonl").read_text() == ""


def kill(file: Path, when: Callable[[], bool]) -> None:
    """Kills a run at some time, with all that it has started."""
    command = [sys.executable, "-P", "-m", "tuneserve.cli", "retrain", str(file)]
    environment = os.environ | {"TUNESERVE_PRELOADED": "1"}
    with subprocess.Popen(command, start_new_session=True, env=environment) as process:
        try:
            for _ in range(3000):
                if when():
                    break
                assert process.poll() is None, "ended before"
                time.sleep(0.1)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_checkpoint_that_is_none_is_named(root: Path, server: Addresses) -> None:
    file = made(root, server, "none", [])
    file.write_text(file.read_text().replace("checkpoint: base", "checkpoint: nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        retrain(policy.load(file), root)
