"""Going on from a checkpoint: labels keep what is known of them, old test rows stay unseen, forgetting is measured."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tuneserve import checkpoint, rows
from tuneserve.errors import UserError
from tuneserve.finetune import config, continual, data, models
from tuneserve.finetune.tokens import Target
from tuneserve.rows import input_key
from tuneserve.v1 import checkpoint_pb2 as pb

pytestmark = [
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

Run = Callable[..., Path]


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """24 sentences, all of one label that the reviews don't have."""
    rows.write(
        tmp_path / "new.jsonl",
        (
            {
                "text": " ".join(["john"] * (n // 4 + 1) + ["lives in", ("berlin", "paris", "blue", "sky")[n % 4]]),
                "label": "place",
            }
            for n in range(24)
        ),
    )
    return tmp_path / "new.jsonl"


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
    model, _ = models.load_model(target, str(trained), 0)
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
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    settings = transformers.AutoConfig.for_model(kind, vocab_size=64, pad_token_id=1, **sizes)
    settings.id2label, settings.label2id = {0: "a", 1: "b"}, {"a": 0, "b": 1}
    model = models.auto_class("sequence-classification").from_config(settings, dtype=torch.float32).eval()
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
    split = data.load(parse(old, tmp_path / "new.conll", task="token-classification", test_size=0.5))
    assert split.labels == ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    assert not split.old.test


def test_old_test_rows_are_never_trained_on(trained: Path, reviews: Path) -> None:
    test = {input_key(row) for row in rows.read(trained / checkpoint.TEST_SPLIT)}
    # The same file is the new data and the old.
    split = data.load(parse(trained, reviews, replay=str(reviews), replay_share=0.9, seed=1))
    assert not test & {input_key(row) for row in split.train}
    assert len(split.old.test) == len(test) == 12
    assert split.replayed == 0, "no old row is also a new one"


def test_the_share_of_old_rows(trained: Path, new: Path, reviews: Path) -> None:
    def load(**more: Any) -> data.Data:
        return data.load(parse(trained, new, test_size=0.25, replay=str(reviews), **more))

    split = load(replay_share=0.25)
    assert (len(split.train), split.replayed) == (24, 6)
    assert sum(row["label"] == "negative" for row in split.train) == 3
    split = load(replay_share=0.25, validation_size=0.25)
    assert len(split.train) + len(split.validation) == 24
    assert split.replayed == sum(row["label"] != "place" for row in split.train) < 6
    # No more than there are, but for the held-out ones.
    assert load(replay_share=0.9).replayed == 48


def test_the_rows_that_a_checkpoint_keeps_can_be_replayed(trained: Path, new: Path, tmp_path: Path) -> None:
    # The new data has other columns than they have.
    mine = [{"sentence": row["text"], "kind": row["label"]} for row in rows.read(new)]
    rows.write(tmp_path / "mine.jsonl", mine)
    values = {"columns": {"text": "sentence", "label": "kind"}, "test_size": 0.25, "replay_share": 0.25}
    split = data.load(parse(trained, tmp_path / "mine.jsonl", **values))
    assert (len(split.train), split.replayed) == (24, 6)
    kept = rows.read(trained / checkpoint.CALIBRATION_SPLIT)
    assert all(row in kept for row in split.train if row["label"] != "place")

    without = Path(shutil.copytree(trained, tmp_path / "without"))
    manifest = checkpoint.load(without)
    manifest.ClearField("calibration_split")
    checkpoint.seal(without, manifest)
    with pytest.raises(UserError, match="without keeps no training rows"):
        data.load(parse(without, tmp_path / "mine.jsonl", **values))


def test_what_can_not_be_gone_on_from(trained: Path, encoder: Path, new: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was not trained here"):
        data.load(parse(encoder, new))
    with pytest.raises(UserError, match="is for sequence-classification, task is generation"):
        data.load(parse(trained, new, task="generation"))
    with pytest.raises(UserError, match="is single-label, problem_type is multi-label"):
        data.load(parse(trained, new, problem_type="multi-label"))
    with pytest.raises(UserError, match="labels: negative is missing"):
        data.load(parse(trained, new, labels=["positive", "place"]))
    quantized = Path(shutil.copytree(trained, tmp_path / "quantized"))
    manifest = checkpoint.read_manifest(quantized)
    manifest.quantization = "w8a8"
    checkpoint.seal(quantized, manifest)
    with pytest.raises(UserError, match="is quantized"):
        data.load(parse(quantized, new))
