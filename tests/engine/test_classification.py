"""The server's answers equal those of plain transformers on the same checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve import samples
from tuneserve.checkpoint import rows
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1 import common_pb2

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

LONG = "a film that goes on and on and never ends " * 80
AGGREGATIONS = {
    "simple": pb.AGGREGATION_SIMPLE,
    "first": pb.AGGREGATION_FIRST,
    "average": pb.AGGREGATION_AVERAGE,
    "max": pb.AGGREGATION_MAX,
}


def logits(directory: Path, texts: list[Any]) -> torch.Tensor:
    """What plain transformers computes in float32, one text or pair at a time: no padding to argue about."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        inputs = [tokenizer(*text, truncation=True, max_length=512, return_tensors="pt") for text in texts]
        return torch.cat([model(**one).logits for one in inputs])


def scores(response: pb.ClassifyResponse, labels: list[str]) -> torch.Tensor:
    by_label = [{label.label: label.score for label in result.labels} for result in response.results]
    return torch.tensor([[found[label] for label in labels] for found in by_label])


def test_labels_and_scores_equal_transformers(real):
    texts = [row["text"] for row in rows.read(real.directories["sentiment"] / "eval/test.jsonl")[:100]]
    texts += ["🙂", "naïve café 東京", LONG]
    inputs = [pb.ClassifyInput(text=text) for text in texts]
    response = real.classification.Classify(
        pb.ClassifyRequest(model="sentiment", inputs=inputs, truncation=common_pb2.TRUNCATION_END)
    )
    expected = logits(real.directories["sentiment"], [(text,) for text in texts]).softmax(-1)
    found = scores(response, ["negative", "positive"])
    assert torch.allclose(found, expected, atol=1e-3), (found - expected).abs().max()
    clear = (expected[:, 0] - expected[:, 1]).abs() > 4e-3
    assert clear.sum() > 90
    assert torch.equal(found.argmax(-1)[clear], expected.argmax(-1)[clear])
    assert response.results[-1].truncated
    assert response.results[-1].token_count == 512


def test_it_learned_something(real):
    test = rows.read(real.directories["sentiment"] / "eval/test.jsonl")
    inputs = [pb.ClassifyInput(text=row["text"]) for row in test]
    response = real.classification.Classify(pb.ClassifyRequest(model="sentiment", inputs=inputs, top_k=1))
    right = sum(result.labels[0].label == row["label"] for result, row in zip(response.results, test, strict=True))
    assert right / len(test) > 0.7


def test_pairs_and_multi_label_equal_transformers(real):
    pairs = [("who wrote the music?", "The score is by a young composer."), ("a", "b"), ("plot", "x " * 60)]
    inputs = [pb.ClassifyInput(text=first, text_pair=second) for first, second in pairs]
    response = real.classification.Classify(pb.ClassifyRequest(model="topics", inputs=inputs))
    expected = logits(real.directories["topics"], pairs).sigmoid()
    found = scores(response, ["acting", "music", "plot"])
    assert torch.allclose(found, expected, atol=1e-3), (found - expected).abs().max()
    # The second text matters as a second text: joined into one, the scores differ.
    joined = logits(real.directories["topics"], [(" ".join(pair),) for pair in pairs]).sigmoid()
    assert not torch.allclose(found, joined, atol=1e-2)


