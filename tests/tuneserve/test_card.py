"""The model card: what the hub's own reader finds in it, and what people do."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tuneserve import card, checkpoint
from tuneserve.v1 import checkpoint_pb2 as pb

METRICS = {"accuracy": 0.9, "accuracy_low": 0.87, "accuracy_high": 0.92, "macro_f1": 0.8, "calibration_error": 0.05}
BY_LABEL = {"precision": 0.5, "recall": 1.0, "f1": 0.667, "support": 4.0}


def manifest(**fields: Any) -> pb.Checkpoint:
    made = pb.Checkpoint(
        task=pb.TASK_SEQUENCE_CLASSIFICATION,
        problem_type=pb.PROBLEM_TYPE_SINGLE_LABEL,
        labels=["a|b", "<c>"],
        max_length=128,
        **fields,
    )
    made.label_distribution.update({"a|b": 0.25, "<c>": 0.75})
    made.test_split.rows = 7
    made.lineage.append(checkpoint.step("base", "org/base", {}, ()))
    trained = checkpoint.step("finetune", "org/base", {"output": "/x/mine", "method": "lora", "epochs": 3}, ("torch",))
    trained.metrics["train_rows"] = 1234
    trained.data_sha256 = "abc"
    trained.metrics.update(METRICS | {f"a|b/{name}": value for name, value in BY_LABEL.items()})
    made.lineage.append(trained)
    return made


def test_what_the_hub_reads() -> None:
    data = ModelCard(card.text(manifest())).data
    assert data.base_model == "org/base"
    assert data.pipeline_tag == "text-classification"
    assert data.library_name == "transformers"
    assert data.tags == ["tuneserve", "lora"]
    assert data.model_name == "mine"
    assert [(one.metric_type, one.metric_value) for one in data.eval_results] == [("accuracy", 0.9), ("f1", 0.8)]
    # Not known, so not said.
    assert data.language is None
    assert data.license is None


def test_what_people_read() -> None:
    text = card.text(manifest())
    assert "on 1,234 rows, and measured on 7 others" in text
    assert "| \\<c\\> | 75.0% |" in text
    assert "| a\\|b | 0.500 | 1.000 | 0.667 | 4 |" in text
    assert "| accuracy | 0.9000 | 0.8700 to 0.9200 |" in text
    assert "| calibration\\_error | 0.0500 |  |" in text
    assert "tuneserve call classify --model mine" in text
    assert "| epochs | 3 |" in text
    assert "quantized" not in text
    assert "/x/" not in text


def test_a_quantized_checkpoint_says_so() -> None:
    made = manifest(quantization="w8a8")
    step = checkpoint.step("quantize", "mine", {}, ())
    step.metrics.update(
        {"accuracy": 0.89, "accuracy_before": 0.9, "size_bytes": 2.5e6, "drop": 0.01, "drop_at_most": 0.02}
    )
    step.measured_on = "cpu-avx2"
    made.lineage.append(step)
    text = card.text(made)
    assert "held-out rows, which it never saw. Measured on: cpu-avx2." in text
    data = ModelCard(text).data
    assert data.base_model_relation == "quantized"
    assert "w8a8" in data.tags
    assert data.eval_results[0].metric_value == 0.89
    assert "**Its weights are quantized: `w8a8`.** They take 2.5 MB." in text
    assert "its accuracy on these rows was 0.9000" in text
    assert "a drop of 0.0100, and with 95 % confidence of at most 0.0200" in text


def test_an_encoder_is_read_by_sentence_transformers() -> None:
    made = manifest(pooling="mean", prompts={"query": "q: "})
    made.task = pb.TASK_EMBEDDING
    del made.labels[:]
    made.lineage[-1].metrics.update({"ndcg@10": 0.8, "ndcg@10_low": 0.7, "ndcg@10_high": 0.9})
    text = card.text(made)
    assert "an encoder for search" in text
    assert 'SentenceTransformer("PATH").encode("The film was good.", prompt_name="query")' in text
    assert "call embed" in text
    assert "| ndcg@10 | 0.8000 | 0.7000 to 0.9000 |" in text
    data = ModelCard(text).data
    assert data.library_name == "sentence-transformers"
    assert ("ndcg_at_10", 0.8) in [(one.metric_type, one.metric_value) for one in data.eval_results]


def test_a_cross_encoder_is_given_pairs() -> None:
    made = manifest()
    made.task = pb.TASK_RANKING
    text = card.text(made)
    assert 'echo "The film was good." | tuneserve call rank --model mine "How was the film?"' in text
    assert 'CrossEncoder("PATH").predict([("How was the film?", "The film was good.")])' in text


@pytest.mark.parametrize(
    ("task", "template", "call"),
    [
        (pb.TASK_TOKEN_CLASSIFICATION, "abc", "call tokens"),
        (pb.TASK_GENERATION, "abc", "call chat"),
        (pb.TASK_GENERATION, "", "call generate"),
    ],
)
def test_other_tasks(task: pb.Task, template: str, call: str) -> None:
    made = manifest()
    made.task, made.chat_template_sha256 = task, template
    assert call in card.text(made)


def test_other_peoples_cards_stay(tmp_path: Path) -> None:
    (tmp_path / checkpoint.CARD).write_text("theirs")
    card.write(tmp_path, pb.Checkpoint(lineage=[pb.Step(name="base")]))
    assert (tmp_path / checkpoint.CARD).read_text() == "theirs"
    card.write(tmp_path, manifest())
    assert (tmp_path / checkpoint.CARD).read_text() == card.text(manifest())
