"""Learning from a teacher: its answers reach the loss in the student's order, and a teacher that can't is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tuneserve import checkpoint
from tuneserve.checkpoint import rows
from tuneserve.errors import UserError
from tuneserve.finetune import config
from tuneserve.finetune.data.tokens import Target
from tuneserve.finetune.model import base_models
from tuneserve.finetune.train import distillation

pytestmark = [
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

Run = Callable[..., Path]
# So little that the student stays what it is.
UNMOVED = {"method": "full", "epochs": 1, "batch_size": 4, "learning_rate": 1e-9, "distillation_weight": 1.0}
TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def metrics(output: Path) -> dict[str, float]:
    """Those of the last training."""
    return dict([step for step in checkpoint.load(output).lineage if step.name == "finetune"][-1].metrics)


def tagger(encoder: Path, directory: Path, labels: list[str]) -> Path:
    """A tagger with no dropout, the same but for the order of its labels."""
    from transformers import AutoModelForTokenClassification

    torch.manual_seed(1)
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    model = AutoModelForTokenClassification.from_pretrained(
        encoder, **names, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    head = model.classifier.weight.data
    head.copy_(torch.stack([torch.sin(torch.arange(32.0) * (TAGS.index(label) + 1)) for label in labels]))
    model.save_pretrained(directory)
    base_models.load_tokenizer(str(encoder)).save_pretrained(directory)
    return directory


def test_a_student_learns_what_the_labels_do_not_say(
    run: Run, tmp_path: Path, encoder: Path, trained: Path, reviews: Path
) -> None:
    wrong = {"positive": "negative", "negative": "positive"}
    given = rows.read(reviews)
    test = given[::5]
    rows.write(tmp_path / "test.jsonl", test)
    rows.write(tmp_path / "train.jsonl", [row | {"label": wrong[row["label"]]} for row in given if row not in test])
    output = run(
        tmp_path,
        task="sequence-classification",
        base_model=str(encoder),
        train="train.jsonl",
        test="test.jsonl",
        labels=["positive", "negative"],
        method="full",
        epochs=20,
        batch_size=8,
        learning_rate=2e-3,
        teacher=str(trained),
        distillation_weight=1.0,
    )
    assert checkpoint.load(output).lineage[-1].metrics["accuracy"] >= 0.8
    assert metrics(output)["teacher/accuracy"] >= 0.9


def test_who_teaches_itself_has_nothing_to_learn(run: Run, tmp_path: Path, encoder: Path) -> None:
    """Whatever the order of labels, the length of rows and the places that count."""
    names = [("anna", "B-PER"), ("berlin", "B-LOC")]
    sentences = [[("the", "O")] * (n % 5) + [names[n % 2], ("lives", "O")] for n in range(20)]
    (tmp_path / "names.conll").write_text("\n\n".join("\n".join(map("\t".join, one)) for one in sentences))
    output = run(
        tmp_path,
        output="tagger",
        task="token-classification",
        base_model=str(tagger(encoder, tmp_path / "base", TAGS)),
        train="names.conll",
        teacher=str(tagger(encoder, tmp_path / "teacher", [*TAGS[3:], *TAGS[:3]])),
        **UNMOVED,
    )
    found = metrics(output)
    assert found["train_loss"] == pytest.approx(0, abs=1e-5)
    assert found["teacher/entity_f1"] == found["entity_f1"]


def test_who_can_not_teach(trained: Path, encoder: Path, chat: Path, tmp_path: Path) -> None:
    tokenizer = base_models.load_tokenizer(str(encoder))

    def check(teacher: Path, task: str, *labels: str, problem_type: str = "single-label", max_length: int = 64) -> None:
        values = {"task": task, "base_model": str(encoder), "train": "d.csv", "output": "o", "teacher": str(teacher)}
        target = Target(task, labels, problem_type, max_length)
        distillation.check(config.parse(values, tmp_path), target, tokenizer)

    check(trained, "sequence-classification", "positive", "negative")
    with pytest.raises(UserError, match=r"teacher: .*/none could not be loaded"):
        check(tmp_path / "none", "sequence-classification")
    with pytest.raises(UserError, match="is for embedding"):
        check(encoder, "sequence-classification", "positive", "negative")
    with pytest.raises(UserError, match="other labels than the data: 'neutral'"):
        check(trained, "sequence-classification", "positive", "neutral", "negative")
    with pytest.raises(UserError, match="another problem_type"):
        check(trained, "sequence-classification", "positive", "negative", problem_type="multi-label")
    with pytest.raises(UserError, match="another vocabulary"):
        check(chat, "generation")
    teacher = tagger(encoder, tmp_path / "teacher", TAGS)
    check(teacher, "token-classification", *TAGS)
    with pytest.raises(UserError, match=r"teacher: .* reads 64 tokens"):
        check(teacher, "token-classification", *TAGS, max_length=65)
    headless = Path(shutil.copytree(trained, tmp_path / "headless"))
    from safetensors.torch import load_file, save_file

    tensors = load_file(headless / "model.safetensors")
    del tensors["classifier.weight"], tensors["classifier.bias"]
    save_file(tensors, headless / "model.safetensors", metadata={"format": "pt"})
    values = {"task": "sequence-classification", "base_model": str(encoder), "train": "d.csv", "output": "o"}
    with pytest.raises(UserError, match="lacks the weights of classifier"):
        distillation.load(
            config.parse({**values, "teacher": str(headless)}, tmp_path),
            Target("sequence-classification", ("positive", "negative"), "single-label", 64),
            tokenizer,
            False,
        )
