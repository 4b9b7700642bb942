"""llama.cpp's server: the real one, where a benchmark has built it; tests download nothing."""

import os
from pathlib import Path

import pytest

from tuneserve.benchmarks.serving.peers import environment, llama_cpp
from tuneserve.benchmarks.serving.peers.peer import Setting
from tuneserve.benchmarks.serving.systems import Engine
from tuneserve.benchmarks.serving.workers import job, worker
from tuneserve.benchmarks.serving.workers.job import Job


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with random weights, and a tokenizer of a kind that the conversion knows: bytes, as Llama 2's."""
    import torch
    from tokenizers import Tokenizer, decoders, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    core = Tokenizer(models.BPE({piece: id_ for id_, piece in enumerate(pieces)}, [], byte_fallback=True))
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens(pieces[:3])
    path = tmp_path_factory.mktemp("chat") / "checkpoint"
    PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(path)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(pieces),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=1.0,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(path)
    return path


@pytest.mark.skipif(
    not list((environment.FOLDER / "llama-cpp").glob("*/vendor/llama.cpp/build/bin/llama-server")),
    reason="it is not built",
)
def test_it_continues_prompts_as_transformers_does(chat: Path, tmp_path: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    prompts = job.prompts(8, 10, vocab_size=100, seed=1)
    # Bytes of ASCII, which are texts of their own.
    prompts = [[3 + 32 + id_ % 90 for id_ in prompt] for prompt in prompts]
    model, tokenizer = (
        LlamaForCausalLM.from_pretrained(chat, dtype=torch.float32),
        PreTrainedTokenizerFast.from_pretrained(chat),
    )
    with torch.no_grad():
        best = model(torch.tensor(prompts)).logits[:, -1].argmax(-1).tolist()
    with worker.started("http_client", [], tmp_path / "log", os.environ) as http:
        setting = Setting(chat, tmp_path, http, Engine(), pooling=False)
        with llama_cpp.start("bf16", setting) as system:
            found = system.do(Job(prompts=prompts, max_tokens=1, answers=True))
            streamed = system.do(Job(prompts=prompts, max_tokens=5, connections=8, stream=True))
    assert found.answers == [tokenizer.decode(id_) for id_ in best]
    assert streamed.counts == (0, 80, 40)
