from typing import Any

import pytest

from tuneserve.client import Document, InvalidInput, NotFound


async def test_documents_are_written_found_and_deleted(ask: Any) -> None:
    full = Document("client-1", "a film", title="good", metadata={"lang": "en"}, readers=["ann"], reply="yes")
    plain = Document("client-2", "the film")
    written = await ask("upsert_documents", "docs", [full, plain])
    assert (written.written, written.unchanged) == (2, 0)
    assert written.model_version.startswith("vectors@")
    again = await ask("upsert_documents", "docs", [plain])
    assert (again.written, again.unchanged, again.index_version) == (0, 1, written.index_version)

    found = await ask("search", "docs", "film", readers=["ann"], filters={"lang": ["de", "en"]})
    [one] = found
    assert (one.document_id, one.title, one.text, one.start, one.end) == ("client-1", "good", "a film", 0, 6)
    assert (one.metadata, one.reply, one.ranking_score) == ({"lang": "en"}, "yes", None)
    assert one.score == pytest.approx(1)
    assert one.dense_score == pytest.approx(1, abs=0.1)
    assert one.keyword_score > 0
    assert (found.index_version, found.ranking_model_version) == (written.index_version, "")
    assert found.usage.prompt_tokens > 0
    assert [one.document_id for one in await ask("search", "docs", "film", filters={"lang": "en"})] == []
    assert len(await ask("search", "docs", "film", readers=["ann"], limit=1)) == 1

    assert [one.document_id for one in await ask("search", "docs", liked=["client-2"])] == []
    like = await ask("search", "docs", "film", liked=["client-2"], disliked=["nobody"], readers=["ann"])
    assert [one.document_id for one in like] == ["client-1"]

    deleted = await ask("delete_documents", "docs", ["client-1", "client-2", "nobody"])
    assert (deleted.deleted, deleted.index_version > written.index_version) == (2, True)


async def test_a_question_is_answered(ask: Any) -> None:
    await ask("upsert_documents", "docs", [Document("answer", "the film 🙂 was good. bad", readers=["client"])])
    turns = [{"role": "user", "content": "tokyo"}, {"role": "assistant", "content": "no"}]
    for question in ("the film", [*turns, {"role": "user", "content": "the film"}]):
        texts, answer = await ask("answer", "docs", question, readers=["client"], filters={})
        assert texts == ["the film 🙂 was good.", " bad"]
        assert (answer.text, answer.outcome, answer.query) == ("".join(texts), "answered", "the film")
        assert [one.document_id for one in answer.passages] == ["answer"]
        first, last = answer.citations
        assert (first.start, first.end, first.document_start, first.document_end) == (0, 20, 0, 20)
        assert (last.start, last.document_end) == (21, 24)
        assert answer.usage.prompt_tokens > 0
        assert (answer.answerable, answer.citations_dropped, answer.generation_model_version) == (None, 0, "")
    texts, answer = await ask("answer", "docs", "film", filters={"lang": "no"})
    assert (texts, answer.text, answer.outcome) == ([], "", "not-found")
    await ask("delete_documents", "docs", ["answer"])


async def test_wrong_calls_raise(ask: Any) -> None:
    with pytest.raises(NotFound, match="index 'other' is not served here"):
        await ask("search", "other", "film")
    with pytest.raises(InvalidInput, match="rerank: is true; this index has no ranking model"):
        await ask("search", "docs", "film", rerank=True)
    with pytest.raises(InvalidInput, match="max_tokens: is set; this index has no generation model"):
        await ask("answer", "docs", "film", max_tokens=7)
