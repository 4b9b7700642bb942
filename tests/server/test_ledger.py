"""Accounts of a folder that is opened several times, as by several processes."""

import threading

import pytest

from tuneserve.errors import UserError
from tuneserve.server import ledger
from tuneserve.server.ledger import Ledger


def test_a_name_has_the_same_account_for_all(tmp_path):
    first, second = Ledger(tmp_path), Ledger(tmp_path)
    a = first.accounts(["a", "b"])["a"]
    found = second.accounts(["c", "b", "a"])
    with first.locked():
        a.numbers[0], a.numbers[3] = 1 << 62, -5
    assert list(found["a"].numbers) == [1 << 62, 0, 0, -5]
    assert list(found["b"].numbers) == list(found["c"].numbers) == [0] * 4
    found["c"].numbers[0] = 7
    assert list(first.accounts(["c"])["c"].numbers) == [7, 0, 0, 0]


def test_one_at_a_time(tmp_path):
    first, second = Ledger(tmp_path), Ledger(tmp_path)
    got = threading.Event()

    def lock() -> None:
        with second.locked():
            got.set()

    thread = threading.Thread(target=lock)
    with first.locked():
        thread.start()
        assert not got.wait(0.1)
    assert got.wait(20)
    thread.join()


def test_too_many_names(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "_MOST", 2)
    one = Ledger(tmp_path)
    one.accounts(["a", "b"])
    with pytest.raises(UserError, match="3 tenants since the start; allowed: 2"):
        one.accounts(["c"])
    assert one.accounts(["a"])
