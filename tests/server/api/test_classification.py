import math

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tuneserve import checkpoint
from tuneserve.oip import inference_pb2
from tuneserve.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from tuneserve.server.call import request_log
from tuneserve.server.config import ModelConfig
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1 import common_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

from ..conftest import loopback, served_by


def request(*texts: str, model: str = "sentiment", **fields) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model=model, inputs=[pb.ClassifyInput(text=text) for text in texts], **fields)


def windowed(*texts: str, explain: pb.Explain | None = None, **fields) -> pb.ClassifyRequest:
    return request(*texts, truncation=common_pb2.TRUNCATION_WINDOWS, windows=pb.Windows(**fields), explain=explain)


@pytest.fixture
def reading(monkeypatch):
    """Makes a fake engine that reads: its first output is how often `bad` is in a text, the second `good`."""

    def change(engine) -> None:
        async def pool(ticket, inputs, task):
            engine.pooled.extend(inputs)
            return [np.array([list(one.token_ids).count(word) for word in (12, 11)], np.float32) for one in inputs]

        monkeypatch.setattr(engine, "pool", pool)

    return change


async def test_one_result_per_input_in_order(served):
    # The fake answers by the number of tokens: 3 and 4 with the special ones.
    response = await ClassificationServiceStub(served.channel).Classify(request("good", "good film", "bad"))
    assert [result.labels[0].label for result in response.results] == ["pos", "neg", "pos"]
    assert [result.token_count for result in response.results] == [3, 4, 3]
    assert response.usage.prompt_tokens == 10


async def test_single_label_scores_are_a_softmax_sorted(served):
    response = await ClassificationServiceStub(served.channel).Classify(request("good"))
    scores = [label.score for label in response.results[0].labels]
    expected = np.exp([2, 0]) / np.exp([2, 0]).sum()
    assert scores == pytest.approx(expected)


async def test_multi_label_scores_are_sigmoids(served):
    response = await ClassificationServiceStub(served.channel).Classify(request("good", model="topics"))
    scores = {label.label: label.score for label in response.results[0].labels}
    assert scores == pytest.approx({"a": 1 / (1 + np.exp(-2)), "b": 0.5, "c": 0.5})


async def test_raw_scores_are_logits(served):
    response = await ClassificationServiceStub(served.channel).Classify(request("good", raw_scores=True))
    assert [label.score for label in response.results[0].labels] == [2, 0]


async def test_top_k(served):
    response = await ClassificationServiceStub(served.channel).Classify(request("good", model="topics", top_k=1))
    assert [label.label for label in response.results[0].labels] == ["a"]


async def test_pairs_reach_the_engine_with_their_boundary(served):
    pair = pb.ClassifyInput(text="good film", text_pair="bad movie")
    await ClassificationServiceStub(served.channel).Classify(pb.ClassifyRequest(model="sentiment", inputs=[pair]))
    [encoded] = served.engines["sentiment"].pooled
    # [CLS] good film [SEP] bad movie [SEP]
    assert len(encoded.token_ids) == 7
    assert encoded.pair_start == 4


async def test_padding_and_truncation_of_the_tokenizer_file_are_ignored(served):
    await ClassificationServiceStub(served.channel).Classify(request("good film was bad , bad movie !"))
    [encoded] = served.engines["sentiment"].pooled
    assert len(encoded.token_ids) == 10