def test_raw_scores_equal_transformers(real):
    response = real.classification.Classify(
        pb.ClassifyRequest(model="topics", inputs=[pb.ClassifyInput(text="a film")], raw_scores=True)
    )
    expected = logits(real.directories["topics"], [("a film",)])
    assert torch.allclose(scores(response, ["acting", "music", "plot"]), expected, atol=1e-2)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_spans_equal_transformers(real, aggregation):
    from transformers import pipeline

    texts = [row["text"] for row in rows.read(real.directories["ner"] / "eval/test.jsonl")[:40]]
    texts += ["Angela Merkel 🙂 visited New York & São Paulo, then 東京.", "e\u0301 Paris"]
    response = real.classification.ClassifyTokens(
        pb.ClassifyTokensRequest(model="ner", texts=texts, aggregation=AGGREGATIONS[aggregation])
    )
    tag = pipeline(
        "token-classification",
        model=str(real.directories["ner"]),
        dtype=torch.float32,
        aggregation_strategy=aggregation,
    )
    total = 0
    for text, result in zip(texts, response.results, strict=True):
        others = tag(text)
        expected = [(span["entity_group"], span["start"], span["end"]) for span in others]
        found = [(span.label, span.start, span.end) for span in result.spans]
        assert found == expected, text
        for span, other in zip(result.spans, others, strict=True):
            assert span.score == pytest.approx(float(other["score"]), abs=2e-3)
            assert span.text == text[span.start : span.end]
        total += len(found)
    assert total > 10, "a tagger that finds nothing proves nothing"


def windows(ids: list[int], room: int, overlap: int) -> list[tuple[int, int]]:
    """Where windows of `room` tokens begin and end, the last one at the text's end."""
    starts = [0]
    while starts[-1] + room < len(ids):
        starts.append(min(starts[-1] + room - overlap, len(ids) - room))
    return [(start, start + room) for start in starts]


def windowed_logits(directory: Path, text: str, overlap: int, kind: str) -> tuple[list[tuple[int, int]], list[Any]]:
    """The windows of a text, and what plain transformers makes of each: with special tokens of its own."""
    import transformers

    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    places = windows(ids, 510, overlap)
    assert len(places) > 2
    rows = []
    with torch.no_grad():
        for start, end in places:
            inputs = [tokenizer.cls_token_id, *ids[start:end], tokenizer.sep_token_id]
            rows.append(model(torch.tensor([inputs])).logits[0])
    return places, rows


def test_windows_equal_transformers_pooled(real):
    reviews = rows.read(real.directories["sentiment"] / "eval/test.jsonl")
    text = " ".join(row["text"] for row in reviews[:60])
    _, found = windowed_logits(real.directories["sentiment"], text, 100, "SequenceClassification")
    logits = torch.stack(found)
    for pooling, expected in ((pb.WINDOW_POOLING_MEAN, logits.mean(0)), (pb.WINDOW_POOLING_MAX, logits.amax(0))):
        response = real.classification.Classify(
            pb.ClassifyRequest(
                model="sentiment",
                inputs=[pb.ClassifyInput(text=text)],
                truncation=common_pb2.TRUNCATION_WINDOWS,
                windows=pb.Windows(overlap=100, pooling=pooling),
                raw_scores=True,
            )
        )
        assert torch.allclose(scores(response, ["negative", "positive"])[0], expected, atol=1e-2)
        assert response.results[0].windows == len(logits)


def test_spans_of_windows_come_from_the_best_window(real):
    from transformers import AutoTokenizer

    found = rows.read(real.directories["ner"] / "eval/test.jsonl")
    text = " ".join(row["text"] for row in found[:70])
    places, logits = windowed_logits(real.directories["ner"], text, 128, "TokenClassification")
    offsets = AutoTokenizer.from_pretrained(real.directories["ner"])(
        text, add_special_tokens=False, return_offsets_mapping=True
    )["offset_mapping"]
    config = json.loads((real.directories["ner"] / "config.json").read_text())
    tagged = set()
    for token, offset in enumerate(offsets):
        inside = [
            (
                min(
                    token - start if start else 10**6,
                    end - 1 - token if end < len(offsets) else 10**6,
                ),
                -index,
            )
            for index, (start, end) in enumerate(places)
            if start <= token < end
        ]
        index = -max(inside)[1]
        best = int(logits[index][1 + token - places[index][0]].argmax())
        if config["id2label"][str(best)] != "O":
            tagged.update(range(*offset))
    [result] = real.classification.ClassifyTokens(
        pb.ClassifyTokensRequest(
            model="ner", texts=[text], truncation=common_pb2.TRUNCATION_WINDOWS, windows=pb.Windows(overlap=128)
        )
    ).results
    assert len(result.spans) > 10
    inside_spans = {at for span in result.spans for at in range(span.start, span.end) if not text[at].isspace()}
    assert {at for at in tagged if not text[at].isspace()} <= inside_spans
    assert len(inside_spans - tagged) < len(tagged) / 10, "what lies between two tokens of one span"
    for span in result.spans:
        assert span.text == text[span.start : span.end]


