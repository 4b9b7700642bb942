"""Answers that a generation model writes: what it reads, and what becomes of what it writes."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import pytest

from tuneserve.server.call.tenants import hashed
from tuneserve.server.engine.interface import Delta, Sampling
from tuneserve.v1 import answer_pb2 as pb

from .conftest import Answers

RENT = {"id": "rent", "title": "rent", "text": "Née: the tenant pays 300 crowns. The bank keeps the deposit."}
PETS = {"id": "pets", "title": "pets", "text": "Pets are allowed in Bergen."}
ASKED = "who pays the rent"


class Model:
    """The chat model: it writes what a test says, word by word, and keeps what it was asked."""

    def __init__(self, answers: Answers, *texts: str) -> None:
        self.engine = answers.server.engines["chat"]
        self.tokenizer = answers.server.app.models.latest("chat").tokenizer
        self.texts = list(texts)
        self.prompts = list[str]()
        self.engine.writes = self._write

    def _write(self, token_ids: Sequence[int], sampling: Sampling, stream: bool) -> list[Delta]:
        self.prompts.append(self.tokenizer._hf.decode(token_ids))
        words = self.texts.pop(0).split(" ")
        pieces = [" " * bool(at) + word for at, word in enumerate(words)]
        if not stream:
            pieces = ["".join(pieces)]
        return [
            Delta(0, piece, [7], finish="stop" if at == len(pieces) - 1 else None) for at, piece in enumerate(pieces)
        ]


def text(responses: list[pb.AnswerResponse]) -> str:
    return "".join(one.text for one in responses)


def counted(answers: Answers, result: str) -> float:
    found = answers.server.app.metrics.registry.get_sample_value
    return found("tuneserve_citations_total", {"index": "docs", "result": result})


async def test_a_model_writes_from_numbered_passages(answering: Callable[..., Any]) -> None:
    async with answering(generation="chat") as answers:
        await answers.upsert(RENT, PETS)
        model = Model(answers, "The tenant pays 300 crowns [1]. 🙂 The bank keeps it [1][9]. It costs 400 crowns [1].")
        assert [counted(answers, one) for one in ("kept", "dropped")] == [0, 0]
        first, *middle, last = await answers.answer(ASKED, offset_unit="OFFSET_UNIT_UTF8_BYTE")
        # Which passage is number 1 is the search's to say.
        number = [one.document_id for one in first.retrieval.found.passages].index("rent") + 1
        assert f"[{number}] rent\n{RENT['text']}" in model.prompts[0]
        assert model.prompts[0].endswith(f"Question: {ASKED}<|end|><|assistant|>")
        assert len(middle) > 5, "as it is written"
        assert text(middle) == "The tenant pays 300 crowns. 🙂 The bank keeps it. It costs 400 crowns."
        assert last.end.generation_model_version == answers.server.app.models.latest("chat").id
        assert last.end.usage.completion_tokens == 17
        if number == 1:
            assert last.end.outcome == pb.ANSWER_OUTCOME_ANSWERED
            whole, document = text(middle).encode(), RENT["text"].encode()
            said = [
                (whole[one.start : one.end].decode(), document[one.document_start : one.document_end].decode())
                for one in last.end.citations
            ]
            assert said == [
                ("The tenant pays 300 crowns.", "Née: the tenant pays 300 crowns."),
                ("🙂 The bank keeps it.", "The bank keeps the deposit."),
            ]
            assert last.end.citations_dropped == 2
            assert [counted(answers, one) for one in ("kept", "dropped")] == [2, 2]


@pytest.mark.parametrize("written", ["NOT_FOUND", " Not found. The passages say nothing", "[1]", ""])
async def test_a_model_that_finds_no_answer(answering: Callable[..., Any], written: str) -> None:
    async with answering(generation="chat") as answers:
        await answers.upsert(RENT)
        Model(answers, written)
        *responses, last = await answers.answer(ASKED)
        assert (text(responses), last.end.outcome) == ("", pb.ANSWER_OUTCOME_NOT_FOUND)
        assert not last.end.citations


@pytest.mark.parametrize(
    ("written", "dropped"), [("The tenant pays 300 crowns.", 0), ("It costs 400 crowns [1]. Cats are welcome [2].", 2)]
)
async def test_a_text_without_a_citation_that_holds_is_no_answer_from_the_documents(
    answering: Callable[..., Any], written: str, dropped: int
) -> None:
    async with answering(generation="chat") as answers:
        await answers.upsert(RENT)
        Model(answers, written)
        *responses, last = await answers.answer(ASKED)
        assert text(responses)
        assert (last.end.outcome, last.end.citations_dropped) == (pb.ANSWER_OUTCOME_UNGROUNDED, dropped)
        count = answers.server.app.metrics.registry.get_sample_value
        labels = ({"index": "docs", "outcome": one} for one in ("ungrounded", "answered"))
        assert [count("tuneserve_answers_total", one) for one in labels] == [1, 0]


async def test_replies_and_what_is_not_found_ask_no_model(answering: Callable[..., Any]) -> None:
    async with answering(generation="chat") as answers:
        model = Model(answers)
        *_, last = await answers.answer(ASKED)
        assert last.end.outcome == pb.ANSWER_OUTCOME_NOT_FOUND
        await answers.upsert(RENT | {"reply": "The tenant."})
        _, said, last = await answers.answer("Rent?")
        assert (said.text, last.end.outcome) == ("The tenant.", pb.ANSWER_OUTCOME_REPLY)
        assert not model.prompts


async def test_a_question_that_refers_back_is_rewritten(answering: Callable[..., Any]) -> None:
    async with answering(generation="chat") as answers:
        await answers.upsert(RENT, PETS)
        turns = ("are pets allowed in Bergen", "Yes.", "and in Oslo?")
        model = Model(answers, "are pets allowed in Oslo", "No.")
        first, *_ = await answers.answer(*turns)
        assert first.retrieval.query == "are pets allowed in Oslo"
        assert "Last question: and in Oslo?" in model.prompts[0]
        assert model.prompts[1].startswith("<|user|>are pets allowed in Bergen<|end|><|assistant|>Yes.<|end|>")
        assert "Question: are pets allowed in Oslo<" in model.prompts[1]
        model.texts = ["What a lovely day", "No."]
        first, *_ = await answers.answer(*turns)
        assert first.retrieval.query == "and in Oslo?", "what it made of it is something else"
        model.texts = ["No."]
        await answers.answer(*turns[:2], "how much is the rent of a tenant")
        assert not model.texts


async def test_sampling(answering: Callable[..., Any], refused: Any) -> None:
    async with answering(generation="chat") as answers:
        await answers.upsert(RENT)
        model = Model(answers, "a", "b")
        await answers.answer(ASKED)
        await answers.answer(ASKED, max_tokens=7, temperature=0.5, seed=9)
        plain, asked = model.engine.sampled[-2:]
        assert (plain.max_tokens, plain.temperature, plain.seed) == (512, 0, None)
        assert (asked.max_tokens, asked.temperature, asked.seed) == (7, 0.5, 9)
        for fields, said in [
            ({"max_tokens": 0}, "max_tokens: is 0; allowed: 1 to 16384"),
            ({"max_tokens": 2000}, "messages: leave 0 of the 2048 tokens that chat@"),
            ({"temperature": -1}, "temperature: "),
        ]:
            error = await refused(answers.answer(ASKED, **fields), grpc.StatusCode.INVALID_ARGUMENT)
            assert error.details().startswith(said)


async def test_as_many_passages_as_the_model_reads(answering: Callable[..., Any]) -> None:
    async with answering(generation="chat") as answers:
        long = {"id": "long", "text": "the rent " * 160}
        await answers.upsert(RENT, *(long | {"id": str(number)} for number in range(9)))
        model = Model(answers, "a")
        await answers.answer("the rent", limit=20, max_tokens=1000)
        assert "[1] " in model.prompts[0]
        assert "[20] " not in model.prompts[0]


async def test_a_refused_model_call_refuses_the_call(answering: Callable[..., Any], refused: Any) -> None:
    async with answering(generation="chat") as answers:
        await answers.upsert(RENT)
        Model(answers, "a").engine.broken = RuntimeError("canary")
        error = await refused(answers.answer(ASKED), grpc.StatusCode.INTERNAL)
        assert "canary" not in error.details()


async def test_a_tenant_without_the_model(answering: Callable[..., Any], refused: Any, tmp_path: Any) -> None:
    tenants = {"acme": {"keys": [hashed("acme-key")], "models": ["vectors"]}}
    (tmp_path / "tenants.yaml").write_text(json.dumps({"tenants": tenants}))
    async with answering({"tenants": tmp_path / "tenants.yaml"}, generation="chat") as server:
        acme = Answers(server.server, "acme-key")
        await acme.upsert(RENT)
        await refused(acme.answer(ASKED), grpc.StatusCode.PERMISSION_DENIED)


async def test_without_a_generation_model_its_fields_are_refused(answers: Answers, refused: Any) -> None:
    for field in ("max_tokens", "temperature", "seed"):
        error = await refused(answers.answer("film", **{field: 1}), grpc.StatusCode.INVALID_ARGUMENT)
        assert error.details().startswith(f"{field}: is set; this index has no generation model")
