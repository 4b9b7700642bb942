"""Search by documents that were liked or not, beside a query or in place of one."""

import json

import grpc
import numpy as np
import pytest

from tuneserve.server.answer.profile import wanted
from tuneserve.server.call.tenants import hashed

from .conftest import Answers

TEXTS = {
    "good": "a good good film",
    "good too": "a good movie",
    "bad": "a bad bad film",
    "bad too": "a bad movie",
    "tokyo": "tokyo",
    "for ann": "tokyo hamburg hamburg",
}


def vector(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_what_is_wanted_lies_between_query_and_liked_away_from_disliked():
    query, liked, disliked = vector(1, 0, 0), vector(0, 1, 0), vector(0, 0, 1)
    assert wanted(query, [], []).tolist() == [1, 0, 0]
    assert wanted(None, [liked, liked], []).tolist() == [0, 1, 0]
    both = wanted(query, [liked, vector(0, 0.5, 0)], [disliked])
    assert np.linalg.norm(both) == pytest.approx(1)
    assert both[0] > both[1] > 0 > both[2]
    assert wanted(None, [], [disliked]) is None
    assert wanted(None, [vector(0, 0)], []) is None


@pytest.fixture
async def known(answers) -> Answers:
    await answers.upsert(
        *({"id": id_, "text": text, "readers": ["ann"] * (id_ == "for ann")} for id_, text in TEXTS.items())
    )
    return answers


async def test_liked_documents_find_others_like_them(known):
    assert (await known.found("", liked=["good"]))[0] == "good too"
    assert (await known.found("", liked=["bad"]))[0] == "bad too"
    found = await known.search("", liked=["good", "bad"], limit=2)
    assert {one.document_id for one in found.passages} == {"good too", "bad too"}
    assert found.usage.prompt_tokens == 0
    assert all(one.keyword_score == 0 for one in found.passages)
    assert found.passages[0].score == 1


async def test_what_was_disliked_comes_later(known):
    liked = await known.found("", liked=["good", "bad"])
    turned = await known.found("", liked=["good", "bad"], disliked=["tokyo"])
    assert "tokyo" in liked
    assert "tokyo" not in turned
    by_query = await known.search("movie", rerank=False)
    less = await known.search("movie", disliked=["bad"])
    scores = [{one.document_id: one.dense_score for one in found.passages} for found in (by_query, less)]
    assert scores[1]["bad too"] < scores[0]["bad too"]
    assert scores[1]["good too"] - scores[1]["bad too"] > scores[0]["good too"] - scores[0]["bad too"]


async def test_a_query_and_a_profile_count_together(known):
    query, both = await known.search("tokyo"), await known.search("tokyo", liked=["good"])
    assert both.passages[0].document_id == "tokyo"
    assert both.passages[0].keyword_score > 0
    assert both.passages[1].document_id == "good too" != query.passages[1].document_id
    assert both.usage.prompt_tokens == query.usage.prompt_tokens > 0


async def test_ids_of_nothing_and_of_what_is_not_for_the_reader_are_the_same(known):
    """What a caller may not read neither moves a search nor shows that it is there."""
    nobody = await known.search("", liked=["good", "nobody"])
    assert await known.search("", liked=["good", "for ann"]) == nobody
    assert list((await known.search("", liked=["for ann"])).passages) == []
    assert await known.search("", liked=["for ann"]) == await known.search("", liked=["nobody"])
    assert await known.search("film", disliked=["for ann"]) == await known.search("film", disliked=["nobody"])
    assert (await known.found("", liked=["for ann"], readers=["ann"]))[0] == "tokyo"


async def test_a_long_document_counts_as_one(answering):
    async with answering(chunk_tokens=8) as answers:
        await answers.upsert(
            {"id": "long", "text": " ".join(["bad"] * 8 * 8) + " tokyo" * 8 * 8},
            *({"id": id_, "text": text} for id_, text in TEXTS.items() if id_ != "tokyo"),
            {"id": "one", "text": "tokyo"},
        )
        found = await answers.search("", liked=["long", "good"], limit=100)
        scores = {one.document_id: one.dense_score for one in found.passages}
        assert not {"long", "good"} & scores.keys()
        assert scores["bad"] > scores["one"], "its first passages count"
        assert scores["good too"] > 0.5


async def test_the_ranking_model_orders_profiles_only_when_told_to(answering):
    async with answering(ranking="reranker") as answers:
        await answers.upsert(*({"id": id_, "text": text} for id_, text in TEXTS.items()))
        assert not (await answers.search("film", liked=["good"])).ranking_model_version
        assert (await answers.search("film", liked=["good"], rerank=True)).ranking_model_version


async def test_another_tenants_documents_are_nobody(answering, tmp_path, refused):
    tenants = {
        "acme": {"keys": [hashed("acme-key")]},
        "bolt": {"keys": [hashed("bolt-key")]},
        "chat": {"keys": [hashed("chat-key")], "models": ["sentiment"]},
    }
    (tmp_path / "tenants.yaml").write_text(json.dumps({"tenants": tenants}))
    async with answering({"tenants": tmp_path / "tenants.yaml"}) as server:
        acme, bolt, chat = (Answers(server.server, f"{name}-key") for name in tenants)
        await acme.upsert({"id": "secret", "text": "tokyo"})
        await bolt.upsert({"id": "1", "text": "tokyo"}, {"id": "2", "text": "good"})
        assert list((await bolt.search("", liked=["secret"])).passages) == []
        assert await bolt.found("", liked=["1"]) == ["2"]
        # The tenant may not use the model, also when a search needs none of its calls.
        await refused(chat.search("", liked=["1"]), grpc.StatusCode.PERMISSION_DENIED)
