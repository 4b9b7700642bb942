"""Tiny real checkpoints with random weights, made once for the run."""

from pathlib import Path
from typing import Any

import pytest

from tuneserve import checkpoint
from tuneserve.checkpoint import rows
from tuneserve.v1 import checkpoint_pb2 as pb

from .. import tiny

LABELS = ["negative", "positive"]
ROWS = [{"text": f"sentence number {i}", "label": LABELS[i % 2]} for i in range(1000)]
CHAT_ROWS = [{"prompt": f"question {i}", "completion": f" answer {i}"} for i in range(4)]
# What training saw.
PAIRS = [(i, j) for i in range(8) for j in range(4)]
SEEN_ROWS = [{"text": f"number {i} sentence answer {j} question", "label": LABELS[j % 2]} for i, j in PAIRS]
SEEN_CHAT_ROWS = [{"prompt": f"number {i} question {j}", "completion": f" answer {i} sentence {j}"} for i, j in PAIRS]


def seal(directory: Path, test_rows: list[dict[str, Any]], seen_rows: list[dict[str, Any]]) -> pb.Checkpoint:
    """Keeps rows in a saved model's directory and makes it a checkpoint."""
    for path, kept in ((checkpoint.TEST_SPLIT, test_rows), (checkpoint.CALIBRATION_SPLIT, seen_rows)):
        rows.write(directory / path, kept)
    manifest = checkpoint.describe(directory)
    manifest.test_split.path = checkpoint.TEST_SPLIT
    manifest.test_split.sha256 = rows.sha256(test_rows)
    manifest.test_split.rows = len(test_rows)
    manifest.calibration_split.path = checkpoint.CALIBRATION_SPLIT
    manifest.calibration_split.sha256 = rows.sha256(seen_rows)
    manifest.calibration_split.rows = len(seen_rows)
    manifest.lineage.append(checkpoint.step("merge", "tiny", {}, ()))
    checkpoint.seal(directory, manifest)
    return manifest


def save_tokenizer(directory: Path) -> None:
    """Saves a word-level tokenizer with BERT's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "sentence", "number", "question", "answer", *"0123456789"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(directory)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT sentence classifier of two labels, 64 wide."""
    import torch

    directory = tmp_path_factory.mktemp("bert") / "sentiment"
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    model = tiny.model("AutoModelForSequenceClassification", "bert", **sizes, **labels)
    model.to(torch.bfloat16).save_pretrained(directory)
    save_tokenizer(directory)
    seal(directory, ROWS, SEEN_ROWS)
    return directory


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama decoder with tied embeddings; 64 and 192 wide, so that groups of 64 are the largest that fit."""
    import torch

    directory = tmp_path_factory.mktemp("llama") / "chat"
    settings = {"hidden_size": 64, "intermediate_size": 192, "num_key_value_heads": 2, "tie_word_embeddings": True}
    model = tiny.model("AutoModelForCausalLM", "llama", **settings)
    model.to(torch.bfloat16).save_pretrained(directory)
    save_tokenizer(directory)
    seal(directory, CHAT_ROWS, SEEN_CHAT_ROWS)
    return directory
