"""A packed file of a tiny model, made here, becomes a checkpoint with the same weights, tokens, pooling and prompts."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from tuneserve import checkpoint
from tuneserve.samples import e5_small
from tuneserve.v1 import checkpoint_pb2 as pb

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁que", "ry", ":", "▁blue", "▁sky", "▁fi", "<mask>"]
HIDDEN, INNER, POSITIONS = 32, 64, 16


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    """The weights of one layer, by their names in the file."""
    chance, layer = np.random.default_rng(0), "l0."
    shapes = {"emb.word": (len(PIECES), HIDDEN), "emb.pos": (POSITIONS, HIDDEN), "emb.type": (2, HIDDEN)}
    shapes |= {"emb.ln.w": (HIDDEN,), "emb.ln.b": (HIDDEN,)}
    for name in ("q", "k", "v", "ao"):
        shapes |= {f"{layer}{name}.w": (HIDDEN, HIDDEN), f"{layer}{name}.b": (HIDDEN,)}
    shapes |= {"l0.fi.w": (INNER, HIDDEN), "l0.fi.b": (INNER,), "l0.fo.w": (HIDDEN, INNER), "l0.fo.b": (HIDDEN,)}
    for name in ("aln", "oln"):
        shapes |= {f"{layer}{name}.w": (HIDDEN,), f"{layer}{name}.b": (HIDDEN,)}
    return {name: chance.normal(size=shape).astype("<f4") for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Any]) -> Path:
    text = [piece.encode() for piece in PIECES]
    head = b"E5S1" + struct.pack("<I7ifi", 1, HIDDEN, 1, 2, INNER, len(PIECES), POSITIONS, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, sum(map(len, text)))
    head += np.cumsum([0, *map(len, text)]).astype("<u4").tobytes() + np.full(len(PIECES), -1, "<f4").tobytes()
    head += b"".join(text) + struct.pack("<iI", 1, 9) + struct.pack("<IBI", 9, 1, 32)
    packed = {
        name: quantize(values, GGMLQuantizationType.Q4_0).tobytes()
        for name, values in weights.items()
        if values.ndim == 2 and name not in ("emb.pos", "emb.type")
    }
    blocks = {name: packed.get(name, values.tobytes()) for name, values in weights.items()}
    start = len(head) + 4 + sum(2 + len(name) + 21 for name in blocks)
    head += struct.pack("<i", len(blocks))
    for name, block in blocks.items():
        head += struct.pack("<H", len(name)) + name.encode()
        head += struct.pack("<BIQQ", name in packed, weights[name].size, start, len(block))
        start += len(block)
    target = tmp_path_factory.mktemp("e5") / "model"
    e5_small.make(head + b"".join(blocks.values()), target)
    return target


def test_weights_are_those_of_the_file(made: Path, weights: dict[str, Any]) -> None:
    from safetensors.torch import load_file

    found = load_file(made / "model.safetensors")
    assert len(found) == len(weights)
    value = found["encoder.layer.0.attention.self.key.weight"].float().numpy()
    expected = dequantize(quantize(weights["l0.k.w"], GGMLQuantizationType.Q4_0), GGMLQuantizationType.Q4_0)
    assert value == pytest.approx(expected, rel=0.01)
    assert value != pytest.approx(weights["l0.q.w"], abs=1)
    assert found["embeddings.position_embeddings.weight"].float().numpy() == pytest.approx(weights["emb.pos"], rel=0.01)


def test_texts_become_its_tokens(made: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made)
    ids = tokenizer("query: \tblue \u200b\u0001 sky ﬁ").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "▁que", "ry", ":", "▁blue", "▁sky", "▁fi", "</s>"]


def test_it_says_how_it_is_asked(made: Path) -> None:
    manifest = checkpoint.load(made)
    assert (manifest.task, manifest.pooling) == (pb.TASK_EMBEDDING, "mean")
    assert dict(manifest.prompts) == {"query": "query: ", "passage": "passage: "}
    assert manifest.max_length == POSITIONS
