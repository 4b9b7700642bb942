"""LoRA adapters loaded into a running server: their answers are PEFT's, and never mixed up with others'."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneserve.v1 import generation_pb2, model_admin_pb2, model_pb2

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

# Long enough to leave whole blocks in the prefix cache.
PROMPT = "Once upon a time there was a small town by the sea, and in it lived an old man who had a dog. " * 4
# The engine computes in bfloat16; the adapters move the log probabilities by whole units.
CLOSE = 0.3
APART = 1.0
# Who asks in one batch, by the callers' name of the adapter and its directory.
ASKED = [("style", "adapter"), ("", ""), ("tone", "other"), ("", "")] * 2


@pytest.fixture(scope="module")
def ids(real) -> list[int]:
    request = generation_pb2.TokenizeRequest(model="chat", prompt=generation_pb2.Prompt(text=PROMPT))
    return [token.id for token in real.generation.Tokenize(request).tokens]


@pytest.fixture(scope="module")
def variants(ids) -> list[list[int]]:
    """The prompt with another token in front, twice for each that asks in one batch: nothing of them is cached."""
    return [[1000 + index, *ids] for index in range(2 * len(ASKED))]


@pytest.fixture(scope="module")
def exact(real, ids, variants) -> dict[str, list[torch.Tensor]]:
    """Log probabilities of the token after the prompt and after each variant, by the directory of the adapter; "" for
    the model itself.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found = {}
    for name in ("", "adapter", "other"):
        model = AutoModelForCausalLM.from_pretrained(real.directories["chat"], dtype=torch.float32)
        if name:
            model = PeftModel.from_pretrained(model, real.root / name)
        with torch.no_grad():
            model.eval()
            logits = [model(torch.tensor([prompt])).logits[0, -1] for prompt in (ids, *variants)]
        found[name] = [one.log_softmax(-1) for one in logits]
    return found


@pytest.fixture(scope="module")
def expected(exact) -> dict[str, torch.Tensor]:
    """The same after the prompt alone."""
    return {name: first for name, (first, *_) in exact.items()}


@pytest.fixture
def load(real) -> Iterator:
    """Loads an adapter of `models_root` for the length of a test: load("style", "adapter")."""
    loaded: set[str] = set()

    def make(name: str, path: str) -> model_pb2.Adapter:
        request = model_admin_pb2.LoadAdapterRequest(model="chat", adapter=name, path=path)
        adapter = real.models.LoadAdapter(request).adapter
        loaded.add(name)
        return adapter

    yield make
    for name in loaded:
        real.models.UnloadAdapter(model_admin_pb2.UnloadAdapterRequest(model="chat", adapter=name))


def next_token(real, ids: list[int], adapter: str) -> dict[int, float]:
    """The likeliest tokens after the prompt, with their log probabilities."""
    request = generation_pb2.GenerateRequest(
        model="chat",
        prompt=generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=ids)),
        sampling=generation_pb2.SamplingParams(max_tokens=1, temperature=0, logprobs=8),
        adapter=adapter,
    )
    [entry] = real.generation.Generate(request).completions[0].logprobs
    return {alternative.token_id: alternative.logprob for alternative in entry.alternatives}


def distance(found: dict[int, float], expected: torch.Tensor) -> float:
    return max(abs(logprob - float(expected[id_])) for id_, logprob in found.items())


def test_answers_are_those_of_peft(real, ids, expected, load):
    before = next_token(real, ids, "")
    load("style", "adapter")
    load("tone", "other")
    # The same prompt for all, and again for each: what the cache holds of one must not serve another.
    for adapter, name in [("style", "adapter"), ("tone", "other"), ("", ""), ("style", "adapter"), ("", "")]:
        found = next_token(real, ids, adapter)
        assert distance(found, expected[name]) < CLOSE, adapter
        for another in expected.keys() - {name}:
            assert distance(found, expected[another]) > APART, (adapter, another)
    assert distance(before, expected[""]) < CLOSE


def test_one_batch_holds_them_all(real, exact, variants, load):
    load("style", "adapter")
    load("tone", "other")
    jobs = list(zip(variants, [adapter for adapter, _ in ASKED] * 2, strict=True))
    alone = [next_token(real, *job) for job in jobs[: len(ASKED)]]
    with ThreadPoolExecutor(len(ASKED)) as pool:
        together = list(pool.map(lambda job: next_token(real, *job), jobs[len(ASKED) :]))
    for index, (found, (adapter, name)) in enumerate(zip(alone + together, ASKED * 2, strict=True)):
        assert distance(found, exact[name][1 + index]) < CLOSE, adapter


def test_other_content_under_a_name_replaces_it(real, ids, expected, load):
    first = load("style", "adapter")
    assert distance(next_token(real, ids, "style"), expected["adapter"]) < CLOSE
    second = load("style", "other")
    assert second.version != first.version
    assert distance(next_token(real, ids, "style"), expected["other"]) < CLOSE
    [model] = [one for one in real.models.ListModels(model_pb2.ListModelsRequest()).models if one.name == "chat"]
    assert [(one.name, one.version) for one in model.adapters] == [("style", second.version)]


def test_an_unloaded_adapter_is_not_found(real, ids, expected):
    real.models.LoadAdapter(model_admin_pb2.LoadAdapterRequest(model="chat", adapter="brief", path="adapter"))
    real.models.UnloadAdapter(model_admin_pb2.UnloadAdapterRequest(model="chat", adapter="brief"))
    with pytest.raises(grpc.RpcError) as caught:
        next_token(real, ids, "brief")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert distance(next_token(real, ids, ""), expected[""]) < CLOSE


def test_an_adapter_of_another_model_is_refused(real, ids, expected):
    """Its tensors are too wide for this one. The engine finds out, says so, and goes on."""
    wrong = real.root / "wrong"
    shutil.copytree(real.root / "adapter", wrong, dirs_exist_ok=True)
    tensors = load_file(wrong / "adapter_model.safetensors")
    wider = {name: torch.cat([one, one], -1) if "lora_A" in name else one for name, one in tensors.items()}
    save_file(wider, wrong / "adapter_model.safetensors")
    with pytest.raises(grpc.RpcError) as caught:
        real.models.LoadAdapter(model_admin_pb2.LoadAdapterRequest(model="chat", adapter="wrong", path="wrong"))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert distance(next_token(real, ids, ""), expected[""]) < CLOSE
