"""Which block a module is in, by the names that architectures give them; and what is in none."""

import pytest

from tuneserve.checkpoint.layers import block_of, heads

from ... import tiny


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("bert.encoder.layer.11.attention.self.query.weight", 11),
        ("model.layers.0.mlp.down_proj", 0),
        ("transformer.h.3.attn.c_attn", 3),
        ("layers.2.attn.Wqkv", 2),
        ("blocks.7.norm", 7),
        ("bert.embeddings.word_embeddings", None),
        ("classifier", None),
        ("lm_head.weight", None),
        ("multilayer.4.weight", None),
    ],
)
def test_the_number_of_a_block(name: str, block: int | None) -> None:
    assert block_of(name) == block


@pytest.mark.parametrize(
    ("auto", "kind", "found"),
    [
        ("AutoModelForSequenceClassification", "bert", ["bert.pooler.dense", "classifier"]),
        ("AutoModelForSequenceClassification", "roberta", ["classifier.dense", "classifier.out_proj"]),
        ("AutoModelForCausalLM", "llama", ["lm_head"]),
    ],
)
def test_heads_are_outside_of_all_blocks(auto: str, kind: str, found: list[str]) -> None:
    assert heads(tiny.model(auto, kind)) == found
