"""Whose turn it is, on the queue itself: nobody waits here, and nothing takes time."""

from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneserve.server.models.fair_queue import FairQueue, Waiter


def waiter(caller: str, priority: int = 0, sequences: int = 1) -> Waiter:
    granted: Any = Future()  # the queue never looks at it
    return Waiter(caller, priority, sequences, 1, granted)


def queued(*waiters: Waiter) -> FairQueue:
    queue = FairQueue()
    for one in waiters:
        queue.add(one)
    return queue


def taken(queue: FairQueue) -> list[str]:
    """The callers of all that wait, in the order of their turns."""
    return [str(queue.next().caller) for _ in range(len(queue))]


def test_callers_have_turns_one_after_the_other():
    assert taken(queued(*map(waiter, "aaaabcb"))) == list("abcabaa")


def test_of_a_callers_own_what_has_waited_longest_is_next():
    waiters = [waiter("a") for _ in range(3)]
    queue = queued(*waiters)
    assert [queue.next() for _ in waiters] == waiters


def test_a_batch_counts_as_many_turns():
    batches = [waiter("a", sequences=3) for _ in range(2)]
    assert taken(queued(*batches, *map(waiter, "bbbb"))) == list("abbbab")


def test_a_better_priority_goes_before_any_callers_turn():
    late, early = [waiter("late", 1), waiter("b", 1)], [waiter("a", -1), waiter("a", 0)]
    queue = queued(*late, *early)
    assert taken(queue) == ["a", "a", "late", "b"]
    assert len(queue) == 0


def test_one_that_gave_up_is_out_and_is_not_taken_out_twice():
    waiters = list(map(waiter, "aab"))
    queue = queued(*waiters)
    assert queue.remove(waiters[0])
    assert not queue.remove(waiters[0])
    assert not queue.remove(waiter("a"))
    assert not queue.remove(waiter("a", priority=7))
    assert len(queue) == 2
    assert queue.next() is waiters[1]
    assert not queue.remove(waiters[1]), "its turn came"
    assert queue.next() is waiters[2]


def test_a_caller_that_was_given_much_is_no_new_one_when_it_comes_again():
    queue = queued(waiter("a", sequences=5), *map(waiter, "bbb"))
    assert queue.next().caller == "a"
    queue.add(waiter("a"))
    assert taken(queue) == ["b", "b", "b", "a"]


def test_new_callers_are_not_always_before_those_that_were_there():
    """However many come, each with one request: a caller could have as many connections."""
    queue, order = queued(*(waiter("old") for _ in range(3))), []
    for number in range(20):
        queue.add(waiter(f"new {number}"))
        order.append(queue.next().caller)
    assert order.count("old") == 3
    assert order.index("new 0") < 3


@pytest.mark.parametrize("gone", ["by turns", "given up"])
def test_callers_that_do_not_come_again_are_in_nobodys_way(gone):
    queue, last = FairQueue(), waiter("last")
    queue.add(last)
    for number in range(3000):
        one = waiter(str(number), priority=-1 if gone == "by turns" else 0)
        queue.add(one)
        if gone == "by turns":
            assert queue.next() is one
        else:
            assert queue.remove(one)
    assert len(queue) == 1
    assert queue.next() is last


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.integers(1, 3), st.booleans()), max_size=40))
def test_each_is_taken_once_and_priorities_come_in_order(given):
    queue, waiting = FairQueue(), []
    for caller, priority, sequences, gives_up in given:
        waiting.append(waiter(caller, priority, sequences))
        queue.add(waiting[-1])
        if gives_up:
            assert queue.remove(waiting.pop(len(waiting) // 2))
    assert len(queue) == len(waiting)
    found = [queue.next() for _ in range(len(queue))]
    assert set(map(id, found)) == set(map(id, waiting))
    assert [one.priority for one in found] == sorted(one.priority for one in waiting)
