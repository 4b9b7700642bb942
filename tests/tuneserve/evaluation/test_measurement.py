"""Measuring, against a small fake of our server over a real wire: the answers are known, so the metrics are too."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tuneserve.checkpoint import rows, step
from tuneserve.errors import StepFailed
from tuneserve.evaluation import measurement
from tuneserve.v1 import checkpoint_pb2 as pb
from tuneserve.v1 import classification_pb2 as cls
from tuneserve.v1 import classification_pb2_grpc, embedding_pb2_grpc, generation_pb2_grpc, model_pb2, model_pb2_grpc
from tuneserve.v1 import embedding_pb2 as emb
from tuneserve.v1 import generation_pb2 as gen

Measured = Callable[..., Awaitable[measurement.Measurement]]
LABELS = ["bad", "good"]
CLASSIFIER = pb.Checkpoint(
    task=pb.TASK_SEQUENCE_CLASSIFICATION, labels=LABELS, problem_type=pb.PROBLEM_TYPE_SINGLE_LABEL
)
TOPICS = pb.Checkpoint(
    task=pb.TASK_SEQUENCE_CLASSIFICATION, labels=["art", "law"], problem_type=pb.PROBLEM_TYPE_MULTI_LABEL
)
TAGGER = pb.Checkpoint(task=pb.TASK_TOKEN_CLASSIFICATION, labels=["O", "B-PER", "I-PER"])
GENERATOR = pb.Checkpoint(task=pb.TASK_GENERATION, max_length=64)


class Fake(
    classification_pb2_grpc.ClassificationServiceServicer,
    embedding_pb2_grpc.EmbeddingServiceServicer,
    generation_pb2_grpc.GenerationServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
):
    """Labels a text by the words in it, tags capitalized words, and gives the token of id n the logprob -n / 100."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.texts: list[str] = []
        self.generated: list[gen.GenerateRequest] = []
        self.limits = model_pb2.Limits(max_length=64, max_inputs=1024)

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.GetModelResponse:
        return model_pb2.GetModelResponse(model=model_pb2.Model(name=request.model, limits=self.limits))

    async def Classify(self, request: cls.ClassifyRequest, context: Any) -> cls.ClassifyResponse:
        self.batches.append(len(request.inputs))
        self.texts += [item.text for item in request.inputs]
        if any("boom" in item.text for item in request.inputs):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "engine is dead")
        return cls.ClassifyResponse(results=[cls.Classification(labels=self._scores(item)) for item in request.inputs])

    def _scores(self, item: cls.ClassifyInput) -> list[cls.LabelScore]:
        words = f"{item.text} {item.text_pair}".split()
        if item.text.startswith("?"):
            return [cls.LabelScore(label="score", score=sum(word in item.text for word in item.text_pair.split()))]
        if set(words) & {"art", "law"}:
            return [cls.LabelScore(label=name, score=0.9 if name in words else 0.1) for name in ("art", "law")]
        best = "good" if "fine" in words else "bad"
        return [cls.LabelScore(label=name, score=float(name == best)) for name in sorted(LABELS, key=best.__ne__)]

    async def ClassifyTokens(self, request: cls.ClassifyTokensRequest, context: Any) -> cls.ClassifyTokensResponse:
        assert request.aggregation == cls.AGGREGATION_FIRST
        results = []
        for text in request.texts:
            spans, start = [], 0
            for word in text.split(" "):
                if word[:1].isupper():
                    name = word.rstrip(",")
                    spans.append(cls.Span(label="PER", start=start, end=start + len(name), text=name))
                start += len(word) + 1
            results.append(cls.TokenClassification(spans=spans))
        return cls.ClassifyTokensResponse(results=results)

    async def Embed(self, request: emb.EmbedRequest, context: Any) -> emb.EmbedResponse:
        self.batches.append(len(request.texts))
        self.texts += request.texts
        # One number for each letter: a text is near to those of the same letters.
        counts = ([text.count(chr(code)) for code in range(ord("a"), ord("z") + 1)] for text in request.texts)
        return emb.EmbedResponse(results=[emb.Embedding(values=values) for values in counts])

    async def Generate(self, request: gen.GenerateRequest, context: Any) -> gen.GenerateResponse:
        self.generated.append(request)
        ids, sampling = request.prompt.token_ids.ids, request.sampling
        if len(ids) + sampling.max_tokens > self.limits.max_length:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "prompt is too long")
        response = gen.GenerateResponse()
        response.usage.completion_tokens = sampling.max_tokens
        if not sampling.ignore_eos:
            response.completions.add(text="The sky, is BLUE!")
        if sampling.HasField("prompt_logprobs"):
            response.prompt_logprobs.extend(gen.TokenLogprob(token_id=i, logprob=-i / 100) for i in ids[1:])
        return response


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
async def address(fake: Fake) -> AsyncIterator[str]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    classification_pb2_grpc.add_ClassificationServiceServicer_to_server(fake, server)
    embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(fake, server)
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(fake, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture(scope="session")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer whose ids are the characters' own, of which 0 ends an answer."""
    inner = Tokenizer(models.WordLevel({"<end>": 0, **{chr(code): code for code in (10, *range(32, 127))}}))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    template = (
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}<end>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", chat_template=template)
    directory = tmp_path_factory.mktemp("letters")
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def measured(letters: Path) -> Callable[..., Awaitable[measurement.Measurement]]:
    """Measures in a thread of its own, as the server runs in this one."""

    async def run(address: str, manifest: pb.Checkpoint, test_rows: list[rows.Row]) -> measurement.Measurement:
        with ThreadPoolExecutor(1) as pool:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(pool, measurement.measure_at, address, manifest, test_rows, letters)

    return run


async def test_classification(fake: Fake, address: str, measured: Measured) -> None:
    test_rows = [{"text": f"a fine day {i}", "label": "good"} for i in range(150)]
    test_rows += [{"text": f"rain {i}", "label": "bad" if i else "good"} for i in range(50)]
    result = await measured(address, CLASSIFIER, test_rows)
    assert result.metrics["accuracy"] == 199 / 200
    assert result.metrics["good/recall"] == 150 / 151
    assert result.predictions == ["good"] * 150 + ["bad"] * 50
    assert result.unit == "texts/s"
    assert result.throughput == pytest.approx(200 / result.seconds)
    # One batch to warm up, then all of them; and one text at a time, the first of them twice.
    assert sorted(fake.batches) == [1] * 51 + [8, 64, 64, 64, 64]
    assert result.latency
    assert 0 < result.latency.p50_ms <= result.latency.p95_ms


async def test_search(fake: Fake, address: str, measured: Measured) -> None:
    encoder = pb.Checkpoint(task=pb.TASK_EMBEDDING, prompts={"query": "0 ", "document": "1 "})
    words = ["film", "sky", "law", "rain"]
    test_rows: list[rows.Row] = [{"query": word, "positive": f"{word} {word}"} for word in words]
    # The last one is nearer to another passage than to its own.
    test_rows += [{"query": "art", "positive": "a bb", "negatives": ["rat"]}]
    result = await measured(address, encoder, test_rows)
    assert result.metrics["recall@1"] == 4 / 5
    assert result.metrics["recall@10"] == 1
    assert 0.8 < result.metrics["ndcg@10"] < 1
    assert result.predictions == ["film film", "sky sky", "law law", "rain rain", "rat"]
    assert [value for value, _ in result.row_sums[:4]] == [1, 1, 1, 1]
    assert {"0 film", "1 film film", "1 rat"} <= set(fake.texts)
    assert result.throughput == pytest.approx(11 / result.seconds)


async def test_ranking(fake: Fake, address: str, measured: Measured) -> None:
    """The fake's score is the number of words that query and passage share."""
    ranker = pb.Checkpoint(task=pb.TASK_RANKING, problem_type=pb.PROBLEM_TYPE_MULTI_LABEL, labels=["score"])
    test_rows: list[rows.Row] = [{"query": f"? {word} x", "positive": f"{word} x"} for word in ("sky", "sea", "sun")]
    test_rows += [{"query": "? red blue", "positive": "red", "negatives": ["red blue"]}]
    result = await measured(address, ranker, test_rows)
    assert result.metrics["mrr@10"] == (3 + 1 / 2) / 4
    assert result.predictions == ["sky x", "sea x", "sun x", "red blue"]
    assert result.throughput == pytest.approx(20 / result.seconds)


async def test_batches_fit_the_server(fake: Fake, address: str, measured: Measured) -> None:
    fake.limits.max_inputs = 3
    await measured(address, CLASSIFIER, [{"text": f"rain {i}", "label": "bad"} for i in range(7)])
    assert sorted(fake.batches) == [1] * 9 + [3, 3, 3]


async def test_text_pairs(address: str, measured: Measured) -> None:
    result = await measured(address, CLASSIFIER, [{"text": "rain", "text_pair": "is fine", "label": "good"}])
    assert result.metrics["accuracy"] == 1


async def test_multi_label(address: str, measured: Measured) -> None:
    test_rows = [
        {"text": "art law", "labels": ["law", "art"]},
        {"text": "law", "labels": ["law"]},
        {"text": "art", "labels": []},
    ]
    result = await measured(address, TOPICS, test_rows)
    assert result.predictions == [["art", "law"], ["law"], ["art"]]
    assert result.metrics["accuracy"] == pytest.approx(2 / 3)


async def test_tagging(address: str, measured: Measured) -> None:
    test_rows = [
        {"text": "🙂 hello Anna, and Bob", "entities": [{"start": 8, "end": 12, "label": "PER"}]},
        {"text": "Eve left", "entities": []},
    ]
    result = await measured(address, TAGGER, test_rows)
    # The comma is no part of the name.
    assert result.predictions == [[("PER", 8, 12), ("PER", 18, 21)], [("PER", 0, 3)]]
    assert result.metrics["entity_recall"] == 1
    assert result.metrics["entity_precision"] == pytest.approx(1 / 3)
    assert result.row_sums == [[1, 2, 1], [0, 1, 0]]


async def test_generation_scores_the_answer_only(fake: Fake, address: str, measured: Measured) -> None:
    result = await measured(address, GENERATOR, [{"prompt": "ab", "completion": "cd"}])
    # And what ends it, of id 0.
    loss = (ord("c") + ord("d") + 0) / 3 / 100
    assert result.row_sums == [[pytest.approx(-3 * loss), 3]]
    assert result.metrics["loss"] == pytest.approx(loss)
    assert result.metrics["perplexity"] == pytest.approx(math.exp(loss))
    assert result.unit == "tokens/s"
    assert result.predictions == []


async def test_answers_that_people_preferred(address: str, measured: Measured) -> None:
    """Compared by the mean of their tokens: in sum, the first good answer is the less likely one."""
    pairs = [("!!!", "Z"), ("y", "c")]
    given = [{"prompt": "ab", "completion": good, "rejected": bad} for good, bad in pairs]
    found = await measured(address, GENERATOR, given)
    assert found.metrics.pop("win_rate") == 0.5
    # All else is measured on the good answers alone.
    good = await measured(address, GENERATOR, [{"prompt": "ab", "completion": text} for text, _ in pairs])
    assert found.metrics == good.metrics
    single = [{"prompt": "ab", "completion": text, "label": text == "c"} for text in ("a", "c", "y")]
    found = await measured(address, GENERATOR, single)
    assert (found.metrics["win_rate"], found.rows, len(found.row_sums)) == (0.5, 1, 1)


async def test_generation_of_chats(address: str, measured: Measured) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "d"}]
    result = await measured(address, GENERATOR, [{"messages": messages}])
    # ord("d") is 100, and 0 ends it; the template's line break after the answer does not count.
    assert result.metrics["loss"] == pytest.approx(0.5)