async def test_too_long_is_refused_or_truncated(served, refused):
    stub = ClassificationServiceStub(served.channel)
    long = "good " * 40
    error = await refused(stub.Classify(request("good", long)), grpc.StatusCode.INVALID_ARGUMENT)
    assert "inputs[1].text: has 42 tokens, the model takes 32" in error.details()
    response = await stub.Classify(request("good", long, truncation=common_pb2.TRUNCATION_END))
    assert [(result.token_count, result.truncated) for result in response.results] == [(3, False), (32, True)]
    assert served.engines["sentiment"].pooled[-1].token_ids[-1] == 3, "the cut keeps the closing [SEP]"


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (request(), "inputs"),
        (request(*["good"] * 9), "inputs"),
        (request("good", ""), "inputs[1].text"),
        (request(" \t\n"), "inputs[0].text"),
        (
            pb.ClassifyRequest(model="sentiment", inputs=[pb.ClassifyInput(text="a", text_pair="")]),
            "inputs[0].text_pair",
        ),
        (request("good", top_k=0), "top_k"),
        (request("good", truncation=17), "truncation"),
        (request("good", windows=pb.Windows()), "windows"),
        (windowed("good", overlap=17), "windows.overlap"),
        (windowed("good", pooling=9), "windows.pooling"),
        (windowed("good " * 240), "inputs"),
        (
            pb.ClassifyRequest(
                model="sentiment",
                inputs=[pb.ClassifyInput(text="a", text_pair="b")],
                truncation=common_pb2.TRUNCATION_WINDOWS,
            ),
            "inputs[0].text_pair",
        ),
        (request("good", threshold=1.5), "threshold"),
        (request("good", top_k=-1), "top_k"),
        (windowed("good", overlap=-1), "windows.overlap"),
        (request("good", threshold=float("nan")), "threshold"),
        (request("good", thresholds={"pos": -1}), "thresholds[pos]"),
        (request("good", thresholds={"sadness": 0.5}), "thresholds[sadness]"),
        (request("good", offset_unit=9), "offset_unit"),
        (request("good", labels=["a", "b"]), "labels"),
        (request("good", examples=[pb.ClassifyExample(text="a", label="b")]), "examples"),
        (request("good", instruction="Which?"), "instruction"),
        (request("good", explain=pb.Explain(max_words=0)), "explain.max_words"),
        (request("good", explain=pb.Explain(max_words=129)), "explain.max_words"),
        (request("good", "good bad", explain=pb.Explain(max_words=1)), "inputs[1].text"),
        (request("a " * 129, explain=pb.Explain()), "inputs[0].text"),
        (request("a" * 20000, explain=pb.Explain()), "inputs[0].text"),
        (request(*["good bad awful a the"] * 6, explain=pb.Explain(max_words=8)), "inputs"),
        (
            pb.ClassifyRequest(
                model="sentiment", inputs=[pb.ClassifyInput(text="a", text_pair="b")], explain=pb.Explain()
            ),
            "inputs[0].text_pair",
        ),
        (windowed("good", explain=pb.Explain()), "explain"),
    ],
)
async def test_bad_fields_are_named(served, refused, bad, field):
    error = await refused(ClassificationServiceStub(served.channel).Classify(bad), grpc.StatusCode.INVALID_ARGUMENT)
    detail = error_details_pb2.BadRequest()
    assert rpc_status.from_call(error).details[0].Unpack(detail)
    assert detail.field_violations[0].field == field
    assert served.engines["sentiment"].pooled == []


async def test_unknown_model_lists_what_exists(served, refused):
    error = await refused(
        ClassificationServiceStub(served.channel).Classify(request("good", model="nope")), grpc.StatusCode.NOT_FOUND
    )
    assert "chat, ner, sentiment, topics" in error.details()


async def test_every_answer_says_which_version_gave_it(served):
    stub = ClassificationServiceStub(served.channel)
    versions = {model.name: model.id for model in served.app.models}
    assert (await stub.Classify(request("good"))).model_version == versions["sentiment"]
    tagged = await stub.ClassifyTokens(pb.ClassifyTokensRequest(model="ner", texts=["in tokyo"]))
    assert tagged.model_version == versions["ner"]


async def test_wrong_task_says_what_the_model_does(served, refused):
    error = await refused(
        ClassificationServiceStub(served.channel).Classify(request("good", model="ner")),
        grpc.StatusCode.FAILED_PRECONDITION,
    )
    assert "ClassifyTokens" in error.details()


