import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from tuneserve.server.call.errors import DeadlinePassed, Overloaded
from tuneserve.server.models.admission import Admission, Entry, Turn
from tuneserve.server.turns import belongs_to


class Clock:
    """Time that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock | None = None, **limits) -> Admission:
    settings = {"slots": 2, "max_calls": 10, "max_tokens": 100, "max_wait": 30.0, **limits}
    return Admission("m", clock=clock or Clock(), **settings)


@asynccontextmanager
async def turn(
    admission: Admission, sequences: int, tokens: int, entry: Entry | None = None, is_long: bool = False, **asked
) -> AsyncIterator[Turn]:
    entry = entry or Entry(**asked)
    held = await admission.wait(entry, sequences, tokens, is_long)
    try:
        yield held
    finally:
        admission.release(held)


async def holding(
    admission: Admission, *, done: asyncio.Event, log: list[str], name: str, caller: str = "", **asked
) -> None:
    belongs_to(caller)
    async with turn(admission, **{"sequences": 1, "tokens": 1, **asked}):
        log.append(name)
        await done.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_as_many_run_as_there_are_slots():
    admission, done, log = make(), asyncio.Event(), []
    tasks = [asyncio.create_task(holding(admission, done=done, log=log, name=str(i))) for i in range(4)]
    await settle()
    assert log == ["0", "1"]
    assert admission.running == 2
    done.set()
    await asyncio.gather(*tasks)
    assert log == ["0", "1", "2", "3"]
    assert (admission.running, admission.waiting_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("deadline", "max_wait", "error"),
    [(0.05, 30.0, DeadlinePassed), (-1.0, 30.0, DeadlinePassed), (30.0, 0.05, Overloaded)],
)
async def test_a_wait_ends_at_the_deadline_or_when_it_was_too_long(deadline, max_wait, error):
    admission, done = make(slots=1, max_wait=max_wait), asyncio.Event()
    holder = asyncio.create_task(holding(admission, done=done, log=[], name="first"))
    await settle()
    with pytest.raises(error):
        async with turn(admission, 1, 5, deadline=deadline):
            raise AssertionError("its turn came")
    assert (admission.running, admission.waiting_tokens) == (1, 0)
    done.set()
    await holder
    async with turn(admission, 1, 5, deadline=deadline):
        assert admission.running == 1, "there was nothing to wait for"


async def test_the_lower_priority_number_goes_first_and_equals_in_order():
    admission, first, rest, log = make(slots=1), asyncio.Event(), asyncio.Event(), []
    tasks = [asyncio.create_task(holding(admission, done=first, log=log, name="running"))]
    await settle()
    rest.set()
    for name, priority in (("late a", 5), ("late b", 5), ("early", -1), ("middle", 0)):
        tasks.append(asyncio.create_task(holding(admission, done=rest, log=log, name=name, priority=priority)))
    await settle()
    first.set()
    await asyncio.gather(*tasks)
    assert log == ["running", "early", "middle", "late a", "late b"]


async def test_a_call_larger_than_the_engine_goes_alone():
    admission, done, log = make(slots=2), asyncio.Event(), []
    large = asyncio.create_task(holding(admission, done=done, log=log, name="large", sequences=50))
    await settle()
    small = asyncio.create_task(holding(admission, done=done, log=log, name="small"))
    await settle()
    assert log == ["large"]
    done.set()
    await asyncio.gather(large, small)
    assert admission.running == 0


@pytest.mark.parametrize(("slots", "most"), [(1, 1), (2, 2), (8, 8), (9, 8), (64, 57), (256, 228)])
async def test_one_caller_leaves_room_for_the_next(slots, most):
    admission, done, log = make(slots=slots, max_tokens=10_000), asyncio.Event(), []
    greedy = [asyncio.create_task(holding(admission, done=done, log=log, name="a", caller="a")) for _ in range(300)]
    await settle()
    assert (admission.running, admission._sequences.used_by["a"]) == (most, most)
    other = asyncio.create_task(holding(admission, done=done, log=log, name="b", caller="b"))
    await settle()
    assert ("b" in log) == (slots > most), "at once, though others wait"
    done.set()
    await asyncio.gather(*greedy, other)
    assert log.count("a") == 300, "in its turn, everything runs"
    assert (admission.running, admission._sequences.used_by["a"], admission.waiting_sequences) == (0, 0, 0)


async def test_callers_that_want_all_of_it_come_to_run_the_same():
    admission, log = make(slots=170, max_tokens=10_000), []
    ends = {caller: [asyncio.Event() for _ in range(300)] for caller in "ab"}
    tasks = []
    for caller in "ab":
        for end in ends[caller]:
            tasks.append(asyncio.create_task(holding(admission, done=end, log=log, name=caller, caller=caller)))
        await settle()
    assert admission._sequences.used_by["a"] > 8 * admission._sequences.used_by["b"]
    # What ends of the one goes to the other, until they are equal.
    for end in ends["a"][:80]:
        end.set()
        await settle()
    assert admission._sequences.used_by["a"] == pytest.approx(admission._sequences.used_by["b"], abs=2)
    assert admission.running == pytest.approx(170 * 16 / 17, abs=2)
    for end in ends["a"] + ends["b"]:
        end.set()
    await asyncio.gather(*tasks)


async def test_whoever_may_run_no_more_is_passed_over():
    admission, done, log = make(slots=18, max_tokens=10_000), asyncio.Event(), []
    tasks = [
        asyncio.create_task(holding(admission, done=done, log=log, name="a", caller="a", priority=-1))
        for _ in range(20)
    ]
    await settle()
    first = asyncio.Event()
    tasks.append(asyncio.create_task(holding(admission, done=first, log=log, name="b", caller="b", sequences=2)))
    tasks.append(asyncio.create_task(holding(admission, done=done, log=log, name="c", caller="c")))
    await settle()
    assert (admission.running, log.count("a"), log[16:]) == (18, 16, ["b"]), "c found no room"
    first.set()
    await settle()
    assert log[16:] == ["b", "c"], "a waits, has priority, and has more than its share"
    done.set()
    await asyncio.gather(*tasks)


async def reading(
    admission: Admission, *, read: asyncio.Event, done: asyncio.Event, log: list[str], caller: str
) -> None:
    belongs_to(caller)
    async with turn(admission, 1, 10, is_long=True) as one:
        log.append(caller)
        await read.wait()
        admission.read(one)
        await done.wait()


async def test_long_prompts_are_read_a_few_at_a_time_and_leave_room_for_others():
    admission, log = make(slots=64, long_prompts=3), []
    read, done = [asyncio.Event() for _ in range(6)], asyncio.Event()
    tasks = [asyncio.create_task(reading(admission, read=one, done=done, log=log, caller="a")) for one in read[:5]]
    await settle()
    assert (log, admission.waiting, admission.waiting_tokens) == (["a", "a"], 3, 30)
    short = asyncio.create_task(holding(admission, done=done, log=log, name="short", caller="a"))
    await settle()
    assert log == ["a", "a", "short"], "a short prompt of the same caller, too"
    tasks += [short, asyncio.create_task(reading(admission, read=read[5], done=done, log=log, caller="b"))]
    await settle()
    assert log[3:] == ["b"]
    read[5].set()
    await settle()
    assert log[4:] == [], "one is left for another caller"
    read[0].set()
    await settle()
    assert log[4:] == ["a"], "the prompt has been read, though its answer goes on"
    assert admission.running == 5
    for one in read:
        one.set()
    await settle()
    assert admission.running == 7
    done.set()
    await asyncio.gather(*tasks)
    assert (admission.running, admission._long.used, admission.waiting_tokens) == (0, 0, 0)


async def test_a_long_prompt_that_gives_up_leaves_nothing_behind():
    admission, read, done, log = make(slots=1, long_prompts=1), asyncio.Event(), asyncio.Event(), []
    running = asyncio.create_task(holding(admission, done=done, log=log, name="running"))
    await settle()
    waiting = [
        asyncio.create_task(reading(admission, read=read, done=done, log=log, caller=caller)) for caller in "aab"
    ]
    await settle()
    assert (admission._long.used, admission.waiting) == (1, 3), "the first waits for a sequence, the others for it"
    for task in waiting[:2]:
        task.cancel()
    await settle()
    assert (admission._long.used, admission.waiting) == (1, 1)
    waiting[2].cancel()
    done.set()
    await asyncio.wait([running, *waiting])
    assert (admission.running, admission._long.used, admission.waiting_tokens) == (0, 0, 0)
    assert admission.expected_wait() == 0


async def test_a_long_prompt_waits_no_longer_than_others():
    admission, done, log = make(slots=1, long_prompts=1, max_wait=0.2), asyncio.Event(), []
    tasks = [asyncio.create_task(reading(admission, read=done, done=done, log=log, caller=caller)) for caller in "ab"]
    await settle()
    [failed], _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    assert isinstance(failed.exception(), Overloaded)
    assert (failed, log) == (tasks[1], ["a"])
    done.set()
    await tasks[0]
    assert (admission.running, admission._long.used, admission.waiting_tokens) == (0, 0, 0)


async def test_cancelled_while_waiting_leaves_nothing_behind():
    admission, done, log = make(slots=1), asyncio.Event(), []
    running = asyncio.create_task(holding(admission, done=done, log=log, name="running"))
    await settle()
    waiting = [asyncio.create_task(holding(admission, done=done, log=log, name="x", tokens=7)) for _ in range(3)]
    await settle()
    assert (admission.waiting_sequences, admission.waiting_tokens) == (3, 21)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert (admission.waiting_sequences, admission.waiting_tokens) == (0, 0)
    done.set()
    await running
    assert log == ["running"]
    assert admission.running == 0


async def test_cancelled_in_the_moment_of_its_turn_gives_it_on():
    admission, first, done, log = make(slots=1), asyncio.Event(), asyncio.Event(), []
    running = asyncio.create_task(holding(admission, done=first, log=log, name="running"))
    await settle()
    unlucky = asyncio.create_task(holding(admission, done=done, log=log, name="unlucky"))
    other = asyncio.create_task(holding(admission, done=done, log=log, name="other"))
    await settle()
    first.set()
    await asyncio.sleep(0)  # `running` ends and grants; `unlucky` has not run yet
    unlucky.cancel()
    done.set()
    await asyncio.wait((running, unlucky, other))
    assert unlucky.cancelled()
    assert log == ["running", "other"]
    assert (admission.running, admission.waiting_tokens) == (0, 0)


def test_a_full_queue_turns_away_at_once():
    admission = make(max_calls=2)
    with ExitStack() as stack:
        stack.enter_context(admission.enter(Entry()))
        stack.enter_context(admission.enter(Entry()))
        assert not admission.empty.is_set()
        with pytest.raises(Overloaded) as caught, admission.enter(Entry()):
            pass
        assert caught.value.reason == "QUEUE_FULL"
    assert admission.empty.is_set()
    with admission.enter(Entry()):
        pass


async def test_too_many_tokens_turn_away_but_one_call_may_always_wait():
    admission, done, log = make(slots=1, max_tokens=10), asyncio.Event(), []
    tasks = [asyncio.create_task(holding(admission, done=done, log=log, name="running"))]
    await settle()
    tasks.append(asyncio.create_task(holding(admission, done=done, log=log, name="long", tokens=50)))
    await settle()
    with pytest.raises(Overloaded) as caught:
        async with turn(admission, 1, 1):
            pass
    assert caught.value.reason == "QUEUE_TOKENS"
    done.set()
    await asyncio.gather(*tasks)


async def test_a_wait_that_would_be_too_long_is_refused_with_a_true_retry_time():
    clock = Clock()
    admission, log = make(clock, slots=1, max_wait=2.0), []
    events = [asyncio.Event() for _ in range(12)]
    tasks = [asyncio.create_task(holding(admission, done=event, log=log, name="x")) for event in events]
    await settle()
    assert admission.expected_wait() == 0, "nothing known yet"
    for event in events[:4]:  # four in two seconds
        clock.now += 0.5
        event.set()
        await settle()
    assert admission.expected_wait() == pytest.approx(7 / 2)
    with pytest.raises(Overloaded) as caught, admission.enter(Entry()):
        pass
    assert caught.value.reason == "QUEUE_WAIT"
    assert caught.value.retry_ms == 1500
    assert admission.expected_wait(priority=-1) == 0, "nobody waits before it"
    with admission.enter(Entry(priority=-1)):
        pass
    for event in events:
        event.set()
    await asyncio.gather(*tasks)
    with admission.enter(Entry()):
        pass


async def test_calls_that_come_together_count_one_by_one():
    refused = []
    admission = make(max_calls=5, rejected=refused.append)
    with admission.enter(Entry(calls=3)), admission.enter(Entry()):
        assert admission.calls == 4
        with pytest.raises(Overloaded) as caught, admission.enter(Entry(calls=2)):
            pass
        assert caught.value.reason == "QUEUE_FULL"
        # They are tried one by one, and the second is refused and counted then.
        assert refused == []
        with admission.enter(Entry()), pytest.raises(Overloaded), admission.enter(Entry()):
            pass
        assert refused == ["QUEUE_FULL"]
    assert admission.calls == 0
    assert admission.empty.is_set()
    with admission.enter(Entry(calls=5)):
        assert admission.calls == 5


async def test_calls_that_waited_together_are_each_refused():
    refused = []
    admission, done = make(slots=1, max_wait=0.05, rejected=refused.append), asyncio.Event()
    running = asyncio.create_task(holding(admission, done=done, log=[], name="running"))
    await settle()
    entry = Entry(calls=3)
    with admission.enter(entry), pytest.raises(Overloaded):
        async with asyncio.timeout(10), turn(admission, 3, 3, entry):
            pass
    assert refused == ["QUEUE_WAIT"] * 3
    assert (admission.calls, admission.waiting_sequences, admission.waiting_tokens) == (0, 0, 0)
    assert admission.expected_wait() == 0
    done.set()
    await running


async def test_nobody_waits_for_longer_than_allowed():
    admission, done, log = make(slots=1, max_wait=0.05), asyncio.Event(), []
    running = asyncio.create_task(holding(admission, done=done, log=log, name="running"))
    await settle()
    with pytest.raises(Overloaded) as caught:
        async with asyncio.timeout(10), turn(admission, 1, 1):
            pass
    assert caught.value.reason == "QUEUE_WAIT"
    assert admission.waiting_tokens == 0
    done.set()
    await running


async def test_calls_that_are_still_tokenized_count_as_waiting():
    clock = Clock()
    admission, log = make(clock, slots=1, max_calls=99, max_wait=3.0), []
    events = [asyncio.Event() for _ in range(6)]
    tasks = [asyncio.create_task(holding(admission, done=event, log=log, name="x")) for event in events]
    await settle()
    for event in events[:4]:  # two a second
        clock.now += 0.5
        event.set()
        await settle()
    with ExitStack() as stack:
        entries = [Entry() for _ in range(3)]
        for entry in entries:
            stack.enter_context(admission.enter(entry))
        assert admission.expected_wait() == pytest.approx(4 / 2), "one waits, three will"
        with pytest.raises(Overloaded) as caught, admission.enter(Entry()):
            pass
        assert caught.value.reason == "QUEUE_WAIT"
        for event in events:
            event.set()
        await asyncio.gather(*tasks)
        async with turn(admission, 1, 1, entry=entries[0]):
            two = admission.expected_wait()
        assert 0 < admission.expected_wait() == pytest.approx(two / 2), "one of the two that come finds room"
    assert admission.expected_wait() == 0


async def test_what_was_seen_long_ago_is_forgotten():
    clock = Clock()
    admission = make(clock, slots=1)

    async def busy(seconds: float) -> float:
        """Two calls after each other, one of them waiting; returns what the last of a third's wait would be."""
        events, log = [asyncio.Event() for _ in range(3)], []
        tasks = [asyncio.create_task(holding(admission, done=event, log=log, name="x")) for event in events]
        await settle()
        clock.now += seconds
        events[0].set()
        await settle()
        expected = admission.expected_wait()
        for event in events:
            event.set()
        await asyncio.gather(*tasks)
        return expected

    assert await busy(8.0) == pytest.approx(8.0)
    clock.now += 600
    assert await busy(0.5) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("caller", ["", "{}"], ids=["one caller", "each its own caller"])
