import re
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneserve.server.answer.chunks import sentences, split


def words(text: str) -> list[tuple[int, int]]:
    """A token for each word and each sign; in scripts without spaces, for each character."""
    return [match.span() for match in re.finditer(r"[a-zA-Z0-9]+|\S", text)]


def parts(text: str, most: int) -> list[str]:
    return [text[start:end] for start, end in split(text, words(text), most)]


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("One two. Three four. Five.", 6, ["One two. Three four.", "Five."]),
        ("One two. Three four. Five.", 100, ["One two. Three four. Five."]),
        ('He said "go." Then he went.', 7, ['He said "go."', "Then he went."]),
        ("It costs 3.50 a day. Ask.", 8, ["It costs 3.50 a day.", "Ask."]),
        ("Title\n\nFirst line\nsecond", 2, ["Title", "First line", "second"]),
        (
            "银行提高了利率。客户很不满！他们说：“不行。”走了",
            11,
            ["银行提高了利率。", "客户很不满！", "他们说：“不行。”走了"],
        ),
        ("a long sentence without any end", 2, ["a long", "sentence without", "any end"]),
        ("银行提高了利率", 3, ["银行提", "高了利", "率"]),
        ("  spaces around.  ", 9, ["spaces around."]),
        ("\n \n", 9, []),
    ],
)
def test_sentences_stay_whole_where_they_fit(text, most, expected):
    assert parts(text, most) == expected


@given(st.text("ab. !。\n东é", max_size=60), st.integers(1, 9))
def test_nothing_is_lost_and_none_is_too_long(text, most):
    found = split(text, words(text), most)
    for (_, end), (start, _) in pairwise(found):
        assert end <= start
    assert "".join("".join(text[start:end] for start, end in found).split()) == "".join(text.split())
    assert all(len(words(text[start:end])) <= most for start, end in found)


def test_a_token_may_begin_with_the_space_before_its_word():
    text = "one two three four"
    assert [text[a:b] for a, b in split(text, [(0, 3), (3, 7), (7, 13), (13, 18)], 3)] == ["one two three", "four"]


def test_a_character_of_several_tokens_stays_whole():
    text = "東京。"
    assert split(text, [(0, 1)] * 3 + [(1, 2)] * 3 + [(2, 3)], 2) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("piece", [".", "?!", ". ", ".'", ".)", "。", "\n", " ", "a\n ", "…”"])
def test_no_text_takes_long(piece):
    """A regular expression can't be interrupted, and nothing else runs meanwhile."""
    text = (piece * (1 << 17))[: 1 << 17]
    began = time.thread_time()
    sentences(text)
    assert time.thread_time() - began < 1


def test_the_sentences_of_a_text():
    text = " One two.  Three?\n\n第一句。第二句  "
    assert [text[start:end] for start, end in sentences(text)] == ["One two.", "Three?", "第一句。", "第二句"]
    assert sentences(" \n ") == []