async def test_windows_are_pooled(served, reading):
    reading(served.engines["sentiment"])
    stub = ClassificationServiceStub(served.channel)
    text = "good " * 22 + "bad " * 28
    # 30 words go into a window. The second is moved back to the text's end: words 20 to 49.
    counts = {"good": [22, 2], "bad": [8, 28]}
    for pooling, join in ((pb.WINDOW_POOLING_MEAN, np.mean), (pb.WINDOW_POOLING_MAX, max)):
        call = windowed(text, "good", pooling=pooling)
        call.raw_scores = True
        response = await stub.Classify(call)
        scores = {label.label: label.score for label in response.results[0].labels}
        assert scores == pytest.approx({"pos": join(counts["good"]), "neg": join(counts["bad"])})
        assert [(one.token_count, one.windows, one.truncated) for one in response.results] == [
            (52, 2, False),
            (3, 1, False),
        ]
        assert response.usage.prompt_tokens == 32 + 32 + 3, "what the engine read"


async def test_the_callers_overlap_is_kept(served, reading):
    reading(served.engines["sentiment"])
    response = await ClassificationServiceStub(served.channel).Classify(windowed("good " * 90, overlap=0))
    assert response.results[0].windows == 3
    response = await ClassificationServiceStub(served.channel).Classify(windowed("good " * 90, overlap=16))
    assert response.results[0].windows == 6


async def test_thresholds_are_of_probabilities_and_a_labels_own_goes_first(served):
    stub = ClassificationServiceStub(served.channel)

    async def labels(**fields) -> list[str]:
        response = await stub.Classify(request("good", model="topics", **fields))
        return [label.label for label in response.results[0].labels]

    # a has 0.88, b and c have 0.5.
    assert await labels(threshold=0.5) == ["a", "b", "c"]
    assert await labels(threshold=0.51) == ["a"]
    assert await labels(threshold=0.9) == []
    assert await labels(thresholds={"b": 0.9}) == ["a", "c"]
    assert await labels(threshold=0.9, thresholds={"c": 0.2}) == ["c"]
    assert await labels(threshold=0.6, raw_scores=True) == ["a"], "a logit of 0 is a probability of 0.5"
    assert await labels(threshold=0.4, top_k=2) == ["a", "b"]


async def test_words_are_weighed_by_taking_them_out(served, reading):
    engine = served.engines["sentiment"]
    reading(engine)
    text = "née good film, bad"
    response = await ClassificationServiceStub(served.channel).Classify(
        request(text, "!", "bad", explain=pb.Explain(), offset_unit=common_pb2.OFFSET_UNIT_UTF8_BYTE)
    )
    one = 1 / (1 + np.exp(-1)) - 0.5  # what one word changes
    found = [(word.text, word.start, word.end, round(word.weight, 5)) for word in response.results[0].weights]
    # Its label is neg: equal scores stay in the labels' order. Without `good`, it is more so.
    assert found == [
        ("née", 0, 4, 0),
        ("good", 5, 9, round(-one, 5)),
        ("film", 10, 14, 0),
        ("bad", 16, 19, round(one, 5)),
    ]
    assert not response.results[1].weights
    assert [word.text for word in response.results[2].weights] == ["bad"]
    assert len(engine.pooled) == 3 + 4 + 1
    assert response.usage.prompt_tokens == sum(len(one.token_ids) for one in engine.pooled)


async def test_one_output_is_a_yes_or_no_or_a_number(serve_config, make_bert, refused, reading):
    models = {
        "fits": ModelConfig(path=make_bert(labels=["fits"])),
        "stars": ModelConfig(path=make_bert(labels=["stars"], problem_type="regression")),
    }
    async with serve_config(loopback(models)) as served:
        for engine in served.engines.values():
            reading(engine)
            engine.pool = one_output(engine.pool)
        stub = ClassificationServiceStub(served.channel)
        response = await stub.Classify(request("bad bad", model="fits"))
        assert response.results[0].labels[0].score == pytest.approx(1 / (1 + np.exp(-2)))
        response = await stub.Classify(request("bad bad", model="stars"))
        assert response.results[0].labels[0].score == 2
        for field in ({"threshold": 0.5}, {"explain": pb.Explain()}):
            error = await refused(
                stub.Classify(request("bad", model="stars", **field)), grpc.StatusCode.INVALID_ARGUMENT
            )
            assert error.details().startswith(next(iter(field)))
        ranked = await stub.Rank(pb.RankRequest(model="fits", query="a", candidates=["good", "bad bad", "bad", "good"]))
        assert [one.index for one in ranked.results] == [1, 2, 0, 3]
        assert ranked.results[0].score == pytest.approx(1 / (1 + np.exp(-2)))
        assert ranked.usage.prompt_tokens == 5 + 6 + 5 + 5
        ranked = await stub.Rank(
            pb.RankRequest(model="fits", query="a", candidates=["good", "bad bad"], raw_scores=True, top_k=1)
        )
        assert [(one.index, one.score) for one in ranked.results] == [(1, 2)]