async def test_giving_up_costs_the_same_however_many_wait(caller):
    """One call may have thousands of requests that wait, and many calls are cancelled at once."""
    admission, done, log = make(slots=1, max_tokens=10**9), asyncio.Event(), []
    running = asyncio.create_task(holding(admission, done=done, log=log, name="running"))
    await settle()

    async def cost(waiting: int) -> float:
        """CPU seconds of 200 that give up among so many."""
        callers = [caller.format(number) for number in range(waiting)]
        tasks = [asyncio.create_task(holding(admission, done=done, log=log, name="x", caller=one)) for one in callers]
        await settle()
        # The last ones: those that search find them last.
        given_up, before = tasks[-200:], time.thread_time()
        for task in given_up:
            task.cancel()
        await settle()
        passed = time.thread_time() - before
        assert all(task.done() for task in given_up)
        assert admission.waiting_tokens == waiting - 200
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return passed

    few = await cost(1000)
    assert await cost(20_000) < 5 * few + 0.05
    assert admission.waiting == admission.waiting_tokens == 0
    done.set()
    await running


async def test_those_that_gave_up_are_neither_waited_for_nor_kept():
    admission, first, done, log = make(slots=1, max_tokens=10**9), asyncio.Event(), asyncio.Event(), []
    running = asyncio.create_task(holding(admission, done=first, log=log, name="running"))
    await settle()
    early = [asyncio.create_task(holding(admission, done=done, log=log, name="early")) for _ in range(1000)]
    late = [asyncio.create_task(holding(admission, done=done, log=log, name="late", priority=1)) for _ in range(3)]
    await settle()
    for task in early:
        task.cancel()
    await settle()
    assert len(admission._sequences.waiting) < 200
    assert admission.waiting_tokens == 3
    first.set()
    done.set()
    await asyncio.gather(running, *late)
    assert log == ["running", "late", "late", "late"]
    assert (admission.running, admission.waiting_tokens, admission.expected_wait(9)) == (0, 0, 0)


