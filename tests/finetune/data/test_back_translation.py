"""Rows translated and back: what is asked of the server, what is kept, and what is dropped."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tuneserve.checkpoint.rows import Row
from tuneserve.errors import UserError
from tuneserve.finetune import config
from tuneserve.finetune.data import back_translation
from tuneserve.server import concurrency
from tuneserve.v1 import generation_pb2 as gen
from tuneserve.v1 import generation_pb2_grpc

ROWS: list[Row] = [
    {"text": "a good film", "label": "positive"},
    {"text": "a dull film", "text_pair": "with songs", "label": "negative"},
]


class Translator(generation_pb2_grpc.GenerationServiceServicer):
    """Turns a text around, and back again with another last word; can't end a long text, and refuses a longer one."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.version = "chat@1"

    async def Tokenize(self, request: gen.TokenizeRequest, context: Any) -> gen.TokenizeResponse:
        if request.model != "chat":
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model}; there is chat")
        return gen.TokenizeResponse(model_version=self.version)

    async def Generate(self, request: gen.GenerateRequest, context: Any) -> gen.GenerateResponse:
        [message] = request.prompt.chat.messages
        asked, _, text = message.content.partition("\n\n")
        self.asked.append(f"{asked.split()[5].rstrip('.')}: {text}")
        assert request.sampling.temperature == 0
        if "refused" in text:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "prompt is too long")
        said = " ".join(reversed(text.split()))
        if "into English" in asked and "same" not in said:
            said = said.rsplit(" ", 1)[0] + " movie"
        reason = gen.FINISH_REASON_LENGTH if "long" in text else gen.FINISH_REASON_STOP
        completion = gen.Completion(text=f" {said}\n", finish_reason=reason)
        return gen.GenerateResponse(completions=[completion], model_version=self.version)


@pytest.fixture
def translator() -> Translator:
    return Translator()


@pytest.fixture
async def address(translator: Translator) -> AsyncIterator[str]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(translator, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


async def translated(address: str, rows: list[Row], **values: Any) -> back_translation.BackTranslated:
    given = {"task": "sequence-classification", "base_model": "m", "train": "d.jsonl", "output": "o"}
    given |= {"back_translation": ["German"], "translation_server": address, "translation_model": "chat"}
    # In a thread of its own, as the server runs in this one.
    return await concurrency.apart(back_translation.of, rows, config.parse(given | values, Path()))


async def test_rows_in_other_words(translator: Translator, address: str, cache: Path) -> None:
    found = await translated(address, ROWS)
    # In the words that came back, in their order, with all else of the row.
    assert list(found.rows) == [
        {"text": "a good movie", "label": "positive"},
        {"text": "a dull movie", "text_pair": "with movie", "label": "negative"},
    ]
    assert found.dropped == {}
    assert sorted(translator.asked) == [
        *("English: film dull a", "English: film good a", "English: songs with"),
        *("German: a dull film", "German: a good film", "German: with songs"),
    ]
    # A second time nothing is asked for; another version has to answer for itself.
    assert await translated(address, ROWS) == found
    assert len(translator.asked) == 6
    translator.version = "chat@2"
    assert await translated(address, ROWS) == found
    assert len(translator.asked) == 12
    with sqlite3.connect(cache / back_translation.DATABASE) as kept:
        assert kept.execute("SELECT count(*) FROM translations").fetchone() == (12,)


async def test_what_is_dropped(address: str) -> None:
    texts = ["the same, again!", "a long film", "refused film", "a good film"]
    found = await translated(address, [{"text": text, "label": "a"} for text in texts])
    assert [row["text"] for row in found.rows] == ["a good movie"]
    assert found.dropped == {"the same words": 1, "empty or unfinished": 2}


async def test_each_language_once(address: str) -> None:
    found = await translated(address, ROWS[:1], back_translation=["German", "French"])
    assert [row["text"] for row in found.rows] == ["a good movie"]
    assert found.dropped == {"the same words": 1}


async def test_only_some_rows_are_asked_for(translator: Translator, address: str) -> None:
    rows: list[Row] = [{"text": "good film", "label": f"{number}"} for number in range(20)]
    first = await translated(address, rows, translation_rows=3)
    assert len(first.rows) == 3
    # Equal texts are asked for once.
    assert len(translator.asked) == 2
    assert await translated(address, rows, translation_rows=3) == first
    assert await translated(address, rows, translation_rows=3, seed=1) != first


async def test_queries_of_a_search(address: str) -> None:
    rows: list[Row] = [{"query": "which good film", "positive": "this film"}]
    found = await translated(address, rows, task="ranking")
    assert list(found.rows) == [{"query": "which good movie", "positive": "this film"}]


async def test_a_server_that_can_not_translate(address: str) -> None:
    with pytest.raises(UserError, match=r"translation_server: .*no model draw; there is chat"):
        await translated(address, ROWS, translation_model="draw")
    with pytest.raises(UserError, match=r"translation_server: 127\.0\.0\.1:9: "):
        await translated("127.0.0.1:9", ROWS)


def test_nothing_is_asked_for_without_it(tmp_path: Path) -> None:
    given = {"task": "sequence-classification", "base_model": "m", "train": "d.jsonl", "output": "o"}
    assert back_translation.of(ROWS, config.parse(given, tmp_path)) == back_translation.BackTranslated()


def test_the_address_is_not_in_the_lineage(tmp_path: Path) -> None:
    given = {"task": "sequence-classification", "base_model": "m", "train": "d.jsonl", "output": "o"}
    given |= {"back_translation": ["German"], "translation_server": "inside:8033", "translation_model": "chat"}
    public = config.parse(given, tmp_path).public()
    assert public["translation_model"] == "chat"
    assert "inside" not in str(public)
