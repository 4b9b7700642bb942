"""Models with fewer blocks: which stay, and that what is saved answers the same, with a cache and without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve import checkpoint
from tuneserve.checkpoint.tasks import auto_class
from tuneserve.errors import UserError
from tuneserve.finetune.data.tokens import Target
from tuneserve.finetune.model import base_models
from tuneserve.finetune.model.layer_drop import drop_blocks, kept_blocks
from tuneserve.v1 import checkpoint_pb2 as pb

from ... import tiny

IDS = torch.arange(5, 29)[None]


def test_what_stays_is_spread_evenly() -> None:
    assert kept_blocks(6, 3) == [0, 2, 5]
    assert kept_blocks(12, 6) == [0, 2, 4, 7, 9, 11]
    assert kept_blocks(12, 3) == [0, 6, 11]
    assert kept_blocks(2, 1) == [0]
    for depth in range(2, 40):
        for count in range(2, depth):
            kept = kept_blocks(depth, count)
            assert len(set(kept)) == count
            assert (kept[0], kept[-1]) == (0, depth - 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "gpt2", "llama", "qwen2", "qwen3", "gemma3_text"])
def test_what_is_saved_answers_the_same(tmp_path: Path, kind: str) -> None:
    sizes = {"num_hidden_layers": 7, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
    # A window that the text is longer than, in some of the blocks.
    more: dict[str, dict[str, Any]] = {
        "modernbert": {"local_attention": 4},
        "qwen2": {"num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
        "gemma3_text": {"sliding_window": 4, "num_key_value_heads": 1, "head_dim": 16, "_sliding_window_pattern": 2},
        "qwen3": {"num_key_value_heads": 1, "head_dim": 16},
    }
    generates = kind not in ("bert", "roberta", "modernbert")
    auto = auto_class(pb.TASK_GENERATION if generates else pb.TASK_SEQUENCE_CLASSIFICATION)
    model = tiny.model(auto.__name__, kind, **sizes, **more.get(kind, {})).eval()
    assert drop_blocks(model, 3) == [0, 3, 6]
    model.save_pretrained(tmp_path)
    saved = auto.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert saved.config.num_hidden_layers == 3
    with torch.inference_mode():
        expected = model(input_ids=IDS).logits
        assert torch.allclose(saved(input_ids=IDS).logits, expected, atol=1e-6)
        if generates:
            kept = model(input_ids=IDS[:, :-1], use_cache=True).past_key_values
            last = model(input_ids=IDS[:, -1:], past_key_values=kept).logits
            assert torch.allclose(last, expected[:, -1:], atol=1e-5)


def test_more_than_there_are(encoder: Path) -> None:
    model, _ = base_models.load_model(Target("sequence-classification", ("a", "b"), "single-label", 64), str(encoder))
    with pytest.raises(UserError, match="keep_layers is 2") as caught:
        drop_blocks(model, 2)
    assert "has 2 blocks" in str(caught.value)


@pytest.mark.train
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_smaller_student_of_the_whole_model(
    run: Callable[..., Path], tmp_path: Path, trained: Path, reviews: Path
) -> None:
    output = run(
        tmp_path,
        task="sequence-classification",
        base_model=str(trained),
        teacher=str(trained),
        train=str(reviews),
        test_size=0.2,
        method="full",
        keep_layers=1,
        epochs=5,
        batch_size=8,
        learning_rate=2e-3,
    )
    manifest = checkpoint.load(output)
    assert list(manifest.lineage[-1].config["kept_layers"]) == [0]
    assert manifest.lineage[-1].metrics["accuracy"] >= 0.8
    assert checkpoint.size_of(manifest) < checkpoint.size_of(checkpoint.load(trained))