async def test_an_expected_wait_costs_the_same_however_many_wait():
    clock = Clock()
    admission, done, log = make(clock, slots=1, max_tokens=10**9, max_calls=10**6), asyncio.Event(), []

    def cost() -> float:
        before = time.thread_time()
        for _ in range(200):
            with admission.enter(Entry(priority=1)):
                pass
        return time.thread_time() - before

    few = cost()
    tasks = [asyncio.create_task(holding(admission, done=done, log=log, name="x")) for _ in range(10_000)]
    await settle()
    assert cost() < 5 * few + 0.05
    done.set()
    await asyncio.gather(*tasks)


async def test_callers_have_turns_one_after_the_other():
    admission, first, rest, log = make(slots=1), asyncio.Event(), asyncio.Event(), []
    tasks = [asyncio.create_task(holding(admission, done=first, log=log, name="running"))]
    await settle()
    rest.set()
    for name in ("a1", "a2", "a3", "a4", "b1", "c1", "b2"):
        tasks.append(asyncio.create_task(holding(admission, done=rest, log=log, name=name, caller=name[0])))
    await settle()
    first.set()
    await asyncio.gather(*tasks)
    assert log == ["running", "a1", "b1", "c1", "a2", "b2", "a3", "a4"]


async def test_callers_that_do_not_come_again_are_forgotten():
    admission, log = make(slots=1, max_tokens=10**9), []
    events = [asyncio.Event() for _ in range(1000)]
    tasks = [asyncio.create_task(holding(admission, done=events[0], log=log, name="running"))]
    await settle()
    tasks.append(asyncio.create_task(holding(admission, done=events[-1], log=log, name="last", priority=1)))
    for number, event in enumerate(events[1:]):
        tasks.append(asyncio.create_task(holding(admission, done=event, log=log, name="x", caller=str(number))))
        await settle()
        events[number].set()
        await settle()
    lines = [one for lines in admission._sequences.waiting._by_priority.values() for one in lines._lines]
    assert len(lines) < 200
    events[-1].set()
    await asyncio.gather(*tasks)
    assert (admission.running, admission.waiting, admission.waiting_tokens) == (0, 0, 0)
    assert [dict(admission._calls_of), dict(admission._tokens_of), admission._ahead] == [{}, {}, {}]


