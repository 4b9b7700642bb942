"""Vectors equal those of plain transformers: mean of the last layer's tokens, scaled to length one."""

from pathlib import Path

import grpc
import pytest
import torch

from tuneserve.v1 import common_pb2, embedding_pb2

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

TEXTS = ["A cat sits on the mat.", "There is a cat on a rug.", "The stock market fell.", "🙂 naïve 東京"]


def vectors(directory: Path, texts: list[str], max_length: int = 256) -> torch.Tensor:
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    found = []
    with torch.no_grad():
        for text in texts:
            inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=max_length)
            found.append(model(**inputs).last_hidden_state[0].mean(0))
    return torch.stack(found)


def embed(real, texts: list[str], **fields: object) -> torch.Tensor:
    response = real.embedding.Embed(embedding_pb2.EmbedRequest(model="vectors", texts=texts, **fields))
    return torch.tensor([list(one.values) for one in response.results])


def test_vectors_equal_transformers(real):
    expected = torch.nn.functional.normalize(vectors(real.directories["vectors"], TEXTS))
    found = embed(real, TEXTS)
    assert found.shape == (4, 384)
    assert torch.allclose(found, expected, atol=1e-3), (found - expected).abs().max()
    assert found[0] @ found[1] > found[0] @ found[2] + 0.3, "near in meaning is near"


def test_unscaled_and_shorter_vectors(real):
    expected = vectors(real.directories["vectors"], TEXTS)
    found = embed(real, TEXTS, normalize=False)
    assert torch.allclose(found, expected, atol=5e-3), (found - expected).abs().max()
    assert not torch.allclose(found.norm(dim=1), torch.ones(4), atol=0.1)
    short = embed(real, TEXTS, dimensions=64)
    assert torch.allclose(short, torch.nn.functional.normalize(expected[:, :64]), atol=1e-3)


def test_the_encoders_own_length_counts(real):
    text = "a film that goes on and on " * 60
    with pytest.raises(grpc.RpcError) as caught:
        embed(real, [text])
    assert "the model takes 256" in caught.value.details()
    found = embed(real, [text], truncation=common_pb2.TRUNCATION_END)
    expected = torch.nn.functional.normalize(vectors(real.directories["vectors"], [text]))
    assert torch.allclose(found, expected, atol=1e-3)
