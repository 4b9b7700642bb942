"""vLLM's parallel settings, passed through `engine:`: the answers are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .. import tiny

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

PROMPTS = [[5, 17, 300, 41], list(range(100, 170)), [9] * 33]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small Llama with heads that two ranks can share, and weights that leave no doubt about the next token."""
    from transformers import AutoTokenizer

    from tuneserve import samples

    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 49152, "max_position_embeddings": 256}
    tiny.model("AutoModelForCausalLM", "llama", initializer_range=0.3, **sizes).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(samples.chat_model()).save_pretrained(tmp_path)
    return tmp_path


def test_two_ranks_answer_as_one_process_does(model):
    from transformers import AutoModelForCausalLM

    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("parallel.py"), model, json.dumps({"tensor_parallel_size": 2})],
        input=json.dumps({"prompts": PROMPTS, "max_tokens": 12}),
        capture_output=True,
        text=True,
        timeout=1200,
        # Left to itself vLLM wants a memory node of the machine for each rank.
        env=os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    answer = json.loads(result.stdout.splitlines()[-1])
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    expected = [
        reference.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)[0]
        for prompt in PROMPTS
    ]
    assert answer["token_ids"] == [ids[len(prompt) :].tolist() for ids, prompt in zip(expected, PROMPTS, strict=True)]
    # The engine's own, and one a rank.
    assert answer["processes"] == 3
