"""Bytes that callers make the server hold, by numbers alone."""

import asyncio

import pytest

from tuneserve.server.call.errors import Overloaded
from tuneserve.server.call.shares import Shares

MIB = 1 << 20
ONE, OTHER = ("ipv4:10.0.0.1:1", "a"), ("ipv4:10.0.0.1:2", "a")


@pytest.fixture
def rejected() -> list[None]:
    return []


@pytest.fixture
def shares(rejected) -> Shares:
    return Shares(10 * MIB, 4 * MIB, "answers wait to be read", "UNREAD", lambda: rejected.append(None))


def test_one_caller_has_its_share(shares, rejected):
    shares.add(ONE, 3 * MIB)
    shares.add(ONE, MIB)
    with pytest.raises(Overloaded, match=r"answers wait to be read: 4194304 bytes .* allowed now: 4194304") as caught:
        shares.add(ONE, 1)
    assert (caught.value.reason, caught.value.retry_ms) == ("UNREAD", 1000)
    assert len(rejected) == 1
    assert shares.bytes == 4 * MIB, "what is refused is not held"
    shares.add(OTHER, 4 * MIB)
    shares.remove(ONE, MIB)
    shares.add(ONE, MIB)


def test_one_message_may_have_any_size(shares):
    shares.add(ONE, 9 * MIB)
    with pytest.raises(Overloaded):
        shares.check(ONE)
    shares.remove(ONE, 9 * MIB)
    shares.add(ONE, 90 * MIB)


def test_while_all_is_held_each_has_a_little(shares):
    shares.add(ONE, 10 * MIB)
    shares.add(OTHER, MIB)
    with pytest.raises(Overloaded, match=f"allowed now: {MIB}"):
        shares.add(OTHER, 1)
    third = ("ipv4:10.0.0.2:1", "b")
    with pytest.raises(Overloaded):
        shares.add(third, MIB + 1)
    shares.add(third, MIB)


def test_what_a_call_holds_itself_is_not_held_against_it(shares):
    with shares.holding(ONE) as hold:
        hold(9 * MIB)
        hold(9 * MIB)
        assert shares.bytes == 18 * MIB
        with shares.holding(OTHER) as other:
            with pytest.raises(Overloaded):
                other(2 * MIB)
            other(MIB)
            # Beside others, the sum counts for it, too.
            with pytest.raises(Overloaded):
                hold(1)
    assert shares.bytes == 0
    shares.add(ONE, 4 * MIB)


def test_what_is_held_ends_with_the_block_however_it_ends(shares):
    def fail() -> None:
        with shares.holding(ONE) as hold:
            hold(MIB)
            hold(0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert shares.bytes == 0
    assert shares.none.is_set()


async def test_none_is_told_when_all_is_gone(shares):
    assert shares.none.is_set()
    shares.add(ONE, 1)
    shares.add(OTHER, 1)
    waiting = asyncio.create_task(shares.none.wait())
    shares.remove(ONE, 1)
    await asyncio.sleep(0)
    assert not waiting.done()
    shares.remove(OTHER, 1)
    assert await waiting
