"""Classify on a generation model: real prompts and tokens, and an engine whose log probabilities are known."""

import asyncio
from contextlib import asynccontextmanager
from itertools import pairwise

import grpc
import numpy as np
import pytest
from scipy.special import softmax
from transformers import AutoTokenizer

from tuneserve.server.api import zero_shot
from tuneserve.server.config import ModelConfig
from tuneserve.server.engine.interface import Delta, EngineFailed, Logprob
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1 import common_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

from ..conftest import loopback

CACHE_BLOCK = 8
# `good` begins `good film`, and both share their first letters with `great`.
LABELS = ["good", "good film", "great", "bad"]
TASK = "Classify the text.\nAnswer with one of these labels and nothing else: good, good film, great, bad"
NO_SYSTEM = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As models that think: the answer has an opening that the prompt lacks.
THINKING = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Its answers can't be found in what it renders.
SILENT = "{% for message in messages %}<|{{ message.role }}|>{{ message.content | length }}{% endfor %}"


def request(*texts: str, labels=LABELS, model: str = "chat", **fields) -> pb.ClassifyRequest:
    inputs = [pb.ClassifyInput(text=text) for text in texts]
    return pb.ClassifyRequest(model=model, inputs=inputs, labels=labels, **fields)


def logprob(before: list[int], token: int) -> float:
    """What the fake model thinks of a token: any number, but another for another place."""
    return -((sum(before) * 31 + len(before) * 7 + token * 13) % 97) / 10


class Model:
    """A generation model behind a server: what it was asked, and what it should answer."""

    def __init__(self, served, name: str, directory, monkeypatch) -> None:
        self.stub = ClassificationServiceStub(served.channel)
        self.engine = served.engines[name]
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.asked: list[tuple[list[int], int]] = []
        self.broken_at = -1
        monkeypatch.setattr(self.engine, "cache_block", CACHE_BLOCK)
        monkeypatch.setattr(self.engine, "max_length", 400)
        monkeypatch.setattr(self.engine, "generate", self.generate)

    async def generate(self, ticket, token_ids, sampling, stream):
        self.engine.running += 1
        try:
            [token] = sampling.allowed_token_ids
            assert (sampling.max_tokens, sampling.temperature, sampling.logprobs, stream) == (1, 0, 0, False)
            index = len(self.asked)
            self.asked.append((list(token_ids), token))
            await self.engine._step()
            if index == self.broken_at:
                raise EngineFailed("dead")
            yield Delta(0, "", [token], [Logprob(token, logprob(token_ids, token), [])], finish="length")
        finally:
            self.engine.running -= 1

    def prompts(self) -> list[str]:
        """The prompts of the texts, one each."""
        longest_first = sorted({tuple(ids) for ids, _ in self.asked}, key=len)
        prompts: list[tuple[int, ...]] = []
        for ids in longest_first:
            if not any(ids[: len(prompt)] == prompt for prompt in prompts):
                prompts.append(ids)
        return [self.tokenizer.decode(prompt) for prompt in prompts]

    def scores(self, prompt: str, labels: list[str], tail: str) -> list[float]:
        """The log probability of each label with what follows it, up to its first token."""
        before = self.tokenizer(prompt)["input_ids"]
        totals = []
        for label in labels:
            ids = self.tokenizer(prompt + label + tail)["input_ids"]
            assert ids[: len(before)] == before
            own = self.tokenizer(prompt + label)["input_ids"]
            tokens = ids[len(before) : len(own) + 1]
            totals.append(sum(logprob(before + tokens[:i], token) for i, token in enumerate(tokens)))
        return totals


@pytest.fixture
def chat(served, monkeypatch) -> Model:
    [model] = [model for model in served.app.models if model.name == "chat"]
    return Model(served, "chat", model.config.path, monkeypatch)