async def test_a_temperature_divides_what_becomes_a_probability(serve_config, make_bert, reading):
    models = {
        "one": ModelConfig(path=tempered(make_bert())),
        "several": ModelConfig(path=tempered(make_bert(labels=["a", "b"], problem_type="multi_label_classification"))),
    }
    async with serve_config(loopback(models)) as served:
        for engine in served.engines.values():
            reading(engine)
        stub = ClassificationServiceStub(served.channel)
        [whole] = (await stub.Classify(request("bad bad", model="one", explain=pb.Explain()))).results
        sure, surer = 1 / (1 + np.exp(-2 / 4)), 1 / (1 + np.exp(-2))
        assert whole.labels[0].score == pytest.approx(sure)
        assert whole.weights[0].weight == pytest.approx(sure - 1 / (1 + np.exp(-1 / 4)))
        [raw] = (await stub.Classify(request("bad bad", model="one", raw_scores=True))).results
        assert [label.score for label in raw.labels] == [2, 0]
        # What a threshold is held against is the probability that is shown.
        [left] = (await stub.Classify(request("bad bad", model="one", threshold=(sure + surer) / 2))).results
        assert not left.labels
        [several] = (await stub.Classify(request("bad bad", model="several"))).results
        assert [label.score for label in several.labels] == pytest.approx([sure, 0.5])
        streamed = stub.ClassifyStream(iter([pb.ClassifyStreamRequest(request=request("bad bad", model="one"))]))
        assert (await anext(aiter(streamed))).response.results[0].labels[0].score == pytest.approx(sure)
        ranked = await stub.Rank(pb.RankRequest(model="one", query="a", candidates=["bad bad"], label="neg"))
        assert ranked.results[0].score == pytest.approx(sure)
        tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(b"bad bad")
        answer = await GRPCInferenceServiceStub(served.channel).ModelInfer(
            inference_pb2.ModelInferRequest(
                model_name="one",
                inputs=[tensor],
                outputs=[inference_pb2.ModelInferRequest.InferRequestedOutputTensor(name="score")],
            )
        )
        assert answer.outputs[0].contents.fp32_contents == pytest.approx([sure])


async def test_masked_words_never_come_apart(serve_config, make_bert):
    directory = make_bert()
    config = loopback({"masked": ModelConfig(path=directory, redact=("email",))})
    async with serve_config(config) as served:
        served.engines["masked"].pooled.clear()  # the warm-up
        response = await ClassificationServiceStub(served.channel).Classify(
            request("good bad.film@example.com was", model="masked", explain=pb.Explain())
        )
        pooled = [one.token_ids for one in served.engines["masked"].pooled]
        weights = response.results[0].weights
        assert [(word.text, word.start) for word in weights] == [("good", 0), ("bad.film@example.com", 5), ("was", 26)]
        # `bad` and `film`, which a text without `example` would show.
        assert not [ids for ids in pooled if 12 in ids or 7 in ids]
        assert len(pooled) == 4


@pytest.mark.parametrize("wanted", [True, False])
async def test_texts_are_kept_for_the_log_only_when_wanted_and_masked(serve_config, make_bert, monkeypatch, wanted):
    calls = []
    monkeypatch.setattr(request_log, "log", lambda call, *_: calls.append(call))
    directory = make_bert()
    models = {"masked": ModelConfig(path=directory, redact=("email",))}
    async with serve_config(loopback(models, log_content=wanted)) as served:
        await ClassificationServiceStub(served.channel).Classify(request("good a@example.com", model="masked"))
        content = calls[-1].content
    assert content == ({"prompt": ["good [EMAIL]"], "output": ["neg"]} if wanted else None)