async def test_generation_speed_is_its_own_measurement(fake: Fake, address: str, measured: Measured) -> None:
    await measured(address, GENERATOR, [{"prompt": "ab", "completion": "cd"}, {"prompt": "x", "completion": "y"}])
    fixed = [request for request in fake.generated if request.sampling.ignore_eos]
    speed = [request for request in fixed if request.sampling.max_tokens == 32]  # half of the model's 64
    assert len(speed) == 32
    # One at a time: of the two prompts in turn, and the first once more.
    assert [request.sampling.max_tokens for request in fixed[32:]] == [16] * 21
    assert all(request.sampling.HasField("temperature") and request.sampling.temperature == 0 for request in speed)


async def test_no_prompt_is_timed_that_the_server_has_seen(fake: Fake, address: str, measured: Measured) -> None:
    """A prefix cache compares whole prompts from their first token on, and would answer for the model."""
    test_rows = [{"prompt": f"{word} abcdefghijklmnopqrst", "completion": "cd"} for word in ("ab", "xy", "zq")]
    await measured(address, GENERATOR, test_rows)
    asked = [tuple(request.prompt.token_ids.ids) for request in fake.generated]
    timed = [tuple(one.prompt.token_ids.ids) for one in fake.generated if one.sampling.ignore_eos]
    assert len(timed) == 32 + 21
    # As long as the rows' own, and each of them sent once.
    assert {len(ids) for ids in timed} <= {len(ids) for ids in asked if ids not in timed}
    assert len({ids[:12] for ids in timed}) == len(timed)
    assert all(asked.count(ids) == 1 for ids in timed)


