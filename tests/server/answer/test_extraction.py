import pytest

from tuneserve.server.answer.extraction import extracted
from tuneserve.v1 import answer_pb2 as pb

RENT = pb.Passage(
    title="The flat",
    text="The flat has two rooms. The deposit is three rents. It is paid to a bank. Pets are allowed. Smoking is not.",
)
MOVING = pb.Passage(text="You get the keys on the first day. The landlord returns the deposit after six months.")
FAQ = pb.Passage(title="Who pays the deposit?", text="The tenant does. It is at most three rents. Not in cash.")


def quoted(query: str, *passages: pb.Passage) -> list[str]:
    return [passages[one.passage].text[one.start : one.end] for one in extracted(query, passages)]


def test_the_sentences_that_a_query_asks_for_and_what_follows():
    assert quoted("How much is the deposit?", RENT) == [
        "The deposit is three rents.",
        "It is paid to a bank.",
        "Pets are allowed.",
    ]


def test_what_the_title_asks_is_answered_from_the_beginning():
    assert quoted("who pays the deposit", FAQ, RENT)[0] == "The tenant does."
    assert len(quoted("who pays the deposit", FAQ)) == 3


def test_another_passage_says_what_is_missing():
    assert quoted("How much is the deposit and when is it returned?", RENT, MOVING) == [
        "The deposit is three rents.",
        "The landlord returns the deposit after six months.",
    ]


@pytest.mark.parametrize("text", ["one", "第一句。第二句。", "no end\nno end"])
def test_every_passage_has_an_answer(text):
    whole = quoted("東京", pb.Passage(text=text))
    assert whole[0] == text.split("。")[0].split("\n")[0] + "。" * ("。" in text)
    assert extracted("", [pb.Passage(text=text)]), "also for a query without words"
