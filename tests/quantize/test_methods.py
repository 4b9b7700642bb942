"""Which method fits which model, and that what scales changes nothing by itself."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve import checkpoint
from tuneserve.checkpoint import rows
from tuneserve.checkpoint.tasks import auto_class
from tuneserve.quantize import calibration, methods, weights
from tuneserve.quantize.schemes import SCHEMES
from tuneserve.v1 import checkpoint_pb2 as pb

from .. import tiny


@pytest.fixture(scope="module")
def modernbert(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ModernBERT classifier, with the tokenizer of the other models."""
    from transformers import AutoTokenizer

    directory = tmp_path_factory.mktemp("modernbert") / "modern"
    settings = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "global_attn_every_n_layers": 2}
    settings |= {"pad_token_id": 0, "attn_implementation": "eager"}
    tiny.model("AutoModelForSequenceClassification", "modernbert", **settings).save_pretrained(directory)
    AutoTokenizer.from_pretrained(bert).save_pretrained(directory)
    return directory


@pytest.mark.parametrize(("model", "norms"), [("llama", 4), ("modernbert", 5)])
def test_scaling_changes_norms_and_layers_but_no_output(
    request: pytest.FixtureRequest, bert: Path, model: str, norms: int
) -> None:
    """In the norms before attention and MLP of each block; ModernBERT's first block has none before its attention."""
    from llmcompressor import oneshot
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    source: Path = request.getfixturevalue(model)
    task = pb.TASK_GENERATION if model == "llama" else pb.TASK_SEQUENCE_CLASSIFICATION
    seen = rows.read((source if model == "llama" else bert) / checkpoint.CALIBRATION_SPLIT)
    encoded = calibration.encode(AutoTokenizer.from_pretrained(source), pb.Checkpoint(task=task, max_length=64), seen)
    batches = list(calibration.tensors(encoded))
    auto = auto_class(task)

    def run(loaded: Any) -> Any:
        with torch.inference_mode():
            return loaded.eval()(**batches[0]).logits

    before, after = (auto.from_pretrained(source, dtype=torch.float32) for _ in range(2))
    steps = methods.scaling("smoothquant", before.config.model_type)
    with weights.quiet():
        oneshot(model=after, recipe=steps, dataset=DataLoader(batches, batch_size=None), pipeline="sequential")

    assert torch.allclose(run(before), run(after), atol=1e-4)
    moved = [name for name, value in before.named_parameters() if not torch.equal(value, after.get_parameter(name))]
    assert sum("norm" in name for name in moved) == norms


def test_methods_are_those_that_fit_and_have_their_rows() -> None:
    w4a16 = SCHEMES["w4a16"]
    assert methods.usable(w4a16, "llama", has_rows=True) == ["gptq", "awq", "rtn"]
    assert methods.usable(w4a16, "bert", has_rows=True) == ["gptq", "rtn"]
    assert methods.usable(w4a16, "llama", has_rows=False) == ["rtn"]
