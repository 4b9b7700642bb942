"""Token buckets on a clock of the test's own."""

import subprocess
import sys

import pytest

from tuneserve.server.call.errors import Overloaded
from tuneserve.server.call.quota import Bucket, Quota, SharedQuota
from tuneserve.server.ledger import Ledger

SECOND = 1_000_000_000


def refused(quota: Quota, now: int) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        quota.admit(now)
    return caught.value


@pytest.mark.parametrize("rate", [0.1, 0.3, 1, 1.5, 3, 7, 50, 999.9])
@pytest.mark.parametrize("start", [0, 5, 123456789 * SECOND + 7])
def test_a_burst_then_the_rate(rate, start):
    quota = Quota(rate, None, None, start)
    for _ in range(max(1, int(rate))):
        quota.admit(start)
    now = start
    for _ in range(20):
        error = refused(quota, now)
        assert error.reason == "REQUEST_QUOTA"
        assert 0 < error.retry_ms <= max(1000, 1000 / rate) + 1
        now += error.retry_ms * 1_000_000
        quota.admit(now)
    assert now - start <= (20 / rate + 0.021) * SECOND, "never slower than the rate, but for whole milliseconds"


def test_the_time_to_wait_is_not_a_millisecond_too_long():
    quota = Quota(2.0, None, None, 0)
    quota.admit(0)
    quota.admit(0)
    wait = refused(quota, 0).retry_ms
    assert wait == 500
    refused(quota, (wait - 1) * 1_000_000)
    quota.admit(wait * 1_000_000)


def test_refused_calls_cost_nothing():
    quota = Quota(1.0, None, None, 0)
    quota.admit(0)
    for _ in range(100):
        refused(quota, SECOND // 2)
    quota.admit(SECOND)


def test_idling_saves_up_one_burst_only():
    quota = Quota(5.0, None, None, 0)
    now = 3600 * SECOND
    for _ in range(5):
        quota.admit(now)
    refused(quota, now)


def test_tokens_are_charged_afterwards_and_what_is_over_is_made_up_for():
    quota = Quota(None, 600, None, 0)  # ten a second
    quota.admit(0)
    quota.charge(599, 0)
    quota.admit(0)
    quota.charge(401, 0)  # 400 over
    error = refused(quota, 0)
    assert error.reason == "TOKEN_QUOTA"
    assert error.retry_ms == 40_100, "until one token is there again"
    refused(quota, 40 * SECOND)
    quota.admit(40_100_000_000)


def test_a_call_refused_for_its_tokens_takes_no_request():
    quota = Quota(1.0, 60, None, 0)
    quota.charge(60, 0)
    assert refused(quota, 0).reason == "TOKEN_QUOTA"
    quota.admit(SECOND)


def test_the_longer_wait_is_told():
    quota = Quota(0.1, 60, None, 0)
    quota.admit(0)
    quota.charge(60, 0)
    error = refused(quota, 0)
    assert (error.reason, error.retry_ms) == ("REQUEST_QUOTA", 10_000)


def test_a_quota_that_did_not_change_carries_on_exactly():
    old = Quota(3.0, 100, None, 0)
    old.admit(0)
    old.charge(250, 0)
    new = Quota(3.0, 100, old, SECOND)
    assert refused(new, SECOND).retry_ms == refused(old, SECOND).retry_ms


@pytest.mark.parametrize(("size", "wait"), [(6_000, 0), (60, 10), (600, 10)])
def test_a_changed_quota_helps_at_once_and_makes_no_long_debt(size, wait):
    old = Bucket(10, 600)
    old.take(700, 0)  # 100 over: ten seconds
    new = Bucket(size / 60, size)
    new.carry_over(old.full_at, old.cost, 0)
    assert new.wait(0, 0) == wait * SECOND


def test_a_limit_that_is_gone_or_new():
    old = Quota(1.0, None, None, 0)
    old.admit(0)
    Quota(None, 60, old, 0).admit(0)


def in_processes(folder, *limits, now=0, count=2):
    """The quota of one tenant in several processes: each has the folder's file open for itself."""
    return [SharedQuota(*limits, Ledger(folder).accounts(["a"])["a"], now) for _ in range(count)]


def test_a_quota_holds_in_sum(tmp_path):
    first, second = in_processes(tmp_path, 2.0, 60)
    first.admit(0)
    second.admit(0)
    for quota in (first, second):
        assert refused(quota, 0).retry_ms == 500
    second.admit(SECOND // 2)
    first.charge(90, SECOND)
    assert refused(second, SECOND).reason == "TOKEN_QUOTA"
    assert refused(second, SECOND).retry_ms == refused(first, SECOND).retry_ms == 31_000


def test_a_process_that_is_started_again_gives_no_new_quota(tmp_path):
    [first] = in_processes(tmp_path, 1.0, None, count=1)
    first.admit(0)
    [again] = in_processes(tmp_path, 1.0, None, count=1)
    assert refused(again, 0).retry_ms == 1000


@pytest.mark.parametrize(("size", "wait"), [(60_000, 10_001), (60, 6_941_000), (600, 6_940_100)])
def test_a_quota_is_changed_once_for_all(tmp_path, size, wait):
    """As for one process; the others read the changed file a little later."""
    old, _ = in_processes(tmp_path, None, 600)
    old.charge(70_000, 0)
    for quota in in_processes(tmp_path, None, size):
        assert refused(quota, 0).retry_ms == wait


def test_an_endless_debt(tmp_path):
    first, second = in_processes(tmp_path, 1e-12, 1)
    first.admit(0)
    first.charge(1 << 40, 0)
    assert refused(second, 0)


HAMMER = """
import sys
from pathlib import Path
from tuneserve.server.call.errors import Overloaded
from tuneserve.server.call.quota import SharedQuota
from tuneserve.server.ledger import Ledger
quota, admitted = SharedQuota(1000.0, None, Ledger(Path(sys.argv[1])).accounts(["a"])["a"], 0), 0
print(flush=True)
sys.stdin.readline()
while True:
    try:
        quota.admit(0)
    except Overloaded:
        break
    admitted += 1
print(admitted)
"""


def test_processes_that_count_at_the_same_moment_lose_nothing(tmp_path):
    command = [sys.executable, "-c", HAMMER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for one in started:
        one.stdout.readline()
    for one in started:
        one.stdin.write("\n")
        one.stdin.flush()
    assert sum(int(one.communicate(timeout=60)[0]) for one in started) == 1000
