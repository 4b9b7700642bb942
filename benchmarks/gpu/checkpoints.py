"""Checkpoints of a shape without weights: vLLM makes them on the device (`load_format: dummy`), for all systems alike.

Writing the 16 GB of an 8B model would take minutes. Answers mean nothing; their cost is that of a real model, except
that dummy weights are small: fp8 rounds them to a few values, and int8 and int4 weights are whatever the memory held.

Tokenizers have vocabularies of the real size. The words of the built-in texts are a token each, so that texts are about
as long as in BERT's own vocabulary.
"""

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tuneserve.benchmarks.gpu.shapes import GROUP_SIZE, Shape
from tuneserve.benchmarks.serving.load.texts import SENTENCES

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_END = "<|end|>"
_LENGTH = {True: 512, False: 8192}


def write(shape: Shape, scheme: str, folder: Path) -> Path:
    """Writes a checkpoint and returns its directory."""
    from safetensors.numpy import save_file

    path = folder / f"{shape.name}-{scheme}"
    path.mkdir(parents=True)
    config = (_bert if shape.pooling else _llama)(shape)
    if scheme != "bf16":
        config["quantization_config"] = quantization(scheme, shape.pooling)
    tokenizer = (_words if shape.pooling else _bytes)(shape.vocabulary)
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": _LENGTH[shape.pooling]}
    described |= {"pad_token": "[PAD]", "unk_token": "[UNK]"} if shape.pooling else {"eos_token": _END}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(described), encoding="utf-8")
    tokenizer.save(str(path / "tokenizer.json"))
    # Without a file of weights, our server takes it for a broken checkpoint.
    save_file({}, path / "model.safetensors")
    return path


def quantization(scheme: str, pooling: bool) -> dict[str, Any]:
    """What `tuneserve quantize` writes into config.json for a scheme, as far as vLLM reads it."""
    kind, bits = {"w8a8": ("int", 8), "fp8": ("float", 8), "w4a16": ("int", 4)}[scheme]
    format = {"w8a8": "int-quantized", "fp8": "float-quantized", "w4a16": "pack-quantized"}[scheme]
    number = {"type": kind, "num_bits": bits, "symmetric": True}
    in_groups = scheme == "w4a16"
    group = {
        "targets": ["Linear"],
        "weights": number
        | {"dynamic": False, "strategy": "group" if in_groups else "channel"}
        | ({"group_size": GROUP_SIZE} if in_groups else {}),
        "input_activations": None if in_groups else number | {"dynamic": True, "strategy": "token"},
    }
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": format,
        "ignore": ["bert.pooler.dense", "classifier"] if pooling else ["lm_head"],
        "config_groups": {"group_0": group},
    }


def _common(shape: Shape) -> dict[str, Any]:
    return {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": _LENGTH[shape.pooling],
        "dtype": "bfloat16",
        # Without it, transformers warns of old tokenizers of this size.
        "transformers_version": "5.0.0",
    }


def _bert(shape: Shape) -> dict[str, Any]:
    labels = ["negative", "positive"]
    return _common(shape) | {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def _llama(shape: Shape) -> dict[str, Any]:
    return _common(shape) | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": shape.kv_heads,
        "tie_word_embeddings": shape.tied,
        "eos_token_id": 0,
        "bos_token_id": 0,
    }


def _words(vocabulary: int) -> Tokenizer:
    words = sorted(set(re.findall(r"\w+|[^\w\s]", " ".join(SENTENCES).lower())))
    letters = sorted(set("".join(words)))
    tokens = list(dict.fromkeys([*_SPECIAL, *words, *letters, *(f"##{letter}" for letter in letters)]))
    tokens += [f"[unused{index}]" for index in range(vocabulary - len(tokens))]
    ids = {token: index for index, token in enumerate(tokens[:vocabulary])}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def _bytes(vocabulary: int) -> Tokenizer:
    tokens = [_END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    # As long as a word and the space before it.
    tokens += [f"Ġ{index:04x}" for index in range(vocabulary - len(tokens))]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_END])
    return tokenizer
