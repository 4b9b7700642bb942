"""vLLM's parallel settings, passed through `engine:`: the answers are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import helm_python
import pytest
import torch
import yaml

from tuneserve.benchmarks.serving.systems import free_port
from tuneserve.serving import launched
from tuneserve.v1 import generation_pb2
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

from .. import tiny
from ..helm.rendering import CHART, render, templates

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


def expected(model: Path) -> list[list[int]]:
    """What transformers adds to each prompt."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    answers = [
        reference.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)[0].tolist()
        for prompt in PROMPTS
    ]
    return [ids[len(prompt) :] for ids, prompt in zip(answers, PROMPTS, strict=True)]


def test_two_ranks_answer_as_one_process_does(model: Path) -> None:
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("parallel.py"), model, json.dumps({"tensor_parallel_size": 2})],
        input=json.dumps({"prompts": PROMPTS, "max_tokens": 12}),
        capture_output=True,
        text=True,
        timeout=1200,
        env=ENVIRONMENT,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    # The engine's own, and one a rank.
    assert json.loads(result.stdout.splitlines()[-1]) == {"token_ids": expected(model), "processes": 3}


def answers(address: str) -> list[list[int]]:
    """The tokens of each prompt's answer."""
    sampling = generation_pb2.SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    with grpc.insecure_channel(address) as channel:
        generate = GenerationServiceStub(channel).Generate
        calls = [
            generate.future(
                generation_pb2.GenerateRequest(model="chat", prompt={"token_ids": {"ids": ids}}, sampling=sampling),
                timeout=120,
            )
            for ids in PROMPTS
        ]
        return [list(call.result().completions[0].token_ids) for call in calls]


def test_two_machines_answer_as_one_process_does(model: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """By the chart's commands and settings. The machines are processes here, which know of each other by an address
    alone.
    """
    chat = {"path": "/models/chat", "dtype": "float32", "maxLength": 256, "kvCacheGib": 0.125}
    chat["engine"] = {"tensor_parallel_size": 2, "master_port": free_port()}
    with helm_python.Chart.load(CHART) as chart:
        manifests = render(chart, {"nodes": 2, "onEngineFailure": "exit", "models": {"chat": chat}})
    settings = yaml.safe_load(manifests["configmap"]["data"]["server.yaml"])
    settings["models"]["chat"]["path"] = str(model)
    settings["health_listen"] = "127.0.0.1:0"
    file, log = (tmp_path_factory.mktemp("pods") / name for name in ("server.yaml", "worker.log"))
    file.write_text(yaml.safe_dump(settings))
    # Linux answers at each 127.x.x.x: the server itself was told of no address.
    filled = {
        "/etc/tuneserve/server.yaml": str(file),
        "$(LWS_LEADER_ADDRESS)": "127.0.0.2",
        "$(LWS_WORKER_INDEX)": "1",
    }
    leader, follower = (
        [filled.get(word, word) for word in template["spec"]["containers"][0]["command"]]
        for template in templates(manifests["leaderworkerset"])
    )
    with log.open("w") as output:
        command = [sys.executable, "-P", "-m", "tuneserve.cli", *follower[1:]]
        worker = subprocess.Popen(command, stdout=output, stderr=output, env=ENVIRONMENT)
    try:
        assert leader[:2] == ["tuneserve", "serve"]
        with launched(*leader[2:], environment=ENVIRONMENT) as server:
            assert answers(server.addresses.grpc) == expected(model)
            assert worker.poll() is None, log.read_text()[-3000:]
            worker.terminate()
            assert worker.wait(60) == 0
            # All machines begin anew: the server, which notices with the next call, ends by itself.
            with pytest.raises(grpc.RpcError):
                answers(server.addresses.grpc)
            assert server.process.wait(60) == 1
    finally:
        worker.kill()
        worker.wait()
