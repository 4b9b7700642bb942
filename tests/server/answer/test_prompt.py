import pytest

from tuneserve.server.answer import prompt
from tuneserve.v1 import answer_pb2 as pb


def turns(*texts: str) -> list[pb.AnswerMessage]:
    """The user's and the assistant's, one after the other."""
    return [pb.AnswerMessage(role=("user", "assistant")[at % 2], content=text) for at, text in enumerate(texts)]


def test_passages_are_numbered_after_the_turns_before():
    passages = [pb.Passage(title="Deposit", text="Tenants do."), pb.Passage(text="In cash.")]
    first, second, last = prompt.answering(
        turns("Hello", "Hi", "Who pays it?"), "Who pays the deposit?", passages
    ).messages
    assert [(one.role, one.content) for one in (first, second)] == [("user", "Hello"), ("assistant", "Hi")]
    assert last.role == "user"
    instruction, *rest = last.content.split("\n\n")
    assert "write only NOT_FOUND" in instruction
    assert rest == ["[1] Deposit\nTenants do.", "[2] In cash.", "Question: Who pays the deposit?"]


def test_the_last_turns_begin_with_the_users():
    messages = prompt.answering(turns(*(str(number) for number in range(8)), "?"), "?", []).messages
    assert [one.content for one in messages[:-1]] == ["4", "5", "6", "7"]
    cut = prompt.answering([*turns("a", "b"), *turns("c", "d", "e", "f")[1:], *turns("?")], "?", []).messages
    assert cut[0].role == "user"


def test_history_is_quoted_in_one_message():
    [one] = prompt.rewriting(turns("Who pays the deposit?", "x" * 900, "And in Bergen?")).messages
    assert f"user: Who pays the deposit?\nassistant: {'x' * 500}\n\nLast question: And in Bergen?" in one.content


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("When does it end?", True),
        ("And in Bergen?", True),
        ("Why?", True),
        ("Gilt das auch für Hunde?", True),
        ("它多少钱?", True),
        ("利率?", True),
        ("Who pays the deposit of a flat?", False),
        ("房租押金应该由谁支付以及什么时候支付?", False),
        ("Please explain to me in detail how it is that the deposit of a flat is paid", False),
    ],
)
def test_which_questions_refer_back(question, expected):
    assert prompt.refers_back(turns("Who pays the deposit?", "Tenants do.", question)) == expected
    assert not prompt.refers_back(turns(question)), "nothing is before it"


@pytest.mark.parametrize(
    ("rewritten", "holds"),
    [
        (" Who pays the deposit in Bergen?\n", True),
        ("Who pays the deposit?", False),  # Bergen is lost
        ("Who is the mayor of Bergen and what about taxes in Norway?", False),
        ("Who pays the deposit in Bergen?\nTenants do.", False),
        ("", False),
        ("Bergen " * 100, False),
    ],
)
def test_a_rewritten_question_is_checked(rewritten, holds):
    messages = turns("Who pays the deposit?", "Tenants do.", "And in Bergen?")
    assert prompt.checked(messages, rewritten) == (rewritten.strip() if holds else "And in Bergen?")