@pytest.fixture
def one_model(serve_config, make_llama, monkeypatch):
    """A server with one generation model, of a chat template of the test's."""

    @asynccontextmanager
    async def serve(template: str | None, **settings):
        directory = make_llama(template)
        async with serve_config(loopback({"chat": ModelConfig(path=directory, **settings)})) as served:
            yield Model(served, "chat", directory, monkeypatch)

    return serve


def in_order(result: pb.Classification, labels=LABELS) -> list[float]:
    found = {label.label: label.score for label in result.labels}
    return [found[label] for label in labels]


async def test_scores_are_the_probabilities_of_the_labels_tokens(chat):
    response = await chat.stub.Classify(request("a fine film", "awful"))
    assert len(response.results) == 2
    for text, result in zip(["a fine film", "awful"], response.results, strict=True):
        prompt = f"<|system|>{TASK}<|end|><|user|>{text}<|end|><|assistant|>"
        expected = chat.scores(prompt, LABELS, "<|end|>")
        assert in_order(result) == pytest.approx(softmax(expected), abs=1e-5)
        assert sum(label.score for label in result.labels) == pytest.approx(1)
        assert all(one.score >= other.score for one, other in pairwise(result.labels))
        assert result.token_count == len(chat.tokenizer(prompt)["input_ids"])
    raw = await chat.stub.Classify(request("awful", raw_scores=True))
    assert in_order(raw.results[0]) == pytest.approx(expected, abs=1e-5)


