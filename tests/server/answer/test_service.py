import subprocess
import sys

import grpc
import pytest

from tuneserve.errors import UserError
from tuneserve.v1 import answer_pb2 as pb

GOOD = {"id": "1", "text": "the film was good"}
BAD = {"id": "2", "text": "angela merkel in hamburg"}


async def test_documents_are_found_until_they_are_replaced_or_deleted(answers):
    empty = await answers.search("film")
    assert (list(empty.passages), empty.index_version) == ([], 0)
    written = await answers.upsert(GOOD, BAD)
    assert (written.written, written.unchanged) == (2, 0)
    assert written.usage.prompt_tokens == 6 + 6
    assert written.model_version.startswith("vectors@")
    found = await answers.search("the film was")
    assert found.index_version == written.index_version
    assert found.model_version == written.model_version
    # [CLS] who : the film was [SEP]
    assert found.usage.prompt_tokens == 7
    best = found.passages[0]
    assert (best.document_id, best.text, best.start, best.end) == ("1", GOOD["text"], 0, 17)
    assert (await answers.upsert({"id": "1", "text": "tokyo"})).index_version > written.index_version
    assert await answers.found("tokyo") == ["1", "2"]
    deleted = await answers.delete("1", "nobody")
    assert deleted.deleted == 1
    assert await answers.found("tokyo") == ["2"]
    assert (await answers.delete("1")).index_version == deleted.index_version, "there was nothing to delete"


async def test_equal_content_costs_nothing(answers):
    full = GOOD | {"title": "a film", "metadata": {"lang": "en"}, "readers": ["ann"], "reply": "good"}
    first = await answers.upsert(full)
    again = await answers.upsert(full, BAD)
    assert (again.written, again.unchanged, again.usage.prompt_tokens) == (1, 1, 6)
    last = await answers.upsert(full)
    assert (last.written, last.unchanged, last.usage.prompt_tokens) == (0, 1, 0)
    assert last.index_version == again.index_version == first.index_version + 1
    for changed in ({"title": "a movie"}, {"metadata": {"lang": "de"}}, {"readers": []}, {"reply": "bad"}):
        assert (await answers.upsert(full | changed)).written == 1, changed


async def test_no_passage_of_a_shorter_version_stays(answers):
    long = {"id": "1", "text": " ".join(["the film was good and the movie was bad."] * 20)}
    await answers.upsert(long)
    before = await answers.search("film movie", limit=50)
    assert len(before.passages) > 3
    await answers.upsert(GOOD)
    assert [one.text for one in (await answers.search("film movie", limit=50)).passages] == [GOOD["text"]]


@pytest.mark.parametrize(
    ("unit", "offsets"),
    [("CODE_POINT", (26, 39)), ("UTF8_BYTE", (30, 48)), ("UTF16", (27, 40))],
)
async def test_passages_say_where_they_are(answering, unit, offsets):
    text = "the film 🙂 was good, née. née 東 京 tokyo"
    async with answering(chunk_tokens=9) as answers:
        await answers.upsert({"id": "1", "title": "the movie", "text": text, "metadata": {"a": "b=c"}, "reply": "yes"})
        found = await answers.search("tokyo", offset_unit=f"OFFSET_UNIT_{unit}")
        best = found.passages[0]
        assert best.text == "née 東 京 tokyo"
        assert (best.start, best.end) == offsets
        assert (best.title, dict(best.metadata), best.reply) == ("the movie", {"a": "b=c"}, "yes")


async def test_words_and_vectors_both_find(answering):
    documents = [{"id": str(number), "text": text} for number, text in enumerate(["good film", "tokyo", "hamburg bad"])]
    async with answering(keyword_weight=1.0) as answers:
        await answers.upsert(*documents)
        found = (await answers.search("tokyo")).passages
        assert [one.document_id for one in found[:1]] == ["1"]
        assert found[0].score == 1
        assert found[0].keyword_score > 0
        assert all(one.keyword_score == one.score == 0 for one in found[1:])
        # The vocabulary has no such word: its vector is that of any unknown one.
        await answers.upsert({"id": "x", "text": "part XJ-2000 is out"})
        assert (await answers.found("xj 2000"))[0] == "x"


