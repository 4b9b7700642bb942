"""Tiny models of random weights, of any architecture, and a tokenizer of bytes."""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def model(auto: str, kind: str, **settings: Any) -> Any:
    """Two layers, 32 wide, the same weights each time: model("AutoModelForCausalLM", "llama", vocab_size=100)."""
    import torch
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"vocab_size": 64, "max_position_embeddings": 64}
    config = transformers.AutoConfig.for_model(kind, **sizes | settings)
    torch.manual_seed(0)
    return getattr(transformers, auto).from_config(config, dtype=torch.float32)


def byte_tokenizer(special: Sequence[str]) -> Tokenizer:
    """A BPE of bytes with a few words of film reviews; 300 tokens, of which the special ones come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the film was good, the movie was bad"] * 4, trainer)
    return tokenizer