def test_weights_of_words_equal_transformers(real):
    texts = {
        "a truly awful film": ["truly awful film", "a awful film", "a truly film", "a truly awful "],
        "wonderful": [""],
    }
    inputs = [pb.ClassifyInput(text=text) for text in texts]
    response = real.classification.Classify(pb.ClassifyRequest(model="sentiment", inputs=inputs, explain=pb.Explain()))
    for (text, variants), result in zip(texts.items(), response.results, strict=True):
        whole, *without = logits(real.directories["sentiment"], [(one,) for one in [text, *variants]]).softmax(-1)
        best = int(whole.argmax())
        expected = [float(whole[best] - row[best]) for row in without]
        assert [word.weight for word in result.weights] == pytest.approx(expected, abs=2e-3)
        assert max(map(abs, expected)) > 0.05, "words that all weigh nothing prove nothing"
        assert [word.text for word in result.weights] == text.split()


def test_rank_equals_transformers(real):
    query = "who wrote the music?"
    candidates = ["The score is by a young composer.", "It rained.", "The plot is thin.", "Songs by the lead actor."]
    response = real.classification.Rank(
        pb.RankRequest(model="topics", query=query, candidates=candidates, label="music")
    )
    expected = logits(real.directories["topics"], [(query, one) for one in candidates]).sigmoid()[:, 1]
    assert [one.index for one in response.results] == expected.argsort(descending=True).tolist()
    found = torch.tensor([one.score for one in response.results])
    assert torch.allclose(found, expected.sort(descending=True).values, atol=1e-3)


def test_a_stream_answers_as_single_calls_do(real):
    texts = [row["text"] for row in rows.read(real.directories["sentiment"] / "eval/test.jsonl")[:100]] * 3

    def requests():
        for id_, text in enumerate(texts):
            one = pb.ClassifyRequest(model="sentiment", inputs=[pb.ClassifyInput(text=text if id_ != 7 else "")])
            yield pb.ClassifyStreamRequest(id=id_, request=one)

    found = {answer.id: answer for answer in real.classification.ClassifyStream(requests())}
    assert sorted(found) == list(range(300))
    assert [id_ for id_, answer in found.items() if answer.HasField("error")] == [7]
    batch = real.classification.Classify(
        pb.ClassifyRequest(model="sentiment", inputs=[pb.ClassifyInput(text=text) for text in texts[:7]])
    )
    for one, answer in zip(batch.results, [found[id_] for id_ in range(7)], strict=True):
        scores_ = {label.label: label.score for label in answer.response.results[0].labels}
        assert scores_ == pytest.approx({label.label: label.score for label in one.labels}, abs=1e-3)


def test_a_bad_text_fails_alone(real):
    import grpc

    good = pb.ClassifyRequest(model="sentiment", inputs=[pb.ClassifyInput(text="a fine film")])
    before = real.classification.Classify(good)
    bad = pb.ClassifyRequest(model="sentiment", inputs=[pb.ClassifyInput(text="fine"), pb.ClassifyInput(text=LONG)])
    calls = [real.classification.Classify.future(one) for one in (good, bad, good)]
    assert calls[1].exception().code() == grpc.StatusCode.INVALID_ARGUMENT
    for call in (calls[0], calls[2]):
        assert call.result().results[0].labels[0].label == before.results[0].labels[0].label


def test_the_sample_data_is_what_the_readme_says():
    assert sum(1 for _ in samples.sentiment().open()) > 6000