async def test_chinese_is_found_by_its_words(answering):
    async with answering(keyword_weight=1.0) as answers:
        await answers.upsert({"id": "1", "text": "银行提高了贷款利率"}, {"id": "2", "text": "足球比赛今晚开始"})
        found = (await answers.search("利率是多少")).passages
        assert found[0].document_id == "1"
        assert found[0].keyword_score > 0
        assert found[1].keyword_score == 0


async def test_filters_hold_for_each_passage(answers):
    tagged = [
        {"id": f"{lang}-{year}", "text": "film", "metadata": {"lang": lang, "year": year}}
        for lang in ("en", "de", "o'b\\r")
        for year in ("1", "2")
    ]
    await answers.upsert(*tagged, {"id": "none", "text": "film"})
    en, year = pb.Filter(key="lang", values=["en", "de"]), pb.Filter(key="year", values=["2"])
    assert set(await answers.found("film", filters=[en, year])) == {"en-2", "de-2"}
    assert set(await answers.found("film", filters=[pb.Filter(key="lang", values=["o'b\\r"])])) == {
        "o'b\\r-1",
        "o'b\\r-2",
    }
    assert await answers.found("film", filters=[pb.Filter(key="lang", values=["x'] OR TRUE OR ['"])]) == []
    assert len(await answers.found("film", limit=3)) == 3


async def test_the_ranking_model_orders_unless_told_otherwise(answering):
    documents = [{"id": "1", "text": "the film was"}, {"id": "2", "text": "great great tokyo"}]
    async with answering(ranking="reranker") as answers:
        await answers.upsert(*documents)
        ranked = await answers.search("the film")
        assert [one.document_id for one in ranked.passages] == ["2", "1"]
        assert ranked.passages[0].score == ranked.passages[0].ranking_score > 0.8
        assert ranked.ranking_model_version.startswith("reranker@")
        plain = await answers.search("the film", rerank=False)
        assert [one.document_id for one in plain.passages] == ["1", "2"]
        assert not plain.passages[0].HasField("ranking_score")
        assert plain.usage.prompt_tokens < ranked.usage.prompt_tokens


async def test_long_documents_are_split_and_long_titles_refused(answers, refused):
    await answers.upsert({"id": "1", "title": "a film", "text": "bad " * 300 + "tokyo"})
    assert "tokyo" in (await answers.search("tokyo")).passages[0].text
    title = answers.upsert(GOOD, BAD | {"title": "bad " * 30})
    error = await refused(title, grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("documents[1].title: leaves 0 of the model's 32 tokens to a passage; allowed: 8")
    assert (await answers.found("hamburg"))[:1] == ["1"], "nothing of the call was written"


async def test_an_unknown_index_is_named(answers, refused):
    error = await refused(answers.search("film", index="other"), grpc.StatusCode.NOT_FOUND)
    assert error.details().startswith("index 'other' is not served here; served: docs")


def test_a_server_without_indexes_needs_no_lancedb():
    code = "import sys; sys.modules['lancedb'] = None; from tuneserve.server import app"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"embedding": "sentiment"}, "indexes.docs.embedding: sentiment is sequence-classification"),
        ({"ranking": "vectors"}, "indexes.docs.ranking: vectors is embedding"),
        ({"generation": "vectors"}, "indexes.docs.generation: vectors is embedding"),
        ({"path": "/dev/null/docs"}, "indexes.docs.path: /dev/null/docs can't be made: Not a directory"),
    ],
)
async def test_an_index_that_can_not_be_is_refused_at_start(answering, index, message):
    with pytest.raises(UserError, match=message):
        async with answering(**index):
            pass
