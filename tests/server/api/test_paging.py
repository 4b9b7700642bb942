"""Pages of long lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneserve.server.api.paging import page
from tuneserve.server.call.errors import InvalidInput


@given(st.sets(st.text(min_size=1, max_size=5)), st.integers(0, 7))
def test_the_pages_are_the_list(names, size):
    items, found, token = sorted(names), list[str](), ""
    for _ in range(len(items) + 1):
        some, token = page(items, str, size, token)
        assert len(some) <= (size or 100)
        found += some
        if not token:
            break
    assert found == items


def test_entries_may_come_and_go_between_two_pages():
    first, token = page(["b", "d", "f"], str, 2, "")
    assert first == ["b", "d"]
    # The last one that was seen is gone, and new ones came before and behind it.
    assert page(["a", "b", "e", "f"], str, 2, token) == (["e", "f"], "")


def test_bounds():
    items = [f"{number:05}" for number in range(2000)]
    assert len(page(items, str, 0, "")[0]) == 100
    assert len(page(items, str, 5000, "")[0]) == 1000
    assert page([], str, 0, "") == ([], "")
    with pytest.raises(InvalidInput, match="page_size: is -1; allowed: 0 to 1000"):
        page(items, str, -1, "")
    for token in ("?", "abc", "//79", "é"):
        with pytest.raises(InvalidInput, match="page_token: is not a next_page_token of an answer"):
            page(items, str, 1, token)
    with pytest.raises(InvalidInput, match=r"page_size: is -1.*; page_token: is not"):
        page(items, str, -1, "?")