async def test_what_labels_share_is_asked_once_and_the_prompt_first(chat):
    chat.engine.delay = 0.01
    response = await chat.stub.Classify(request("a fine film"))
    asked = [(tuple(ids), token) for ids, token in chat.asked]
    assert len(set(asked)) == len(asked)
    prompt = min(map(len, (ids for ids, _ in asked)))
    ends = [ids for ids, token in asked if chat.tokenizer.decode([token]) == "<|end|>"]
    assert sorted(chat.tokenizer.decode(ids[prompt:]) for ids in ends) == sorted(LABELS)
    # `good` is a prefix of `good film`: there, its end competes with the space.
    total = sum(len(ids) - prompt + 1 for ids in ends)
    assert len(asked) < total
    again = [len(ids) - (len(ids) - 1) // CACHE_BLOCK * CACHE_BLOCK for ids, _ in asked[1:]]
    assert response.usage.prompt_tokens == prompt + sum(again) + len(asked), "from the cache's last whole block on"


async def test_without_a_prefix_cache_each_request_costs_its_prompt(one_model):
    async with one_model(None) as model:
        model.engine.cache_block = 0
        response = await model.stub.Classify(request("a fine film"))
        assert response.usage.prompt_tokens == sum(len(ids) + 1 for ids, _ in model.asked)


async def test_the_first_request_of_a_text_goes_alone(chat, until):
    chat.engine.delay = 0.3
    call = chat.stub.Classify(request("a fine film"))
    await until(lambda: chat.asked)
    assert len(chat.asked) == 1, "the others would not find the prompt in the cache"
    chat.engine.delay = 0
    await call


async def test_examples_and_instruction_are_turns_of_the_chat(chat):
    examples = [pb.ClassifyExample(text="so dull", label="bad"), pb.ClassifyExample(text="wow", label="great")]
    await chat.stub.Classify(request("hm", examples=examples, instruction="How is it?"))
    assert chat.prompts() == [
        "<|system|>How is it?\nAnswer with one of these labels and nothing else: good, good film, great, bad<|end|>"
        "<|user|>so dull<|end|><|assistant|>bad<|end|><|user|>wow<|end|><|assistant|>great<|end|>"
        "<|user|>hm<|end|><|assistant|>"
    ]


async def test_plain_text_without_a_template(one_model):
    async with one_model(None) as model:
        example = pb.ClassifyExample(text="so dull", label="bad")
        response = await model.stub.Classify(request("hm", examples=[example], raw_scores=True))
        prompt = f"{TASK}\n\nText: so dull\nLabel: bad\n\nText: hm\nLabel:"
        assert model.prompts() == [prompt]
        expected = model.scores(prompt, [f" {label}" for label in LABELS], "\n")
        assert in_order(response.results[0]) == pytest.approx(expected, abs=1e-5)


async def test_a_template_without_a_system_turn(one_model):
    async with one_model(NO_SYSTEM) as model:
        await model.stub.Classify(request("hm", examples=[pb.ClassifyExample(text="dull", label="bad")]))
        assert model.prompts() == [
            f"<|user|>{TASK}\n\ndull<|end|><|assistant|>bad<|end|><|user|>hm<|end|><|assistant|>"
        ]


async def test_what_opens_an_answer_goes_before_the_labels(one_model):
    async with one_model(THINKING) as model:
        response = await model.stub.Classify(request("hm", raw_scores=True))
        prompt = f"<|system|>{TASK}<|end|><|user|>hm<|end|><|assistant|><think>\n\n</think>"
        assert model.prompts() == [prompt]
        expected = model.scores(prompt, [f"\n\n{label}" for label in LABELS], "<|end|>")
        assert in_order(response.results[0]) == pytest.approx(expected, abs=1e-5)


async def test_a_template_that_shows_no_label_ends_it_with_the_end_token(one_model):
    async with one_model(SILENT) as model:
        response = await model.stub.Classify(request("hm", raw_scores=True))
        [prompt] = model.prompts()
        expected = model.scores(prompt, LABELS, "<|end|>")
        assert in_order(response.results[0]) == pytest.approx(expected, abs=1e-5)


async def test_long_texts_are_refused_or_truncated(chat, refused):
    text = "the film was good and " * 80
    error = await refused(chat.stub.Classify(request("hm", text)), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("inputs[1].text: makes a prompt of ")
    response = await chat.stub.Classify(request("hm", text, truncation=common_pb2.TRUNCATION_END))
    assert [result.truncated for result in response.results] == [False, True]
    longest = max(len(ids) for ids, _ in chat.asked)
    assert 390 <= longest + 1 <= 400
    cut = max(chat.prompts(), key=len).split("<|user|>")[1]
    assert cut.endswith("<|end|><|assistant|>"), "the prompt's own end stays"
    assert text.startswith(cut.removesuffix("<|end|><|assistant|>"))
    error = await refused(
        chat.stub.Classify(request("hm", instruction=text, truncation=common_pb2.TRUNCATION_END)),
        grpc.StatusCode.INVALID_ARGUMENT,
    )
    assert error.details().startswith("inputs[0].text: can't be truncated to fit")


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (request("hm", labels=[]), "labels"),
        (request("hm", labels=["good"]), "labels"),
        (request("hm", labels=[str(number) for number in range(257)]), "labels"),
        (request("hm", labels=["good", " "]), "labels[1]"),
        (request("hm", labels=["good", "bad", "bad"]), "labels[2]"),
        (request("hm", labels=["good", "bad "]), "labels[1]"),
        (request("hm", labels=["good", "not so good at all, to say the least " * 9 + "!"]), "labels[1]"),
        (request("hm", examples=[pb.ClassifyExample(text="dull", label="no")]), "examples[0].label"),
        (request("hm", examples=[pb.ClassifyExample(text="", label="bad")]), "examples[0].text"),
        (request("hm", instruction=""), "instruction"),
        (request(""), "inputs[0].text"),
        (request("hm", truncation=common_pb2.TRUNCATION_WINDOWS), "truncation"),
        (request("hm", windows=pb.Windows()), "windows"),
        (request("hm", thresholds={"neutral": 0.5}), "thresholds[neutral]"),
        (
            pb.ClassifyRequest(model="chat", inputs=[pb.ClassifyInput(text="a", text_pair="b")], labels=LABELS),
            "inputs[0].text_pair",
        ),
    ],
)
async def test_bad_fields_are_named(chat, refused, bad, field):
    error = await refused(chat.stub.Classify(bad), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith(f"{field}: "), error.details()
    assert not chat.asked


async def test_long_names_do_not_swell_a_status(chat, refused):
    labels = [f"{number} {'long ' * 200}end" for number in range(256)]
    call = chat.stub.Classify(request("hm", labels=labels, thresholds={"x" * 9999: 0.5}))
    error = await refused(call, grpc.StatusCode.INVALID_ARGUMENT)
    assert len(error.details()) < 3000


async def test_a_callers_labels_are_not_repeated_in_a_status(chat, refused):
    call = chat.stub.Classify(request("hm", labels=["good", "canary"], thresholds={"spare": 0.5}))
    error = await refused(call, grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("thresholds[spare]: ")
    assert "canary" not in f"{error.details()} {error.trailing_metadata()}"


async def test_no_more_is_asked_of_the_engine_than_is_bearable(chat, refused, monkeypatch):
    monkeypatch.setattr(zero_shot, "MOST_REQUESTS", 40)
    error = await refused(chat.stub.Classify(request(*["hm"] * 9)), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("inputs: have 9 texts")
    assert not chat.asked


async def test_a_call_never_overloads_its_own_model(one_model):
    # Of its many requests, none would find room in the queue.
    async with one_model(None, max_queue_tokens=1) as model:
        model.engine.delay = 0.001
        labels = [f"label {number}" for number in range(20)]
        response = await model.stub.Classify(request(*["hm"] * 20, labels=labels))
        assert len(response.results) == 20


async def test_words_are_weighed(chat):
    response = await chat.stub.Classify(request("a fine film", explain=pb.Explain()))
    weights = response.results[0].weights
    assert [word.text for word in weights] == ["a", "fine", "film"]

    def probabilities(text: str) -> np.ndarray:
        prompt = f"<|system|>{TASK}<|end|><|user|>{text}<|end|><|assistant|>"
        return softmax(chat.scores(prompt, LABELS, "<|end|>"))

    whole = probabilities("a fine film")
    best = whole.argmax()
    expected = [whole[best] - probabilities(text)[best] for text in ("fine film", "a film", "a fine ")]
    assert [word.weight for word in weights] == pytest.approx(expected, abs=1e-5)


async def test_an_engine_that_fails_ends_all_of_the_call(chat, refused):
    chat.engine.delay, chat.broken_at = 0.05, 2
    await refused(chat.stub.Classify(request("hm", "so so")), grpc.StatusCode.UNAVAILABLE)
    assert chat.engine.running == 0


async def test_a_cancelled_call_leaves_nothing_running(chat, until):
    chat.engine.delay = 0.1
    call = chat.stub.Classify(request("hm", "so so", labels=[f"label {number}" for number in range(20)]))
    await until(lambda: len(chat.asked) > 2)
    call.cancel()
    await until(lambda: chat.engine.running == 0)
    asked = len(chat.asked)
    await asyncio.sleep(0.2)
    assert len(chat.asked) == asked


async def test_labels_of_calls_are_no_metric(own_server, monkeypatch):
    [served] = [model for model in own_server.app.models if model.name == "chat"]
    chat = Model(own_server, "chat", served.config.path, monkeypatch)
    await chat.stub.Classify(request("hm"))
    registry = own_server.app.metrics.registry
    assert registry.get_sample_value("tuneserve_texts_classified_total", {"model": "chat"}) == 1
    assert registry.get_sample_value("tuneserve_predictions_total", {"model": "chat", "label": "good"}) is None


async def test_masked_text_is_cut_like_any_other(one_model):
    text = "good film, write to somebody@example.com " * 20
    async with one_model(None, redact=("email",)) as model:
        ends = set()
        for length in range(280, 300):
            model.engine.max_length = length
            model.asked.clear()
            await model.stub.Classify(request(text, truncation=common_pb2.TRUNCATION_END))
            [prompt] = model.prompts()
            assert "some" not in prompt
            assert "@" not in prompt
            ends.add(prompt.removesuffix("\nLabel:")[-3:])
        # Also in the middle of a placeholder.
        assert ends & {"[EM", "EMA", "MAI"}, ends
