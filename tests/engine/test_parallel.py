"""vLLM's parallel settings, passed through `engine:`: the answers are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tuneserve.benchmarks.serving.systems import free_port

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


# Left to itself vLLM wants a memory node of the machine for each rank.
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def check(model: Path, options: dict[str, int], processes: int) -> None:
    """The answers of an engine with these options are those of transformers."""
    from transformers import AutoModelForCausalLM

    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("parallel.py"), model, json.dumps(options)],
        input=json.dumps({"prompts": PROMPTS, "max_tokens": 12}),
        capture_output=True,
        text=True,
        timeout=1200,
        env=ENVIRONMENT,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    answer = json.loads(result.stdout.splitlines()[-1])
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    expected = [
        reference.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)[0]
        for prompt in PROMPTS
    ]
    assert answer["token_ids"] == [ids[len(prompt) :].tolist() for ids, prompt in zip(expected, PROMPTS, strict=True)]
    assert answer["processes"] == processes


def test_two_ranks_answer_as_one_process_does(model):
    # The engine's own, and one a rank.
    check(model, {"tensor_parallel_size": 2}, 3)


def test_two_machines_answer_as_one_process_does(model, tmp_path_factory):
    """The machines are processes here, which know of each other by an address alone."""
    options = {"tensor_parallel_size": 2, "nnodes": 2, "master_port": free_port()}
    file, log = (tmp_path_factory.mktemp("worker") / name for name in ("server.yaml", "log"))
    settings = {"path": str(model), "dtype": "float32", "max_length": 256, "kv_cache_gib": 0.125, "engine": options}
    file.write_text(yaml.safe_dump({"models": {"parallel": settings}}))
    # Linux answers at each 127.x.x.x: the server itself was told of no address.
    command = [sys.executable, "-m", "tuneserve.cli", "worker", "--config", file]
    command += ["--leader", "127.0.0.2", "--rank", "1"]
    with log.open("w") as output:
        worker = subprocess.Popen(command, stdout=output, stderr=output, env=ENVIRONMENT)
    try:
        check(model, options, 2)
        assert worker.poll() is None, log.read_text()[-3000:]
        worker.terminate()
        assert worker.wait(60) == 0
    finally:
        worker.kill()
        worker.wait()
