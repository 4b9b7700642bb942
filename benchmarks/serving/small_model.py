"""A model that costs an engine next to nothing: a checkpoint's own kind and tokenizer, one layer, random weights."""

import json
import shutil
from pathlib import Path

_DIMENSIONS = 32


def write(path: Path, output: Path, *, pooling: bool) -> int:
    """Writes a small model that is like the checkpoint `path`. Returns the size of its vocabulary."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(path)
    config.hidden_size, config.intermediate_size = _DIMENSIONS, 2 * _DIMENSIONS
    config.num_hidden_layers = config.num_attention_heads = 1
    for name, value in (("num_key_value_heads", 1), ("head_dim", _DIMENSIONS), ("layer_types", None)):
        if hasattr(config, name):
            setattr(config, name, value)
    kind = AutoModelForSequenceClassification if pooling else AutoModelForCausalLM
    kind.from_config(config).save_pretrained(output)
    for file in path.iterdir():
        # The manifest's lineage and metrics are those of the other model.
        if file.is_file() and file.name != "tuneserve.json" and not (output / file.name).exists():
            shutil.copy(file, output)
    return vocabulary(output)


def vocabulary(path: Path) -> int:
    """Returns the size of a checkpoint's vocabulary."""
    size: int = json.loads((path / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    return size
