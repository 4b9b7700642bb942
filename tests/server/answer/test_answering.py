"""What an index answers, and where it says that it has it from."""

import json
import math
import random
from pathlib import Path
from typing import Any

import grpc
import pytest

from tuneserve.errors import UserError
from tuneserve.v1 import answer_pb2 as pb

from .conftest import Answers

FILM = {"id": "film", "text": "the film was good. née 🙂 a movie was bad! great film."}
TOKYO = {"id": "tokyo", "title": "tokyo or hamburg", "text": "merkel in tokyo.", "reply": "angela lives in hamburg 🙂"}


def text(responses: list[pb.AnswerResponse]) -> str:
    return "".join(one.text for one in responses)


async def test_an_answer_has_what_was_found_then_text_then_an_end(answers: Answers):
    await answers.upsert(FILM, TOKYO)
    first, *middle, last = await answers.answer("what", "the film", "the movie")
    searched = await answers.search("the movie", limit=5)
    assert first.retrieval.query == "the movie"
    assert first.retrieval.found == searched
    assert not first.retrieval.HasField("answerable"), "there is no gate"
    assert all(one.text and not one.HasField("retrieval") and not one.HasField("end") for one in middle)
    assert last.end.outcome == pb.ANSWER_OUTCOME_ANSWERED
    assert last.end.usage == searched.usage
    assert len(last.end.citations) == len(middle)


@pytest.mark.parametrize("unit", ["CODE_POINT", "UTF8_BYTE", "UTF16"])
async def test_citations_are_exact_slices(answers: Answers, unit):
    encoding = {"CODE_POINT": "utf-32-le", "UTF8_BYTE": "utf-8", "UTF16": "utf-16-le"}[unit]
    wide = {"CODE_POINT": 4, "UTF8_BYTE": 1, "UTF16": 2}[unit]
    chance = random.Random(7)
    sentences = ["the film was good.", "née 🙂 movie!", "東京。", "angela merkel in hamburg\n", "great, bad or good? "]
    documents = {
        f"d{number}": "".join(chance.choice(sentences) + chance.choice([" ", ""]) for _ in range(30))
        for number in range(9)
    }
    await answers.upsert(*({"id": id_, "title": "a film", "text": one} for id_, one in documents.items()))
    for query in ("film", "angela", "東京", "movie hamburg good", "🙂"):
        *responses, last = await answers.answer(query, offset_unit=f"OFFSET_UNIT_{unit}")
        answer = text(responses).encode(encoding)
        assert last.end.citations
        for one in last.end.citations:
            document = documents[one.document_id].encode(encoding)
            part = document[one.document_start * wide : one.document_end * wide]
            assert answer[one.start * wide : one.end * wide] == part != b""


async def test_nothing_is_found(answers: Answers):
    for written in (False, True):
        if written:
            await answers.upsert(FILM | {"readers": ["ann"]})
        first, last = await answers.answer("film", readers=["bob"])
        assert not first.retrieval.found.passages
        assert last.end.outcome == pb.ANSWER_OUTCOME_NOT_FOUND
    _, *_, last = await answers.answer("film", readers=["ann"])
    assert last.end.outcome == pb.ANSWER_OUTCOME_ANSWERED


async def test_an_approved_reply_is_for_its_question_alone(answers: Answers):
    await answers.upsert(FILM, TOKYO)
    _, said, last = await answers.answer("Hamburg or Tokyo?", offset_unit="OFFSET_UNIT_UTF16")
    assert (said.text, last.end.outcome) == (TOKYO["reply"], pb.ANSWER_OUTCOME_REPLY)
    [citation] = last.end.citations
    assert (citation.document_id, citation.document_end) == ("tokyo", len(TOKYO["text"]))
    assert (citation.start, citation.end) == (0, len(TOKYO["reply"]) + 1)
    *_, last = await answers.answer("is merkel in tokyo")
    assert last.end.outcome == pb.ANSWER_OUTCOME_ANSWERED


async def test_outcomes_are_counted_from_zero(answers: Answers):
    def counted(outcome: str) -> float:
        return answers.server.app.metrics.registry.get_sample_value(
            "tuneserve_answers_total", {"index": "docs", "outcome": outcome}
        )

    assert [counted(one) for one in ("answered", "reply", "not_found")] == [0, 0, 0]
    await answers.answer("film")
    await answers.upsert(FILM)
    await answers.answer("film")
    assert [counted(one) for one in ("answered", "reply", "not_found")] == [1, 0, 1]


