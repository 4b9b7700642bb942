"""How an encoder makes a vector of a text: the files of sentence-transformers that say so.

    modules.json                        the steps: the encoder, its pooling, and others
    1_Pooling/config.json               how the vectors of the tokens become one
    sentence_bert_config.json           the longest text, in tokens
    config_sentence_transformers.json   prompts by name, which are put before a text: "query: ", "passage: "

A model that reads a query together with a passage, a cross-encoder, has the key `sentence_transformers` in config.json.

Without the first two nobody knows which pooling a model was trained with, and vLLM would take one by the class of the
model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneserve.errors import CheckpointError

# Our names, and those of the files. Newer files have a single key, `pooling_mode`, with the name's middle.
POOLINGS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last-token": "pooling_mode_lasttoken",
}
# The names of prompts that go before a query and before what is searched, the usual one first.
QUERY, PASSAGE = ("query",), ("passage", "document")
# Of a cross-encoder: its number is a logit.
CROSS_ENCODER = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
# Steps that need no weights of their own.
_PLAIN = ("Transformer", "Pooling", "Normalize")
_MODULES = "modules.json"
_PROMPTS = "config_sentence_transformers.json"


def pooling(directory: Path) -> str:
    """Returns the name of a model's pooling, in POOLINGS; empty if its files don't say.

    Raises CheckpointError for one that is not served.
    """
    folder = dict(_steps(directory)).get("Pooling")
    if folder is None:
        return ""
    path = directory / folder / "config.json"
    settings = _read(path, {})
    chosen = {key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True}
    if isinstance(mode := settings.get("pooling_mode"), str):
        chosen = {next((key for key in POOLINGS.values() if key.split("_")[2] == mode), mode)}
    found = [name for name, key in POOLINGS.items() if {key} == chosen]
    if not found:
        what = ", ".join(sorted(chosen)) or "none"
        raise CheckpointError(f"{path}: its pooling ({what}) is not supported", f"supported: {', '.join(POOLINGS)}")
    return found[0]


def ranks(config: Mapping[str, Any]) -> bool:
    """Returns whether a model with one output, of this config.json, is a cross-encoder of sentence-transformers."""
    return "sentence_transformers" in config or "sbert_ce_default_activation_function" in config


def prompts(directory: Path) -> dict[str, str]:
    """Returns a model's prompts by name, without those that are empty."""
    path = directory / _PROMPTS
    given = _read(path, {}).get("prompts") or {}
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise CheckpointError(f"{path}: prompts is not an object of texts")
    return {name: text for name, text in given.items() if text}


def prompt(prompts: Mapping[str, str], names: tuple[str, ...]) -> str:
    """Returns the first of these prompts that there is; empty if there is none."""
    return next((prompts[name] for name in names if name in prompts), "")


def further_steps(directory: Path) -> list[str]:
    """Returns the steps after pooling that have weights of their own, such as a dense layer."""
    return [kind for kind, _ in _steps(directory) if kind not in _PLAIN]


def pooled(hidden: Any, mask: Any, pooling: str) -> Any:
    """Returns one vector for each text, in fp32: [texts, width] of [texts, tokens, width]. Padding is on the right."""
    hidden = hidden.float()
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last-token":
        return hidden[list(range(len(hidden))), mask.sum(1) - 1]
    weights = mask[..., None].to(hidden)
    return (hidden * weights).sum(1) / weights.sum(1)


def write(directory: Path, pooling: str, prompts: Mapping[str, str], size: int, max_length: int) -> None:
    """Writes the files; `size` is that of a vector."""
    steps = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(steps)
    ]
    chosen = {key: name == pooling for name, key in POOLINGS.items()}
    _write(directory / _MODULES, modules)
    _write(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": size, **chosen})
    _write(directory / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write(directory / _PROMPTS, {"prompts": dict(prompts), "similarity_fn_name": "cosine"})


def _steps(directory: Path) -> list[tuple[str, str]]:
    """Returns the kind of each step, and its folder."""
    path = directory / _MODULES
    try:
        # The folder's last name only: nothing outside of the checkpoint is read.
        return [(one["type"].rpartition(".")[2], Path(one["path"]).name) for one in _read(path, [])]
    except (AttributeError, KeyError, TypeError):
        raise CheckpointError(f"{path}: not a list of steps with type and path") from None


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(path: Path, default: Any) -> Any:
    if not path.exists():
        return default
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, type(default)):
        raise CheckpointError(f"{path}: not a JSON {'array' if default == [] else 'object'}")
    return value