async def test_no_text_is_timed_that_the_server_has_seen(fake: Fake, address: str, measured: Measured) -> None:
    await measured(address, CLASSIFIER, [{"text": f"rain {i}", "label": "bad"} for i in range(70)])
    assert len(set(fake.texts)) == len(fake.texts) == 64 + 70 + 51


async def test_answers_are_compared_with_those_expected(address: str, measured: Measured) -> None:
    test_rows = [{"prompt": "a", "completion": "a sky is blue"}, {"prompt": "b", "completion": "it is grey"}]
    result = await measured(address, GENERATOR, test_rows)
    assert result.metrics["exact_match"] == 0.5
    assert result.metrics["token_f1"] == pytest.approx((1 + 1 / 3) / 2)


async def test_metrics_that_training_was_set_to_measure(fake: Fake, address: str, measured: Measured) -> None:
    translator = pb.Checkpoint(task=pb.TASK_GENERATION, max_length=64)
    translator.lineage.append(step("finetune", "base", {"answer_metrics": ["chrf", "rouge"], "max_length": 64}, ()))
    result = await measured(address, translator, [{"prompt": "a", "completion": "the sky is grey"}])
    assert result.metrics["rouge1"] == pytest.approx(3 / 4)
    # It tells capitals apart.
    assert 20 < result.metrics["chrf"] < 40
    assert "bleu" not in result.metrics
    # As long as it is allowed to be: half of the model's 64 tokens.
    asked = [one.sampling.max_tokens for one in fake.generated if not one.sampling.HasField("prompt_logprobs")]
    assert asked[0] == 32


