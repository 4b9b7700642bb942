"""Classification by the chat model: its scores equal plain transformers', and its neighbours' answers stay theirs."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1 import generation_pb2

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

# Two of them begin alike, and one is the other's beginning.
LABELS = ["sport", "sports news", "politics", "the weather forecast"]
TEXTS = [
    "The match ended in a draw after extra time.",
    "Parliament voted on the new budget.",
    "Rain and strong winds are expected tomorrow. 🌧",
]
TASK = "Classify the text.\nAnswer with one of these labels and nothing else: " + ", ".join(LABELS)


@cache
def plain(directory: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(directory)


def logprobs(directory: Path, messages: list[dict[str, str]]) -> list[float]:
    """The log probability of each label and of the end of the turn, in plain transformers."""
    model, tokenizer = plain(directory)
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    start = len(tokenizer(prompt)["input_ids"])
    totals = []
    for label in LABELS:
        ids = tokenizer(prompt + label + "<|im_end|>", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            scores = model(ids).logits.float().log_softmax(-1)
        totals.append(sum(float(scores[0, at - 1, ids[0, at]]) for at in range(start, ids.shape[1])))
    return totals


def request(*texts: str, **fields: Any) -> pb.ClassifyRequest:
    inputs = [pb.ClassifyInput(text=text) for text in texts]
    return pb.ClassifyRequest(model="chat", inputs=inputs, labels=LABELS, **fields)


def in_order(result: pb.Classification) -> torch.Tensor:
    found = {label.label: label.score for label in result.labels}
    return torch.tensor([found[label] for label in LABELS])


@pytest.mark.parametrize("shots", [0, 2])
def test_scores_equal_transformers(real, shots):
    examples = [("He scored twice.", "sport"), ("Sunny with some clouds.", "the weather forecast")][:shots]
    response = real.classification.Classify(
        request(*TEXTS, raw_scores=True, examples=[pb.ClassifyExample(text=text, label=one) for text, one in examples])
    )
    turns = [{"role": "system", "content": TASK}]
    for text, label in examples:
        turns += [{"role": "user", "content": text}, {"role": "assistant", "content": label}]
    for text, result in zip(TEXTS, response.results, strict=True):
        expected = torch.tensor(logprobs(real.directories["chat"], [*turns, {"role": "user", "content": text}]))
        found = in_order(result)
        # The server's is in bfloat16, where a logit of 20 is known to a sixteenth, and a label is up to four tokens.
        assert torch.allclose(found, expected, atol=0.5), (found, expected)
        assert (expected.max() - expected.min()) > 2, "labels that all are as likely prove nothing"
    probabilities = real.classification.Classify(request(TEXTS[0])).results[0]
    assert sum(label.score for label in probabilities.labels) == pytest.approx(1)


def test_a_call_is_charged_what_the_engine_reads_and_writes(real):
    """More than the prompt: each label's tokens are asked for after the last whole block of the cache."""
    names = [f"vllm:{name}_total" for name in ("prefix_cache_queries", "prefix_cache_hits", "generation_tokens")]
    before = [real.total(name) for name in names]
    labels = [f"the topic number {number}" for number in range(20)]
    text = "A film about a ship that sank, and what the sea kept of it. " * 8
    asked = pb.ClassifyRequest(model="chat", inputs=[pb.ClassifyInput(text=text)], labels=labels)
    charged = real.classification.Classify(asked).usage.prompt_tokens
    looked_up, found, written = (real.total(name) - one for name, one in zip(names, before, strict=True))
    assert charged == looked_up - found + written
    assert charged > 1.5 * (200 + 20), "not one token a label"


def test_alone_or_among_others_the_best_label_is_the_same(real):
    texts = [f"{text} {number}" for number in range(10) for text in TEXTS]
    together = real.classification.Classify(request(*texts, raw_scores=True))
    for text, result in zip(texts[:6], together.results[:6], strict=True):
        alone = real.classification.Classify(request(text, raw_scores=True)).results[0]
        assert torch.allclose(in_order(alone), in_order(result), atol=0.5)


def test_the_logprobs_of_others_stay_theirs(real):
    # vLLM gives what one request asks for to all requests of a step when it is asked for tokens of its choice.
    sampling = generation_pb2.SamplingParams(max_tokens=48, temperature=0, logprobs=4, ignore_eos=True)
    prompt = generation_pb2.Prompt(text="The weather in spring is")
    call = generation_pb2.GenerateRequest(model="chat", prompt=prompt, sampling=sampling)
    with ThreadPoolExecutor(4) as pool:
        generated = [pool.submit(real.generation.Generate, call) for _ in range(2)]
        classified = [pool.submit(real.classification.Classify, request(*TEXTS)) for _ in range(8)]
        answers = [one.result().completions[0] for one in generated]
        assert all(len(one.result().results) == 3 for one in classified)
    for answer in answers:
        assert len(answer.logprobs) == 48
        for entry in answer.logprobs:
            assert entry.alternatives[0].token_id == entry.token_id
            values = [alternative.logprob for alternative in entry.alternatives]
            assert len(values) == 4
            assert values == sorted(values, reverse=True)
            assert min(values) > -50