def entered(admission: Admission, stack: ExitStack, caller: str, count: int) -> None:
    belongs_to(caller)
    for _ in range(count):
        stack.enter_context(admission.enter(Entry()))


def full_for(admission: Admission, caller: str) -> bool:
    belongs_to(caller)
    try:
        with admission.enter(Entry()):
            return False
    except Overloaded as error:
        return error.reason == "QUEUE_FULL"


async def test_a_queue_that_one_caller_fills_is_full_for_that_caller_alone():
    admission = make(max_calls=10)
    with ExitStack() as stack:
        entered(admission, stack, "greedy", 10)
        assert full_for(admission, "greedy")
        entered(admission, stack, "one", 5)
        assert full_for(admission, "one"), "that is half"
        entered(admission, stack, "two", 3)
        assert full_for(admission, "two"), "that is a third"
        entered(admission, stack, "three", 2)
        assert full_for(admission, "four"), "twice as many are in"
        assert admission.calls == 20
    assert admission.calls == 0
    with ExitStack() as stack:
        entered(admission, stack, "greedy", 9)
        entered(admission, stack, "one", 1)
        assert full_for(admission, "greedy"), "it has more than its share, and there is no room"


async def test_tokens_that_one_caller_has_waiting_are_in_nobody_elses_way():
    admission, done, log = make(slots=1, max_tokens=100), asyncio.Event(), []
    tasks = [asyncio.create_task(holding(admission, done=done, log=log, name="running"))]
    await settle()

    async def waits(caller: str, tokens: int) -> bool:
        turn = {"name": caller, "caller": caller, "tokens": tokens}
        tasks.append(asyncio.create_task(holding(admission, done=done, log=log, **turn)))
        await settle()
        return not tasks[-1].done()

    assert await waits("greedy", 100)
    assert not await waits("greedy", 1)
    assert await waits("one", 60), "one call may always wait"
    assert not await waits("one", 1)
    assert await waits("two", 10)
    assert await waits("two", 20)
    assert not await waits("two", 10)
    done.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [error.reason for error in results if isinstance(error, Overloaded)] == ["QUEUE_TOKENS"] * 3


async def test_a_caller_with_little_expects_no_long_wait_behind_one_with_much():
    clock = Clock()
    admission, log = make(clock, slots=1, max_calls=999, max_tokens=999, max_wait=2.0), []
    events = [asyncio.Event() for _ in range(30)]
    tasks = [
        asyncio.create_task(holding(admission, done=event, log=log, name="x", caller="greedy")) for event in events
    ]
    await settle()
    for event in events[:4]:  # two a second
        clock.now += 0.5
        event.set()
        await settle()
    belongs_to("greedy")
    assert admission.expected_wait() == pytest.approx(25 / 2)
    with pytest.raises(Overloaded), admission.enter(Entry()):
        pass
    belongs_to("other")
    assert admission.expected_wait() == pytest.approx(1 / 2)
    with admission.enter(Entry()):
        pass
    for event in events:
        event.set()
    await asyncio.gather(*tasks)