async def test_long_rows_are_cut_to_the_model(fake: Fake, address: str, measured: Measured) -> None:
    test_rows = [{"prompt": "p" * 40, "completion": "d" * 40}, {"prompt": "o" + "p" * 90, "completion": "d"}]
    result = await measured(address, GENERATOR, test_rows)
    # Half is left to an answer; a prompt loses its beginning.
    asked = [request.prompt.token_ids.ids for request in fake.generated if request.sampling.HasField("prompt_logprobs")]
    assert sorted(map(bytes, asked)) == [b"p" * 31 + b"d" * 32, b"p" * 61 + b"d\0"]
    assert [count for _, count in result.row_sums] == [32, 2]


async def test_rows_are_cut_to_what_was_trained(fake: Fake, address: str, measured: Measured) -> None:
    trained = pb.Checkpoint(task=pb.TASK_GENERATION, max_length=16)
    await measured(address, trained, [{"prompt": "p" * 40, "completion": "d" * 3}])
    [asked] = [request for request in fake.generated if request.sampling.HasField("prompt_logprobs")]
    assert bytes(asked.prompt.token_ids.ids) == b"p" * 12 + b"ddd\0"


async def test_a_failing_server_fails_the_measurement(address: str, measured: Measured) -> None:
    with pytest.raises(StepFailed, match="UNAVAILABLE: engine is dead") as caught:
        await measured(address, CLASSIFIER, [{"text": "boom", "label": "bad"}])
    assert "memory" in caught.value.hint


def test_answer_log_likelihood() -> None:
    logprobs = [gen.TokenLogprob(token_id=i, logprob=-float(i)) for i in (2, 3, 4, 5)]
    assert measurement.answer_log_likelihood([False, False, True, False, True], logprobs) == (-8.0, 2)


def test_batches() -> None:
    assert [list(batch) for batch in measurement.batches([1, 2, 3, 4, 5], 2)] == [[1, 2], [3, 4], [5]]
    assert list(measurement.batches([], 2)) == []
