"""The call that is being answered: its id, where its time goes, what it is charged, and what the engine gets of it."""

import time

import pytest

from tuneserve.server.call import context
from tuneserve.server.call.context import Call
from tuneserve.server.call.tenants import Tenant
from tuneserve.server.metrics import Metrics


def call(tenant: Tenant | None = None, **fields) -> Call:
    return Call("req-1", "Classify", tenant or Tenant("acme"), {}, Metrics(), **fields)


@pytest.mark.parametrize("sent", ["a", "Az09._:-", "x" * 128])
def test_a_callers_id_is_kept(sent):
    assert context.request_id({"x-request-id": sent}) == sent


@pytest.mark.parametrize("sent", ["", "x" * 129, "two words", "a\n", "é", "a/b", "%0a"])
def test_what_may_be_no_id_is_replaced(sent):
    made = context.request_id({"x-request-id": sent})
    assert made != sent
    # It is one that a caller could send.
    assert context.request_id({"x-request-id": made}) == made


def test_ids_that_are_made_differ():
    assert len({context.request_id({}) for _ in range(100)}) == 100


def test_parts_of_one_name_add_up():
    one = call()
    with one.stage("engine"):
        pass
    with pytest.raises(KeyError), one.stage("engine"):
        raise KeyError
    with one.stage("queue"):
        pass
    assert [stage.name for stage in one.stages] == ["engine", "engine", "queue"]
    engine = [stage for stage in one.stages if stage.name == "engine"]
    assert one.stage_ns["engine"] == sum(stage.end_ns - stage.start_ns for stage in engine)
    assert all(one.started_ns <= stage.start_ns <= stage.end_ns for stage in one.stages)


def test_a_stream_of_days_keeps_few_parts_and_all_of_their_time(monkeypatch):
    one, now = call(), time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: now)
    for _ in range(1000):
        with one.stage("engine"):
            now += 1000
    assert len(one.stages) == 64
    assert one.stage_ns == {"engine": 1_000_000}


def test_a_clock_that_is_set_changes_no_time_of_a_call(monkeypatch):
    one = call()
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert one.now_ns() >= one.started_ns > 0


def test_tokens_are_charged_as_they_are_counted():
    charged: list[int] = []
    one = call(charge=charged.append)
    one.count(prompt=7)
    one.count(completion=1)
    one.count(prompt=2, completion=3)
    assert charged == [7, 1, 5]
    assert (one.prompt_tokens, one.completion_tokens) == (9, 4)


def test_prompts_are_kept_only_where_there_is_a_place_for_them():
    one, other = call(), call(content={})
    for each in (one, other):
        each.note("prompt", "a", "b")
        each.note("prompt", "c")
        each.note("output", "d")
    assert one.content is None
    assert other.content == {"prompt": ["a", "b", "c"], "output": ["d"]}


def test_requests_of_one_id_are_told_apart_in_the_engine():
    one, other = call(trace={"traceparent": "00-1"}), call(Tenant("other"))
    tickets = [one.ticket(), one.ticket(adapter="adapter-1"), other.ticket()]
    assert len({ticket.request_id for ticket in tickets}) == 3
    assert all(ticket.request_id.startswith("req-1#") for ticket in tickets)
    # What one tenant's prompts left in the cache is nobody else's.
    assert [ticket.salt for ticket in tickets] == ["acme", "acme", "other"]
    assert (tickets[1].adapter, tickets[0].trace) == ("adapter-1", {"traceparent": "00-1"})


def test_grpc_tells_what_a_call_is():
    one = Call("req-1", "", Tenant("acme"), {}, Metrics())
    one.begin("/tuneserve.v1.GenerationService/GenerateStream", "server_stream", 5.0)
    assert (one.service, one.method, one.kind) == (
        "tuneserve.v1.GenerationService",
        "GenerateStream",
        "server_stream",
    )
    assert not one.expired()
    assert 0 < one.deadline - time.monotonic() <= 5


def test_a_deadline_passes(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    assert call(deadline=100.0).expired()
    assert not call(deadline=100.1).expired()
