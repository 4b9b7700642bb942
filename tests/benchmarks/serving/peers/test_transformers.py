"""transformers' pipeline as a peer: the real one."""

from pathlib import Path

from tuneserve.benchmarks.serving.peers import transformers
from tuneserve.benchmarks.serving.peers.peer import Setting
from tuneserve.benchmarks.serving.systems import Engine
from tuneserve.benchmarks.serving.workers import worker
from tuneserve.benchmarks.serving.workers.job import Job


def test_it_labels_texts_and_counts_their_tokens(classifier: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = ["the film was good", "bad", "good film", "a very bad film"] * 3
    client = worker.Worker(None, tmp_path)  # type: ignore[arg-type]
    with transformers.start(Setting(classifier, tmp_path, client, Engine(dtype="float32"))) as system:
        outcome = system.do(Job(texts=texts, batch=5, answers=True))
        assert system.do(Job(texts=texts)).answers == []
    model = AutoModelForSequenceClassification.from_pretrained(classifier, dtype=torch.float32).eval()
    encoded = AutoTokenizer.from_pretrained(classifier)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        best = model(**encoded).logits.argmax(-1).tolist()
    assert set(best) == {0, 1}
    assert outcome.answers == [model.config.id2label[index] for index in best]
    assert outcome.counts == (12, int(encoded.attention_mask.sum()), 0)
    assert outcome.rate > 0
