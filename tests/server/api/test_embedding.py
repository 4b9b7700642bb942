import grpc
import numpy as np
import pytest

from tuneserve.v1 import common_pb2, embedding_pb2
from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceStub


def request(*texts: str, model: str = "vectors", **fields) -> embedding_pb2.EmbedRequest:
    return embedding_pb2.EmbedRequest(model=model, texts=texts, **fields)


async def test_vectors_have_length_one_unless_told_otherwise(served):
    stub = EmbeddingServiceStub(served.channel)
    # The fake's vector is 3, 4 and the number of tokens.
    response = await stub.Embed(request("good", "good film"))
    assert [list(one.values) for one in response.results] == [
        pytest.approx(np.array([3, 4, 3]) / np.sqrt(34)),
        pytest.approx(np.array([3, 4, 4]) / np.sqrt(41)),
    ]
    assert [one.token_count for one in response.results] == [3, 4]
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (7, 0)
    response = await stub.Embed(request("good", normalize=False))
    assert list(response.results[0].values) == [3, 4, 3]


async def test_the_first_dimensions_have_length_one_again(served):
    response = await EmbeddingServiceStub(served.channel).Embed(request("good", dimensions=2))
    assert list(response.results[0].values) == pytest.approx([0.6, 0.8])


async def test_a_prompt_of_the_model_is_put_before_each_text(served, refused):
    stub = EmbeddingServiceStub(served.channel)
    response = await stub.Embed(request("was good", "film", prompt_name="query"))
    # [CLS] who : was good [SEP]
    assert [one.token_count for one in response.results] == [6, 5]
    unknown = stub.Embed(request("good", prompt_name="passage"))
    error = await refused(unknown, grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("prompt_name: is not a prompt of the model; prompts: query")


async def test_a_zero_vector_stays_one(served, monkeypatch):
    async def pool(ticket, inputs, task):
        return [np.zeros(3, np.float32)] * len(inputs)

    monkeypatch.setattr(served.engines["vectors"], "pool", pool)
    response = await EmbeddingServiceStub(served.channel).Embed(request("good"))
    assert list(response.results[0].values) == [0, 0, 0]


async def test_long_texts_are_refused_or_truncated(served, refused):
    stub = EmbeddingServiceStub(served.channel)
    error = await refused(stub.Embed(request("good", "good " * 40)), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("texts[1]: has 42 tokens, the model takes 32")
    response = await stub.Embed(request("good " * 40, truncation=common_pb2.TRUNCATION_END))
    assert (response.results[0].token_count, response.results[0].truncated) == (32, True)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"texts": []}, "texts"),
        ({"texts": ["good"] * 1025}, "texts"),
        ({"texts": ["good", " "]}, "texts[1]"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 4}, "dimensions"),
        ({"truncation": common_pb2.TRUNCATION_WINDOWS}, "truncation"),
        ({"truncation": 9}, "truncation"),
        ({"prompt_name": ""}, "prompt_name"),
    ],
)
async def test_bad_fields_are_named(served, refused, fields, field):
    call = embedding_pb2.EmbedRequest(**{"model": "vectors", "texts": ["good"]} | fields)
    error = await refused(EmbeddingServiceStub(served.channel).Embed(call), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith(f"{field}: ")


async def test_other_models_do_not_embed(served, refused):
    error = await refused(
        EmbeddingServiceStub(served.channel).Embed(request("good", model="chat")), grpc.StatusCode.FAILED_PRECONDITION
    )
    assert "Generate" in error.details()
