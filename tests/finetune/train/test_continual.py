"""Going on from a checkpoint: labels keep what is known of them, old test rows stay unseen, forgetting is measured."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tuneserve import checkpoint
from tuneserve.checkpoint import rows
from tuneserve.checkpoint.rows import input_key
from tuneserve.finetune import config
from tuneserve.finetune.data import dataset
from tuneserve.finetune.data.tokens import Target
from tuneserve.finetune.model import base_models
from tuneserve.finetune.train import continual
from tuneserve.v1 import checkpoint_pb2 as pb

from ... import tiny

pytestmark = [
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

Run = Callable[..., Path]


def parse(trained: Path, train: Path, **values: Any) -> config.FinetuneConfig:
    given = {"task": "sequence-classification", "continue_from": str(trained), "train": str(train), "output": "out"}
    return config.parse(given | values, train.parent)


def test_new_labels_beside_the_old_and_what_was_forgotten(
    run: Run, tmp_path: Path, trained: Path, new: Path, reviews: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run(
        tmp_path,
        task="sequence-classification",
        continue_from=str(trained),
        train=str(new),
        test_size=0.25,
        replay=str(reviews),
        replay_share=0.7,
        method="full",
        epochs=20,
        batch_size=8,
        learning_rate=2e-3,
    )
    manifest = checkpoint.load(output)
    assert list(manifest.labels) == ["negative", "positive", "place"]
    assert [step.name for step in manifest.lineage] == ["base", "finetune", "merge", "finetune"]
    assert manifest.lineage[-1].metrics["accuracy"] >= 0.8
    found = manifest.lineage[3].metrics
    assert found["replayed_rows"] == 42
    before, after = found["forgetting/accuracy_before"], found["forgetting/accuracy_after"]
    assert before == pytest.approx(manifest.lineage[2].metrics["accuracy"])
    assert after >= 0.8
    assert found["forgetting/accuracy_drop"] == pytest.approx(before - after)
    assert "old held-out rows" in capsys.readouterr().out


def test_without_replay_the_old_is_forgotten(run: Run, tmp_path: Path, trained: Path, new: Path) -> None:
    output = run(
        tmp_path,
        task="sequence-classification",
        continue_from=str(trained),
        train=str(new),
        epochs=15,
        learning_rate=5e-3,
    )
    manifest = checkpoint.load(output)
    assert [step.name for step in manifest.lineage] == ["base", "finetune", "merge", "finetune", "merge"]
    assert manifest.lineage[3].metrics["forgetting/accuracy_drop"] >= 0.3


@pytest.mark.parametrize("labels", [["negative", "positive", "place"], ["positive", "negative"]])
def test_the_head_keeps_its_rows_by_name(trained: Path, labels: list[str]) -> None:
    target = Target("sequence-classification", ("negative", "positive"), "single-label", 64)
    model, _ = base_models.load_model(target, str(trained), 0)
    before = {name: tensor.float() for name, tensor in load_file(trained / "model.safetensors").items()}
    assert continual.extend_head(model, target.labels) == []
    assert continual.extend_head(model, labels) == ["classifier"]
    for place, label in enumerate(labels):
        if label in target.labels:
            old = target.labels.index(label)
            assert torch.equal(model.classifier.weight[place], before["classifier.weight"][old])
            assert torch.equal(model.classifier.bias[place], before["classifier.bias"][old])
    ids = torch.tensor([[2, 7, 3]])
    assert model(input_ids=ids, labels=torch.tensor([1])).logits.shape == (1, len(labels))


@pytest.mark.parametrize("kind", ["roberta", "modernbert", "llama"])
def test_heads_of_several_modules(kind: str) -> None:
    labels = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    model = tiny.model("AutoModelForSequenceClassification", kind, pad_token_id=1, **labels).eval()
    ids = torch.tensor([[2, 7, 3]])
    before = model(input_ids=ids).logits
    assert continual.extend_head(model, ["c", "b", "a"]) == ["score" if kind == "llama" else "classifier"]
    assert torch.equal(model(input_ids=ids).logits[:, [2, 1]], before)


def test_entity_types_are_added_in_pairs(trained: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(trained, tmp_path / "old"))
    manifest = checkpoint.read_manifest(old)
    manifest.task, manifest.labels[:] = pb.TASK_TOKEN_CLASSIFICATION, ["O", "B-PER", "I-PER"]
    manifest.test_split.path = ""
    checkpoint.seal(old, manifest)
    (tmp_path / "new.conll").write_text("\n\n".join(f"in O\n{place} B-LOC" for place in ("paris", "berlin")))
    split = dataset.load(parse(old, tmp_path / "new.conll", task="token-classification", test_size=0.5))
    assert split.labels == ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    assert not split.old.test


def test_three_generations(run: Run, tmp_path: Path, trained: Path, new: Path) -> None:
    def go_on(name: str, before: Path, word: str) -> Path:
        (tmp_path / name).mkdir()
        more = [{**row, "text": f"{row['text']} {word}", "label": word} for row in rows.read(new)]
        rows.write(tmp_path / name / "more.jsonl", more)
        return run(
            tmp_path / name,
            task="sequence-classification",
            continue_from=str(before),
            train="more.jsonl",
            test_size=0.25,
            replay_share=0.5,
            epochs=1,
        )

    def kept(directory: Path, path: str) -> set[str]:
        return {input_key(row) for row in rows.read(directory / path)}

    second = go_on("second", trained, "blue")
    third = go_on("third", second, "sky")
    generations = (trained, second, third)
    tests = [kept(one, checkpoint.TEST_SPLIT) for one in generations]
    assert [len(test) for test in tests] == [12, 18, 24]
    assert tests[0] < tests[1] < tests[2]
    samples = [kept(one, checkpoint.CALIBRATION_SPLIT) for one in generations]
    assert [len(sample) for sample in samples] == [48, 48 + 18, 48 + 18 + 18]
    assert samples[0] < samples[1] < samples[2]
    assert not samples[2] & tests[2]
    lineages = [checkpoint.load(one).lineage for one in generations]
    trainings = [[step for step in lineage if step.name == "finetune"][-1].metrics for lineage in lineages]
    assert [metrics["learned_rows"] for metrics in trainings] == [48, 66, 84]
    # On 18 old rows, and on 6 new ones.
    last = trainings[2]
    assert last["forgetting/accuracy_before"] == pytest.approx(lineages[1][-1].metrics["accuracy"], abs=0.06)
    assert 24 * last["accuracy"] == pytest.approx(18 * last["forgetting/accuracy_after"] + 6 * last["new/accuracy"])
