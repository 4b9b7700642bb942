"""What is sent: prefixes, and the turns of chats."""

from pathlib import Path

import pytest

from tuneserve.benchmarks.serving.load.bench import measure
from tuneserve.benchmarks.serving.load.inputs import conversations
from tuneserve.benchmarks.serving.load.settings import Share
from tuneserve.errors import UserError

from ..conftest import Server, settings


def test_a_prefix_is_the_same_in_a_run_and_another_one_in_the_next() -> None:
    chosen = settings("x:1", "m", prefix_len=20, batch=2)
    runs = [conversations(chosen, "classify", Share(number=number)) for number in (10**7, 2 * 10**7)]
    first, second = ([text.split() for _ in range(3) for text in next(run)[0].texts] for run in runs)
    assert {tuple(words[:20]) for words in first} == {tuple(first[0][:20])}
    assert first[0][:20] != second[0][:20]
    assert [words[20] for words in first] == [str(10**7 + index) for index in range(6)]


def test_a_query_is_ranked_against_other_texts(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a\nb\nc\nd\n")
    [request] = next(conversations(settings("x:1", "m", batch=3, texts=texts), "rank", Share(number=10**7)))
    assert request.query == "10000000 a"
    assert request.texts == ["10000001 b", "10000002 c", "10000003 d"]


async def test_each_turn_has_the_messages_before(served: tuple[Server, str]) -> None:
    server, target = served
    result = await measure(settings(target, "chat", turns=3, connections=1, prefix_len=5, seconds=1.0))
    chats = [[(one.role, one.content) for one in request.prompt.chat.messages] for request in server.requests]
    assert [len(chat) for chat in chats[:6]] == [1, 3, 5, 1, 3, 5]
    roles = [role for role, _ in chats[2]]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    assert chats[2][:3] == chats[1]
    assert chats[1][:1] == chats[0]
    # What the server answered, in all of its messages.
    assert chats[1][1][1] == "ab" * 4
    # The prefix is only before the first.
    assert [len(chats[0][0][1].split()) > 5, chats[1][2][1].split()[0].isdigit()] == [True, True]
    assert chats[3][0][1].split()[:5] == chats[0][0][1].split()[:5]
    # Each turn is a call.
    assert result.calls > 3


async def test_turns_need_a_chat(served: tuple[Server, str]) -> None:
    for model, call in (("sentiment", "classify"), ("plain", "generate")):
        with pytest.raises(UserError, match=f"--turns 2: needs --call chat, not {call}"):
            await measure(settings(served[1], model, turns=2))
