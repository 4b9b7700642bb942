import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from tuneserve.server.engine.interface import Encoded
from tuneserve.server.text import windows
from tuneserve.server.text.tokenizer import Tokens


def tokens(body: int, special: bool = True) -> Tokens:
    """A text of `body` tokens 100, 101, ..., between [CLS] 2 and [SEP] 3."""
    ids, words = list(range(100, 100 + body)), list(range(body))
    if special:
        ids, words = [2, *ids, 3], [None, *words, None]
    encoding = SimpleNamespace(offsets=[(0, 0)] * len(ids), word_ids=words)
    return Tokens(Encoded(ids), encoding, len(ids), False)


def test_a_text_that_fits_is_one_window_and_stays_as_it_is():
    text = tokens(6)
    assert windows.split(text, 8, 2) == [windows.Window(text.encoded, 0, 8)]
    assert windows.count(text, 8, 2) == 1


def test_windows_have_the_special_tokens_and_overlap():
    found = windows.split(tokens(9), 8, 2)
    assert [one.encoded.token_ids for one in found] == [
        [2, 100, 101, 102, 103, 104, 105, 3],
        [2, 103, 104, 105, 106, 107, 108, 3],
    ], "the second would begin at 104, and shows more when moved back"
    assert [(one.start, one.end) for one in found] == [(1, 7), (4, 10)]


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("overlap", [0, 1, 4, 99])
@pytest.mark.parametrize("body", [1, 6, 7, 8, 9, 30, 31])
def test_every_token_is_shown_and_no_window_is_too_long(body, overlap, special):
    text = tokens(body, special)
    found = windows.split(text, 8, overlap)
    assert all(len(one.encoded.token_ids) <= 8 for one in found)
    assert {id_ for one in found for id_ in one.encoded.token_ids} == set(text.encoded.token_ids)
    assert windows.count(text, 8, overlap) == len(found)
    for one, following in itertools.pairwise(found):
        assert one.start < following.start <= one.end - min(overlap, 5)


def test_pooling_is_by_label():
    rows = [np.array([1, 5], dtype=np.float32), np.array([3, 1], dtype=np.float32)]
    assert windows.pool(rows, "mean").tolist() == [2, 3]
    assert windows.pool(rows, "max").tolist() == [3, 5]


def test_tokens_come_from_the_window_that_shows_most_around_them():
    text = tokens(14)
    found = windows.split(text, 10, 4)  # shows tokens 1 to 8, 5 to 12 and 7 to 14
    assert [(one.start, one.end) for one in found] == [(1, 9), (5, 13), (7, 15)]
    rows = [np.full((len(one.encoded.token_ids), 1), index, dtype=np.float32) for index, one in enumerate(found)]
    whole = windows.stitch(text, found, rows)[:, 0].tolist()
    # Token 6 is 2 before the first window's last and 1 behind the second's first; 7 is 1 and 2; 10 is 2 before the
    # second's last and 3 behind the third's first.
    assert whole[1:15] == [0] * 6 + [1] * 3 + [2] * 5


def test_stitched_rows_are_the_tokens_own():
    text = tokens(40)
    found = windows.split(text, 12, 3)
    # Each window's answer names its tokens, so that a row in a wrong place shows.
    rows = [np.array(one.encoded.token_ids, dtype=np.float32)[:, None] for one in found]
    assert windows.stitch(text, found, rows)[1:-1, 0].tolist() == list(range(100, 140))
