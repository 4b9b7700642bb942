import pytest

from tuneserve.server.answer.citations import cited, support
from tuneserve.v1 import answer_pb2 as pb

PASSAGE = pb.Passage(
    title="The deposit",
    text="The tenant pays a deposit to Ann Smith. It is at most 12,500 crowns. The bank keeps it until May 31.",
)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("A deposit is paid by the tenant to Ann Smith.", "The tenant pays a deposit to Ann Smith."),
        ("It is at most 12 500 crowns.", None),  # as two numbers
        ("It is at most 12.500 crowns.", "It is at most 12,500 crowns."),
        ("At most 12500 crowns, the bank keeps it until May 31.", PASSAGE.text),
        ("It is at most 13,500 crowns.", None),
        ("The tenant pays a deposit to Bob Smith.", None),
        ("The deposit can never be returned early without reason.", None),
        ("Deposit: the bank keeps it.", "The bank keeps it until May 31."),
        ("?", None),
    ],
)
def test_what_a_passage_says(sentence, expected):
    span = support(sentence, PASSAGE)
    assert (PASSAGE.text[slice(*span)] if span else None) == expected


def test_other_scripts():
    passage = pb.Passage(text="押金由租客支付。最多三个月租金。")
    span = support("租客支付押金。", passage)
    assert span
    assert passage.text[slice(*span)] == "押金由租客支付。"
    assert support("房东退还一切费用。", passage) is None


def test_a_marker_belongs_to_the_sentence_before_it():
    text = "Tenants do. It is high! Ask"
    assert cited(text, [(0, 9), (10, 1), (11, 1), (11, 2), (23, 3), (27, 1)]) == [
        ((0, 11), 1),
        ((0, 11), 2),
        ((12, 23), 3),
        ((24, 27), 1),
    ]
    assert cited("", [(0, 1)]) == []


def test_only_capitals_begin_names():
    passage = pb.Passage(text="Avgiften kan bli högre efter ett år, säger banken.")
    assert support("Avgiften kan bli högre, även efter ett år.", passage)