def gate(tmp_path: Path, answerable: float, reply: float, **fields: Any) -> Path:
    """A gate that goes by the overlap of words, from these shares on."""
    judges = {
        name: {"weights": {"overlap": 10.0}, "bias": -10 * share, "threshold": 0.5}
        for name, share in (("answerable", answerable), ("reply", reply))
    }
    file = tmp_path / "gate.json"
    file.write_text(json.dumps({"model": "vectors@1", "ranking_model": ""} | judges | fields))
    return file


async def test_a_gate_stops_what_is_no_answer(answering, tmp_path):
    async with answering(gate=gate(tmp_path, 0.5, 0.9)) as answers:
        await answers.upsert(FILM, TOKYO)
        first, *_, last = await answers.answer("the film was good")
        assert last.end.outcome == pb.ANSWER_OUTCOME_ANSWERED
        assert first.retrieval.answerable == pytest.approx(1 / (1 + math.exp(-5)))
        first, last = await answers.answer("what of bergen and oslo")
        assert last.end.outcome == pb.ANSWER_OUTCOME_NOT_FOUND
        assert 0 < first.retrieval.answerable < 0.1
        assert first.retrieval.found.passages, "that are shown"


async def test_a_gate_judges_by_more_than_the_passages_of_the_answer(answering, tmp_path):
    async with answering(gate=gate(tmp_path, 0.5, 0.9)) as answers:
        await answers.upsert(FILM, TOKYO, {"id": "3", "text": "a great movie"})
        all_, *_ = await answers.answer("great film in oslo", limit=20)
        one, *_ = await answers.answer("great film in oslo", limit=1)
        assert (len(all_.retrieval.found.passages), len(one.retrieval.found.passages)) == (3, 1)
        assert one.retrieval.answerable == all_.retrieval.answerable


async def test_a_gate_that_is_sure_gives_the_reply(answering, tmp_path):
    async with answering(gate=gate(tmp_path, 0.3, 0.6)) as answers:
        await answers.upsert(TOKYO)
        *_, last = await answers.answer("is merkel in tokyo")
        assert last.end.outcome == pb.ANSWER_OUTCOME_REPLY
        *_, last = await answers.answer("angela in tokyo or bergen")
        assert last.end.outcome == pb.ANSWER_OUTCOME_ANSWERED


async def test_a_gate_for_another_kind_of_search_is_refused(answering, tmp_path):
    with pytest.raises(UserError, match=r"indexes\.docs\.gate: .*gate\.json was fitted with a ranking model"):
        async with answering(gate=gate(tmp_path, 0.5, 0.9, ranking_model="reranker@1")):
            pass


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"messages": []}, "messages: has 0 entries; allowed: 1 to 64"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages[0].role: is none of user, assistant"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages[0].role: is assistant; the last message"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages[0].content: is empty or blank"),
        ({"messages": [{"role": "user", "content": "a" * 8193}]}, "messages[0].content: has 8193 characters"),
        ({"limit": 0}, "limit: is 0; allowed: 1 to 20, or unset for 5"),
        ({"limit": 21}, "limit: is 21; allowed: 1 to 20, or unset for 5"),
        ({"readers": [""]}, "readers[0]: is empty or blank"),
        ({"filters": [{"key": "a b", "values": ["c"]}]}, "filters[0].key: is not a key"),
        ({"offset_unit": 9}, "offset_unit: is 9"),
    ],
)
async def test_wrong_fields_are_named(answers: Answers, refused, fields, said):
    error = await refused(answers.answer("film", **fields), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith(said)


async def test_an_unknown_index_is_named(answers: Answers, refused):
    error = await refused(answers.answer("film", index="other"), grpc.StatusCode.NOT_FOUND)
    assert error.details().startswith("index 'other' is not served here; served: docs")


async def test_the_ranking_model_is_asked(answering):
    async with answering(ranking="reranker") as answers:
        await answers.upsert({"id": "1", "text": "the film was"}, {"id": "2", "text": "great great tokyo"})
        first, *_, last = await answers.answer("the film")
        assert first.retrieval.found.ranking_model_version.startswith("reranker@")
        assert last.end.citations[0].document_id == "2"
