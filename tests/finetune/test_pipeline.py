"""The whole program on tiny real models: what it leaves on disk, and what it refuses."""

import asyncio
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tuneserve import card, checkpoint
from tuneserve.checkpoint import rows
from tuneserve.errors import UserError
from tuneserve.finetune.data.tokens import encode
from tuneserve.finetune.eval import evaluation
from tuneserve.finetune.export import merging
from tuneserve.finetune.model import base_models
from tuneserve.finetune.report.tables import validate
from tuneserve.machine import tiers
from tuneserve.server.text.tokenizer import Tokenizer
from tuneserve.v1 import checkpoint_pb2 as pb

pytestmark = [
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


Run = Callable[..., Path]


def test_the_checkpoint_is_whole_and_learned(trained: Path) -> None:
    manifest = checkpoint.load(trained)
    assert manifest.task == pb.TASK_SEQUENCE_CLASSIFICATION
    assert manifest.problem_type == pb.PROBLEM_TYPE_SINGLE_LABEL
    assert list(manifest.labels) == ["negative", "positive"]
    assert manifest.dtype == "bfloat16"
    assert [step.name for step in manifest.lineage] == ["base", "finetune", "merge"]
    assert manifest.lineage[2].metrics["accuracy"] >= 0.9
    assert [step.measured_on for step in manifest.lineage] == ["", tiers.measured_on(), tiers.measured_on()]
    assert manifest.lineage[2].metrics["merged_logits_max_difference"] < 1e-3
    assert manifest.label_distribution["positive"] == pytest.approx(0.5, abs=0.05)
    test = rows.read(trained / checkpoint.TEST_SPLIT)
    assert len(test) == manifest.test_split.rows == 12
    assert rows.sha256(test) == manifest.test_split.sha256
    # The settings ask for 500 tokens, the model reads 64.
    assert manifest.lineage[1].config["max_length"] == manifest.max_length == 64
    assert str(trained.parent) not in (trained / checkpoint.MANIFEST).read_text()
    assert (trained / checkpoint.CARD).read_text() == card.text(manifest)
    assert "on 48 rows, and measured on 12 others" in card.text(manifest)


def test_the_tokenizer_is_saved_without_the_cut_of_training(trained: Path) -> None:
    saved = json.loads((trained / "tokenizer.json").read_text())
    assert saved["truncation"] is None
    assert saved["padding"] is None


def test_plain_transformers_loads_it(trained: Path) -> None:
    from transformers import pipeline as transformers_pipeline

    classify = transformers_pipeline("text-classification", model=str(trained))
    test = rows.read(trained / checkpoint.TEST_SPLIT)
    right = sum(classify(row["text"])[0]["label"] == row["label"] for row in test)
    assert right / len(test) == pytest.approx(checkpoint.load(trained).lineage[2].metrics["accuracy"])


def test_plain_peft_loads_the_adapter(trained: Path) -> None:
    from peft import AutoPeftModelForSequenceClassification

    model = AutoPeftModelForSequenceClassification.from_pretrained(trained.with_name("out-adapter"), num_labels=2)
    assert "lora" in str(type(model.base_model)).lower()


def test_training_again_gives_the_same_weights(
    run: Run, trained: Path, tmp_path: Path, encoder: Path, reviews: Path
) -> None:
    settings = checkpoint.read_manifest(trained).lineage[1].config
    again = run(
        tmp_path,
        task="sequence-classification",
        base_model=str(encoder),
        train=str(reviews),
        test_size=0.2,
        epochs=settings["epochs"],
        batch_size=8,
        learning_rate=2e-3,
    )
    name = "model.safetensors"
    assert checkpoint.sha256_file(again / name) == checkpoint.sha256_file(trained / name)


def test_merge_alone_gives_the_same_checkpoint(trained: Path, adapter: Path, tmp_path: Path) -> None:
    merged = merging.merge(adapter, tmp_path / "merged")
    first, second = checkpoint.load(trained), checkpoint.load(merged)
    assert checkpoint.version_of(first) == checkpoint.version_of(second)
    assert first.lineage[2].metrics["accuracy"] == second.lineage[2].metrics["accuracy"]
    with pytest.raises(UserError, match="already exists"):
        merging.merge(adapter, merged)


def test_finished_work_is_not_overwritten(run: Run, trained: Path, encoder: Path, reviews: Path) -> None:
    with pytest.raises(UserError, match="out: already exists"):
        run(trained.parent, task="sequence-classification", base_model=str(encoder), train=str(reviews))


def test_full_tuning_of_several_labels_on_pairs(run: Run, tmp_path: Path, encoder: Path) -> None:
    values: list[dict[str, Any]] = [
        {
            "text": " ".join(["film"] * (n // 4 + 1) + ["good" if n % 2 else "bad"]),
            "text_pair": "story" if n % 4 < 2 else "acting",
        }
        for n in range(48)
    ]
    for value in values:
        value["labels"] = [name for name in ("good", "story") if name in value["text"] + value["text_pair"]]
    rows.write(tmp_path / "pairs.jsonl", values)
    output = run(
        tmp_path,
        task="sequence-classification",
        problem_type="multi-label",
        method="full",
        base_model=str(encoder),
        train="pairs.jsonl",
        test_size=0.25,
        epochs=30,
        learning_rate=3e-3,
        keep_test_split=False,
    )
    manifest = checkpoint.load(output)
    assert manifest.problem_type == pb.PROBLEM_TYPE_MULTI_LABEL
    assert [step.name for step in manifest.lineage] == ["base", "finetune"]
    assert manifest.lineage[1].metrics["accuracy"] >= 0.8
    assert manifest.test_split.path == ""
    assert not manifest.HasField("calibration_split")
    assert not (output / checkpoint.CALIBRATION_SPLIT).exists()
    assert [path.name for path in (output / "eval").iterdir()] == ["trained_rows.blake2b"]
    assert not (tmp_path / "out-adapter").exists()


def test_numbers(run: Run, tmp_path: Path, encoder: Path) -> None:
    values: list[dict[str, Any]] = [
        {"text": " ".join(["film"] * (n // 12 + 1) + ["good"] * (n % 4) + ["bad"] * (3 - n % 4)), "label": n % 4 / 2}
        for n in range(48)
    ]
    rows.write(tmp_path / "numbers.jsonl", values)
    output = run(
        tmp_path,
        task="sequence-classification",
        problem_type="regression",
        method="full",
        base_model=str(encoder),
        train="numbers.jsonl",
        test_size=0.25,
        epochs=40,
        batch_size=8,
        learning_rate=2e-3,
    )
    manifest = checkpoint.load(output)
    assert manifest.problem_type == pb.PROBLEM_TYPE_REGRESSION
    assert list(manifest.labels) == ["score"]
    assert not manifest.label_distribution
    assert manifest.lineage[-1].metrics["pearson"] >= 0.9
    assert manifest.lineage[-1].metrics["pearson_low"] < 1
    assert json.loads((output / "config.json").read_text())["problem_type"] == "regression"


def test_entities(run: Run, tmp_path: Path, encoder: Path) -> None:
    names = [("anna", "B-PER"), ("john", "B-PER"), ("berlin", "B-LOC"), ("paris", "B-LOC")]
    sentences = [[("the", "O")] * (n // 4 + 1) + [names[n % 4], ("lives", "O")] for n in range(60)]
    text = "\n\n".join("\n".join("\t".join(pair) for pair in sentence) for sentence in sentences)
    (tmp_path / "names.conll").write_text(text)
    output = run(
        tmp_path,
        task="token-classification",
        base_model=str(encoder),
        train="names.conll",
        epochs=30,
        learning_rate=5e-3,
        lora_rank=16,
        lora_alpha=32,
        keep_test_split=False,
    )
    manifest = checkpoint.load(output)
    assert list(manifest.labels) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert manifest.label_distribution == {"LOC": pytest.approx(0.5, abs=0.1), "PER": pytest.approx(0.5, abs=0.1)}
    metrics = manifest.lineage[-1].metrics
    assert metrics["entity_f1_low"] < metrics["entity_f1"] <= metrics["entity_f1_high"]
    assert metrics["entity_f1"] >= 0.9
    # The test rows are not in the adapter either, and merging works without them.
    assert [path.name for path in (tmp_path / "out-adapter" / "eval").iterdir()] == ["trained_rows.blake2b"]
    merging.merge(tmp_path / "out-adapter", tmp_path / "again")
    assert checkpoint.version_of(checkpoint.load(tmp_path / "again")) == checkpoint.version_of(manifest)


def test_chat(run: Run, tmp_path: Path, chat: Path) -> None:
    def talk(number: int) -> dict[str, object]:
        return {
            "messages": [
                {"role": "user", "content": f"say {number}"},
                {"role": "assistant", "content": "yes"},
            ]
        }

    rows.write(tmp_path / "talk.jsonl", [talk(number) for number in range(40)])
    given = {"task": "generation", "base_model": str(chat), "train": "talk.jsonl", "answer_metrics": ["chrf", "rouge"]}
    output = run(tmp_path, epochs=15, learning_rate=1e-2, **given)
    manifest = checkpoint.load(output)
    # It answers every prompt with the expected word.
    written = {name: manifest.lineage[2].metrics[name] for name in ("chrf", "rouge1", "rougeL")}
    assert written == pytest.approx({"chrf": 100, "rouge1": 1, "rougeL": 1})
    assert "bleu" not in manifest.lineage[2].metrics
    assert "rougeL" in (tmp_path / "out-report" / "report.html").read_text()
    assert manifest.architecture == "LlamaForCausalLM"
    # It was trained at 64 tokens, and reads 256.
    assert manifest.max_length == checkpoint.trained_length(manifest) == 64
    assert checkpoint.describe(output).max_length == 256
    assert 1 <= manifest.lineage[2].metrics["perplexity_low"] <= manifest.lineage[2].metrics["perplexity"] < 2
    samples = rows.read(output / merging.SAMPLES)
    assert samples[0]["expected"] == "yes"
    assert samples[0]["answer"] == "yes"
    before, after = base_models.load_tokenizer(str(chat)), base_models.load_tokenizer(str(output))
    messages = [{"role": "user", "content": "hi"}]
    assert before.apply_chat_template(messages) == after.apply_chat_template(messages)
    assert manifest.chat_template_sha256 == checkpoint.describe(chat).chat_template_sha256
    assert after.eos_token == "<|im_end|>"


def test_a_base_model_with_a_chat_template_of_its_own(run: Run, tmp_path: Path, chat: Path, talk: Path) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>\n{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant] {% endif %}"
    (tmp_path / "mine.jinja").write_text(template)
    given = {"task": "generation", "base_model": str(chat), "train": str(talk), "chat_template": "mine.jinja"}
    output = run(tmp_path, epochs=15, learning_rate=1e-2, **given)
    manifest = checkpoint.load(output)
    assert manifest.lineage[2].metrics["perplexity"] < 2
    assert manifest.chat_template_sha256 == hashlib.sha256(template.encode()).hexdigest()
    assert rows.read(output / merging.SAMPLES)[0]["answer"] == "yes"
    # As it is served.
    served = Tokenizer(output, 64)
    messages = [{"role": "user", "content": "hi"}]
    assert asyncio.run(served.render(messages, add_generation_prompt=True)) == "[user] hi<|im_end|>\n[assistant] "


def test_a_chat_template_without_an_end(
    tmp_path: Path, chat: Path, talk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"task": "generation", "base_model": str(chat), "train": str(talk), "output": "out", "max_length": 64}
    for end in ("", "<|im_end|>"):
        template = "{% for m in messages %}{{ m.role }} {{ m.content }}" + end + "\n{% endfor %}"
        template += "{% if add_generation_prompt %}assistant {% endif %}"
        (tmp_path / "run.yaml").write_text(json.dumps(given | {"chat_template": template}))
        caplog.clear()
        validate(tmp_path / "run.yaml")
        assert ("will not learn to stop" in caplog.text) == (not end)


@pytest.mark.parametrize(("long_prompts", "left_out"), [("truncate", 0), ("drop", 8)])
def test_rows_too_long_for_their_answers(
    run: Run, tmp_path: Path, chat: Path, capsys: pytest.CaptureFixture[str], long_prompts: str, left_out: int
) -> None:
    """Truncated at the end, these would have no answer left: a loss over nothing, which is no number."""
    long = [{"prompt": f"{number} " + "so " * 60, "completion": "yes"} for number in range(8)]
    rows.write(tmp_path / "d.jsonl", long + [{"prompt": f"say {number}", "completion": "yes"} for number in range(8)])
    given = {"task": "generation", "base_model": str(chat), "train": "d.jsonl", "batch_size": 1, "test_size": 0.25}
    given |= {"long_prompts": long_prompts, "output": "out", "max_length": 64, "epochs": 10, "learning_rate": 1e-2}
    (tmp_path / "run.yaml").write_text(json.dumps(given))
    found = validate(tmp_path / "run.yaml")
    assert sum(found["left_out"].values()) == left_out
    assert ("8 rows are left out: 8 with prompt too long" in capsys.readouterr().out) == bool(left_out)
    trained = checkpoint.load(run(tmp_path, **given)).lineage[1].metrics
    assert math.isfinite(trained["train_loss"])
    assert trained["train_rows"] == found["train"]
    assert trained["left_out_rows"] == left_out
    assert found["train"] + found["test"] == 16 - left_out


def test_rows_of_which_none_can_be_used(tmp_path: Path, chat: Path) -> None:
    rows.write(tmp_path / "d.jsonl", [{"prompt": f"{number} " + "so " * 60, "completion": "y"} for number in range(20)])
    given = {"task": "generation", "base_model": str(chat), "train": "d.jsonl", "output": "out", "max_length": 64}
    (tmp_path / "run.yaml").write_text(json.dumps(given | {"long_prompts": "drop"}))
    with pytest.raises(UserError, match="no train row can be used: 18 have prompt too long"):
        validate(tmp_path / "run.yaml")


def test_tuning_a_checkpoint_again_keeps_its_history(run: Run, tmp_path: Path, trained: Path, reviews: Path) -> None:
    output = run(tmp_path, task="sequence-classification", base_model=str(trained), train=str(reviews), epochs=1)
    assert [step.name for step in checkpoint.load(output).lineage] == [
        "base", "finetune", "merge", "finetune", "merge"
    ]  # fmt: skip


@pytest.fixture(scope="module")
def searching(run: Run, tmp_path_factory: pytest.TempPathFactory, encoder: Path, pairs: Path) -> Path:
    """An encoder that learned pairs, with prompts."""
    return run(
        tmp_path_factory.mktemp("search"),
        task="embedding",
        base_model=str(encoder),
        train=str(pairs),
        test=str(pairs.with_name("asked.jsonl")),
        pooling="mean",
        prompts={"query": "what ", "passage": "the "},
        method="full",
        epochs=40,
        batch_size=10,
        learning_rate=3e-3,
    )


def test_an_encoder_learns_which_passage_answers(searching: Path, encoder: Path, pairs: Path) -> None:
    manifest = checkpoint.load(searching)
    assert (manifest.task, manifest.architecture, manifest.pooling) == (pb.TASK_EMBEDDING, "BertModel", "mean")
    assert dict(manifest.prompts) == {"query": "what ", "passage": "the "}
    assert manifest.max_length == 64
    assert not any("pooler" in name for name in load_file(searching / "model.safetensors"))
    metrics = manifest.lineage[-1].metrics
    target = replace(merging.target_of(manifest), prompts={})
    tokenizer = base_models.load_tokenizer(str(encoder))
    before = evaluation.evaluate(
        base_models.load_model(target, str(encoder))[0],
        tokenizer,
        target,
        rows.read(searching / checkpoint.TEST_SPLIT),
        bf16=False,
    )
    assert before.metrics["ndcg@10"] < 0.5 < 0.8 < metrics["ndcg@10_low"] <= metrics["ndcg@10"]
    assert metrics["recall@1"] > 0.9
    assert metrics["bf16_logits_relative_difference"] < 0.1


def test_sentence_transformers_makes_the_same_vectors(searching: Path, pairs: Path) -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(searching), device="cpu", model_kwargs={"dtype": torch.float32})
    target, tokenizer = merging.target_of(checkpoint.load(searching)), base_models.load_tokenizer(str(searching))
    model, _ = base_models.load_model(target, str(searching))
    encoded = encode(tokenizer, target, rows.read(pairs)[:5])
    ours = torch.nn.functional.normalize(torch.cat(evaluation.logits(model, tokenizer, target, encoded)))
    found = theirs.encode([row["query"] for row in rows.read(pairs)[:5]], prompt_name="query")
    assert torch.allclose(torch.from_numpy(found), ours, atol=1e-5)


def test_validate_says_how_an_encoder_is_asked(
    tmp_path: Path, encoder: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"task": "embedding", "base_model": str(encoder), "train": str(pairs), "output": "out", "max_length": 8}
    (tmp_path / "run.yaml").write_text(json.dumps(given | {"pooling": "cls", "prompts": {"query": "what "}}))
    found = validate(tmp_path / "run.yaml")
    assert "pooling: cls; prompts: query 'what '" in capsys.readouterr().out
    # [CLS] the story was h ##a [SEP], and no longer query: [CLS] what where is a ##a [SEP]
    assert found["lengths"]["longest"] == 7
    assert found["labels"] == {}


@pytest.mark.parametrize("loss", ["bce", "listwise"])
def test_a_cross_encoder_learns_which_passages_are_good(run: Run, tmp_path: Path, encoder: Path, loss: str) -> None:
    from sentence_transformers import CrossEncoder

    def row(number: int, wrong: int) -> rows.Row:
        named = [
            f"the {thing} was {word}" for word in ("bad", "awful", "dull") for thing in ("film", "story", "acting")
        ]
        return {
            "query": f"what was good in {'abcdefghij'[number]}",
            "positive": f"the {('film', 'story', 'acting')[number % 3]} was {('good', 'great', 'fun')[number % 3]}",
            "negatives": named[-wrong:],
        }

    rows.write(tmp_path / "d.jsonl", [row(number, 1 + number) for number in range(9)] * 4)
    rows.write(tmp_path / "t.jsonl", [row(9, 9)])
    output = run(
        tmp_path,
        task="ranking",
        base_model=str(encoder),
        train="d.jsonl",
        test="t.jsonl",
        ranking_loss=loss,
        mined_negatives=0,
        epochs=12,
        batch_size=8,
        learning_rate=5e-3,
    )
    manifest = checkpoint.load(output)
    assert (manifest.task, manifest.problem_type) == (pb.TASK_RANKING, pb.PROBLEM_TYPE_MULTI_LABEL)
    assert list(manifest.labels) == ["score"]
    # The right one of ten.
    assert manifest.lineage[-1].metrics["ndcg@10"] == 1
    # That library reads the checkpoint, and its scores are probabilities.
    target, tokenizer = merging.target_of(manifest), base_models.load_tokenizer(str(output))
    model, _ = base_models.load_model(target, str(output))
    asked = row(9, 9)
    [ours] = evaluation.logits(model, tokenizer, target, encode(tokenizer, target, [asked]))
    theirs = CrossEncoder(str(output), device="cpu", model_kwargs={"dtype": torch.float32})
    found = theirs.predict([(asked["query"], asked["positive"])])
    assert float(found[0]) == pytest.approx(float(ours.sigmoid()), abs=1e-5)


def test_a_cross_encoder_that_has_learned_nothing_is_told(
    run: Run, tmp_path: Path, encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["good", "bad", "great", "awful", "fun", "dull", "film", "story", "acting"]
    found = [{"query": f"what was {word}", "positive": f"the {word}"} for word in words]
    rows.write(tmp_path / "d.jsonl", found)
    settings = {"task": "ranking", "base_model": str(encoder), "train": "d.jsonl", "test_size": 0.5, "epochs": 1}
    output = run(tmp_path, **settings, learning_rate=1e-9)
    metrics = checkpoint.load(output).lineage[-1].metrics
    assert metrics["ndcg@10"] < metrics["letters/ndcg@10"] == 1
    assert "no better (nDCG@10" in caplog.text


def test_nothing_is_left_when_the_data_is_bad(run: Run, tmp_path: Path, encoder: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "", "label": "a"}\n')
    with pytest.raises(UserError, match="1 bad rows"):
        run(
            tmp_path,
            task="sequence-classification",
            base_model=str(encoder),
            train="d.jsonl",
            labels=["a", "b"],
        )
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_one_held_out_number_and_the_type_that_is_saved(
    run: Run, tmp_path: Path, encoder: Path, method: str, dtype: str
) -> None:
    rows.write(tmp_path / "numbers.jsonl", ({"text": f"film {'good ' * (n % 4)}", "label": n % 4} for n in range(12)))
    rows.write(tmp_path / "one.jsonl", [{"text": "good film", "label": 1}])
    output = run(
        tmp_path,
        task="sequence-classification",
        problem_type="regression",
        method=method,
        base_model=str(encoder),
        train="numbers.jsonl",
        test="one.jsonl",
        save_dtype=dtype,
        epochs=2,
    )
    manifest = checkpoint.load(output)
    assert manifest.dtype == dtype
    assert {tensor.dtype for tensor in load_file(output / "model.safetensors").values()} == {getattr(torch, dtype)}
    metrics = manifest.lineage[-1].metrics
    assert metrics["mean_absolute_error"] > 0
    if dtype == "float32":
        assert metrics["saved_logits_max_difference"] < 1e-5
    else:
        assert metrics["bf16_logits_relative_difference"] < 0.1
