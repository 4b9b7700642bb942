"""Training on preferences: the losses are those of the papers, and a model learns which answers are good."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tuneserve import checkpoint
from tuneserve.checkpoint import rows
from tuneserve.checkpoint.rows import Row
from tuneserve.errors import UserError
from tuneserve.evaluation import preferences as measured
from tuneserve.finetune import config
from tuneserve.finetune.data import preferences, previous
from tuneserve.finetune.data.tokens import Target
from tuneserve.finetune.eval import evaluation
from tuneserve.finetune.export import merging
from tuneserve.finetune.model import adapters, base_models
from tuneserve.finetune.report.tables import validate
from tuneserve.finetune.train import training
from tuneserve.v1 import checkpoint_pb2 as pb

pytestmark = [
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

Run = Callable[..., Path]
TARGET = Target("preference", (), "single-label", 64)


def pair(number: int) -> Row:
    """The good answer says yes, whatever is asked."""
    bad = ("no", "never", "perhaps not", "why")[number % 4]
    return {"prompt": [{"role": "user", "content": f"say {number}"}], "chosen": "yes", "rejected": bad}


def thumbs(number: int) -> list[Row]:
    one = pair(number)
    return [
        {"prompt": one["prompt"], "completion": one[name], "label": name == "chosen"} for name in ("chosen", "rejected")
    ]


def trainer(chat: Path, tmp_path: Path, given: list[Row], learned: bool = True, **values: Any) -> tuple[Any, Any]:
    """One that is about to train the tiny Llama, and its rows; with `learned`, the adapter is no longer nothing."""
    values = {"task": "preference", "base_model": str(chat), "train": "t.jsonl", "output": "out", **values}
    settings = config.parse(values, tmp_path)
    tokenizer = base_models.load_tokenizer(str(chat))
    model, _ = base_models.load_model(TARGET, str(chat), tokenizer.pad_token_id, nf4=settings.method == "qlora")
    model = adapters.choose_weights(model, [], settings, 1)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters() if learned else ():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    encoded = preferences.encode(tokenizer, [preferences.row(row, settings) for row in given], 64)
    run = training.Run(model, tokenizer, encoded, [], TARGET, settings, bf16=False, directory=tmp_path)
    return training._trainer(run), encoded


@pytest.mark.parametrize("method", ["lora", "dora", "rslora", "ia3", "qlora"])
def test_every_adapter_begins_at_its_base_model(chat: Path, tmp_path: Path, method: str) -> None:
    made, encoded = trainer(chat, tmp_path, [pair(number) for number in range(3)], learned=False, method=method)
    assert set(made.model.peft_config) == {"default"}, "TRL's copy of the adapter would be saved, too"
    loss = made.compute_loss(made.model, made.data_collator(list(encoded)))
    assert float(loss) == pytest.approx(math.log(2), abs=1e-4)
    loss.backward()
    learning = [parameter for parameter in made.model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in learning} == {torch.float32}
    assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in learning)


def log_likelihoods(model: Any, encoded: list[Row]) -> torch.Tensor:
    """Of each answer by itself, without padding."""
    found = []
    for row in encoded:
        ids = torch.tensor([row["input_ids"]])
        scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        found.append(scores[row["start"] - 1 :].sum())
    return torch.stack(found)


def test_the_loss_of_pairs(chat: Path, tmp_path: Path) -> None:
    made, encoded = trainer(chat, tmp_path, [pair(number) for number in range(3)], preference_beta=0.3)
    assert made.train_dataset is encoded
    with torch.no_grad():
        loss = made.compute_loss(made.model, made.data_collator(list(encoded)))
        made.model.eval()
        answers = [list(encoded), [row["documents"][0] for row in encoded]]
        own = [log_likelihoods(made.model, side) for side in answers]
        with made.model.disable_adapter():
            base = [log_likelihoods(made.model, side) for side in answers]
    margin = (own[0] - base[0]) - (own[1] - base[1])
    assert margin.abs().min() > 0.1
    torch.testing.assert_close(loss, -functional.logsigmoid(0.3 * margin).mean(), rtol=1e-4, atol=1e-5)


def test_the_loss_of_single_answers(chat: Path, tmp_path: Path) -> None:
    """One good answer and three bad ones: together, both kinds count the same."""
    given = [thumbs(0)[0], *(thumbs(number)[1] for number in (1, 2, 3))]
    made, encoded = trainer(chat, tmp_path, given, preference_beta=0.3)
    encoded = list(encoded)
    others = [encoded[-1], *encoded[:-1]]
    mixed = [
        {"input_ids": row["input_ids"][: row["start"]] + other["input_ids"][other["start"] :], "start": row["start"]}
        for row, other in zip(encoded, others, strict=True)
    ]
    with torch.no_grad():
        loss = made.compute_loss(made.model, made.data_collator(encoded))
        made.model.eval()
        own = [log_likelihoods(made.model, some) for some in (encoded, mixed)]
        with made.model.disable_adapter():
            base = [log_likelihoods(made.model, some) for some in (encoded, mixed)]
    rewards, kl = own[0] - base[0], (own[1] - base[1]).mean().clamp(min=0)
    good = 3 * (1 - torch.sigmoid(0.3 * (rewards[:1] - kl)))
    bad = 1 - torch.sigmoid(0.3 * (kl - rewards[1:]))
    torch.testing.assert_close(loss, torch.cat([good, bad]).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["pairs", "single"])
def test_a_model_learns_which_answers_are_good(
    run: Run, tmp_path: Path, chat: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    given = [pair(number) for number in range(40)]
    if kind == "single":
        given = [row for number in range(40) for row in thumbs(number)]
    rows.write(tmp_path / "d.jsonl", given)
    settings = {"task": "preference", "base_model": str(chat), "train": "d.jsonl", "test_size": 0.25, "epochs": 8}
    settings |= {"learning_rate": 5e-3, "validation_size": 0.2, "batch_size": 8}
    output = run(tmp_path, **settings)
    manifest = checkpoint.load(output)
    # What any server takes for a chat model.
    assert (manifest.task, manifest.architecture) == (pb.TASK_GENERATION, "LlamaForCausalLM")
    assert [step.name for step in manifest.lineage] == ["base", "finetune", "merge"]
    for step in manifest.lineage[1:]:
        assert step.metrics["reward_accuracy"] > 0.95
        assert step.metrics["reward_accuracy_low"] < step.metrics["reward_accuracy"]
        assert step.metrics["win_rate"] >= step.metrics["base_win_rate"]
        assert step.metrics["perplexity"] > 1
    assert not (tmp_path / "out-adapter" / "ref").exists(), "TRL's copy of the adapter as it was before training"
    shown = (tmp_path / "out-report" / "report.html").read_text()
    assert "reward accuracy" in shown
    assert "Rewarded wrongly" in shown
    # The base model beside the checkpoint, without the adapter that was between them.
    held_out = rows.read(output / checkpoint.TEST_SPLIT)
    target, tokenizer = merging.target_of(manifest), base_models.load_tokenizer(str(output))
    own, base = (
        evaluation.likelihoods(base_models.load_model(target, str(path))[0], tokenizer, target, held_out, bf16=False)
        for path in (output, chat)
    )
    again = measured.metrics(own, base, paired=kind == "pairs")
    assert again["reward_accuracy"] == pytest.approx(manifest.lineage[-1].metrics["reward_accuracy"], abs=0.02)
    assert again["base_win_rate"] == pytest.approx(manifest.lineage[-1].metrics["base_win_rate"], abs=0.02)
    merging.merge(tmp_path / "out-adapter", tmp_path / "again")
    assert checkpoint.version_of(checkpoint.load(tmp_path / "again")) == checkpoint.version_of(manifest)
    more = {"task": "generation", "continue_from": "out"}
    with pytest.raises(UserError, match="was trained on preferences"):
        previous.load(config.parse({**more, "train": "d.jsonl", "output": "again"}, tmp_path))


def test_validate_tells_how_long_the_better_answers_are(
    tmp_path: Path, chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows.write(tmp_path / "d.jsonl", [pair(number) for number in range(40)])
    text = f"task: preference\nbase_model: {chat}\ntrain: d.jsonl\noutput: out\nmax_length: 128\n"
    (tmp_path / "run.yaml").write_text(text)
    found = validate(tmp_path / "run.yaml")
    assert (found["train"], found["test"], found["labels"]) == (36, 4, {})
    # Of no, never, perhaps not and why, one is shorter than yes, and one as long.
    assert "40 pairs of answers; the better answer is the longer one in 38% of pairs" in capsys.readouterr().out
    rows.write(tmp_path / "d.jsonl", [row for number in range(40) for row in thumbs(number)])
    validate(tmp_path / "run.yaml")
    assert "40 good answers, 40 bad ones" in capsys.readouterr().out