def tempered(directory):
    """Makes a checkpoint of a plain directory, with a temperature of 4."""
    manifest = checkpoint.describe(directory)
    manifest.temperature = 4
    checkpoint.seal(directory, manifest)
    return directory


def one_output(pool):
    async def first(*arguments):
        return [row[:1] for row in await pool(*arguments)]

    return first


async def test_rank_by_a_label_of_pairs(served, reading):
    engine = served.engines["sentiment"]
    reading(engine)
    response = await ClassificationServiceStub(served.channel).Rank(
        pb.RankRequest(model="sentiment", query="film", candidates=["bad", "good", "movie"], label="pos")
    )
    assert [one.index for one in response.results] == [1, 2, 0]
    assert response.results[1].score == 0.5
    assert engine.pooled[0].pair_start == 3


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"query": " "}, "query"),
        ({"candidates": []}, "candidates"),
        ({"candidates": ["good"] * 9}, "candidates"),
        ({"candidates": ["good", ""]}, "candidates[1]"),
        ({"candidates": ["good", "good " * 40]}, "candidates[1]"),
        ({"label": "joy"}, "label"),
        ({"label": None}, "label"),
        ({"top_k": 0}, "top_k"),
        ({"truncation": common_pb2.TRUNCATION_WINDOWS}, "truncation"),
        ({"truncation": 9}, "truncation"),
    ],
)
async def test_bad_fields_of_rank_are_named(served, refused, fields, field):
    call = pb.RankRequest(**{"model": "sentiment", "query": "film", "candidates": ["good"], "label": "pos"} | fields)
    error = await refused(ClassificationServiceStub(served.channel).Rank(call), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith(f"{field}: ")
    assert served.engines["sentiment"].pooled == []


async def test_a_bad_call_fails_alone(own_server, refused):
    stub, engine = ClassificationServiceStub(own_server.channel), own_server.engines["sentiment"]
    alone = [(await stub.Classify(request(text))).SerializeToString() for text in ("good", "a film")]
    # A tokenizer may know words that the model has no embedding for; in the engine they would end everybody's calls.
    engine.vocab_size, engine.delay = 20, 0.05
    calls = [stub.Classify(request(text)) for text in ("good", "née 🙂", "a film")]
    error = await refused(calls[1], grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("inputs[0].text: has a token")
    assert [(await call).SerializeToString() for call in (calls[0], calls[2])] == alone


async def test_outputs_that_are_no_numbers_are_no_answer(served, refused, monkeypatch):
    async def pool(ticket, inputs, task):
        return [np.array([np.nan, 1], np.float32)] * len(inputs)

    monkeypatch.setattr(served.engines["sentiment"], "pool", pool)
    for fields in ({}, {"raw_scores": True}):
        call = ClassificationServiceStub(served.channel).Classify(request("good", **fields))
        error = await refused(call, grpc.StatusCode.INTERNAL)
        assert error.details().startswith("internal error")


async def test_each_label_of_a_multi_label_model_is_counted(own_server, monkeypatch):
    async def pool(ticket, inputs, task):
        return [np.array(row, np.float32) for row in ([2, 1, -1], [-3, 1, -1], [-3, -2, -1])]

    monkeypatch.setattr(own_server.engines["topics"], "pool", pool)
    metrics = own_server.app.metrics.registry

    def counted(name: str, **labels: str) -> float | None:
        return metrics.get_sample_value(f"tuneserve_{name}", {"model": "topics", **labels})

    stub = ClassificationServiceStub(own_server.channel)
    # What a call wants to see changes nothing.
    await stub.Classify(request("good", "bad", "film", model="topics", top_k=1, threshold=0.9))
    assert [counted("predictions_total", label=label) for label in "abc"] == [1, 2, 0]
    assert counted("texts_classified_total") == 3
    assert counted("prediction_confidence_count") == 3


async def test_tokens_are_counted(own_server, refused):
    metrics = own_server.app.metrics.registry
    stub = ClassificationServiceStub(own_server.channel)

    def tokens() -> float | None:
        return metrics.get_sample_value("tuneserve_prompt_tokens_total", {"model": "sentiment"})

    before = tokens() or 0
    await stub.Classify(request("good", "good film"))
    assert tokens() == before + 7
    await refused(stub.Classify(request("good " * 99)), grpc.StatusCode.INVALID_ARGUMENT)
    assert tokens() == before + 7


@pytest.mark.parametrize(
    ("unit", "encode"),
    [
        (common_pb2.OFFSET_UNIT_CODE_POINT, lambda text: text),
        (common_pb2.OFFSET_UNIT_UTF8_BYTE, lambda text: text.encode()),
        (common_pb2.OFFSET_UNIT_UTF16, lambda text: text.encode("utf-16-le")),
    ],
)
@pytest.mark.parametrize(
    "text", ["Angela Merkel in Hamburg", "🙂 née Merkel 🙂, 東京 !", "u\u0308 Hamburg \U0001f469\u200d\U0001f52c Tokyo"]
)
async def test_spans_slice_the_callers_own_string(served, unit, encode, text):
    response = await ClassificationServiceStub(served.channel).ClassifyTokens(
        pb.ClassifyTokensRequest(model="ner", texts=[text], offset_unit=unit)
    )
    spans = response.results[0].spans
    assert spans
    width = 2 if unit == common_pb2.OFFSET_UNIT_UTF16 else 1
    for span in spans:
        assert encode(text)[span.start * width : span.end * width] == encode(span.text)
    assert "Hamburg" in text or any("東" in span.text or "京" in span.text or "Merkel" in span.text for span in spans)


async def test_token_classification_refuses_unknown_enums(served, refused):
    stub = ClassificationServiceStub(served.channel)
    for field in ("aggregation", "offset_unit", "truncation"):
        bad = pb.ClassifyTokensRequest(model="ner", texts=["Hamburg"], **{field: 99})
        error = await refused(stub.ClassifyTokens(bad), grpc.StatusCode.INVALID_ARGUMENT)
        assert field in error.details()


@pytest.mark.parametrize("overlap", [0, 8, 16])
async def test_spans_of_windows_are_those_of_the_whole_text(served, overlap):
    # The fake labels each token by its id alone, so that windows must change nothing but what fits.
    stub, engine = ClassificationServiceStub(served.channel), served.engines["ner"]
    text = "née merkel in hamburg, tokyo 🙂 was good! " * 12
    call = pb.ClassifyTokensRequest(model="ner", texts=["in tokyo", text], truncation=common_pb2.TRUNCATION_WINDOWS)
    call.windows.overlap = overlap
    found = await stub.ClassifyTokens(call)
    assert len(engine.pooled) > 4
    assert all(len(one.token_ids) <= 32 for one in engine.pooled)
    engine.max_length, before = 512, engine.max_length
    try:
        whole = await stub.ClassifyTokens(pb.ClassifyTokensRequest(model="ner", texts=["in tokyo", text]))
    finally:
        engine.max_length = before
    assert found.results == whole.results
    assert len(found.results[1].spans) > 40


async def test_a_cross_encoder_ranks_and_gives_scores(make_bert, refused):
    key = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}
    async with served_by(loopback({"reranker": make_bert(labels=["LABEL_0"], **key)})) as server:
        stub = ClassificationServiceStub(server.channel)
        # The fake's only output is 2.
        ranked = await stub.Rank(pb.RankRequest(model="reranker", query="film", candidates=["good", "bad"]))
        assert [one.score for one in ranked.results] == pytest.approx([1 / (1 + math.exp(-2))] * 2)
        pair = pb.ClassifyInput(text="film", text_pair="good")
        [scored] = (await stub.Classify(pb.ClassifyRequest(model="reranker", inputs=[pair], raw_scores=True))).results
        assert [(one.label, one.score) for one in scored.labels] == [("LABEL_0", 2)]
        tokens = stub.ClassifyTokens(pb.ClassifyTokensRequest(model="reranker", texts=["film"]))
        error = await refused(tokens, grpc.StatusCode.FAILED_PRECONDITION)
        assert "ClassificationService.Rank" in error.details()
