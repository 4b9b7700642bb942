"""The server's answers equal those of plain transformers on the same checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve import rows, samples
from tuneserve.v1 import classification_pb2 as pb

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
        pb.ClassifyRequest(model="sentiment", inputs=inputs, truncation=pb.TRUNCATION_END)
    )
    expected = logits(real.directories["sentiment"], [(text,) for text in texts]).softmax(-1)
    found = scores(response, ["negative", "positive"])
    assert torch.allclose(found, expected, atol=1e-3), (found - expected).abs().max()
    clear = (expected[:, 0] - expected[:, 1]).abs() > 4e-3
    assert clear.sum() > 90
    assert torch.equal(found.argmax(-1)[clear], expected.argmax(-1)[clear])
    assert response.results[-1].truncated
    assert response.results[-1].token_count == 512


def test_the_checkpoint_loads_unchanged_in_plain_vllm(real, offline):
    texts = [row["text"] for row in rows.read(real.directories["sentiment"] / "eval/test.jsonl")[:20]]
    found = torch.tensor(offline("classify", real.directories["sentiment"], {"texts": texts})["probabilities"])
    expected = logits(real.directories["sentiment"], [(text,) for text in texts]).softmax(-1)
    # In bfloat16 there.
    assert torch.allclose(found, expected, atol=0.05), (found - expected).abs().max()


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

    texts = [" ".join(row["tokens"]) for row in rows.read(real.directories["ner"] / "eval/test.jsonl")[:40]]
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
