"""The line of a call: one JSON object, and nothing in it that a caller said."""

import json
import logging
from datetime import UTC, datetime

import pytest

from tuneserve.server.call import request_log
from tuneserve.server.call.context import Call
from tuneserve.server.call.tenants import Tenant
from tuneserve.server.metrics import Metrics


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Lines go where they went, after each test."""
    monkeypatch.setattr(request_log, "_write", request_log.logger.info)


def call(**values) -> Call:
    metadata = {"x-request-id": "abc", "authorization": "Bearer canary-key", "note": "canary-metadata"}
    return Call(
        "abc", "Classify", Tenant("acme"), metadata, Metrics(), model="reviews", version="0123456789ab", **values
    )


def test_a_line_is_json_and_nothing_else(capsys):
    request_log.to_stderr()
    one = call(prompt_tokens=12, completion_tokens=3)
    one.stage_ns = {"queue": 1_500_000, "engine": 20_123_456}
    before = datetime.now(UTC)
    request_log.log(one, "OK", 0.0225)
    [text] = capsys.readouterr().err.splitlines()
    line = json.loads(text)
    time = line.pop("time")
    assert time.endswith("Z")
    assert abs((datetime.fromisoformat(time) - before).total_seconds()) < 60
    assert line == {
        "request_id": "abc",
        "method": "Classify",
        "tenant": "acme",
        "model": "reviews",
        "version": "0123456789ab",
        "status": "OK",
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "ms": 22.5,
        "queue_ms": 1.5,
        "tokenize_ms": 0.0,
        "engine_ms": 20.123,
    }
    assert "canary" not in text


def test_lines_are_whole_whatever_a_name_holds(capsys):
    request_log.to_stderr()
    one = call()
    one.tenant = Tenant('a"\n{"status":"OK"}\u2028 ü %s')
    request_log.log(one, "INTERNAL", 0.0)
    [text] = capsys.readouterr().err.splitlines()
    assert json.loads(text)["tenant"] == one.tenant.name


def test_lines_are_written_once(capsys, caplog):
    request_log.to_stderr()
    request_log.to_stderr()
    with caplog.at_level(logging.INFO):
        request_log.log(call(), "OK", 0.1)
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not caplog.records, "the line went to the process's own log too"


def test_content_is_there_when_it_is_asked_for(capsys):
    request_log.to_stderr()
    off, on = call(), call(content={})
    for one in (off, on):
        one.note("prompt", "first", "second")
        one.note("output", "é")
        request_log.log(one, "OK", 0.1)
    without, with_ = map(json.loads, capsys.readouterr().err.splitlines())
    assert "content" not in without
    assert with_["content"] == {"prompt": ["first", "second"], "output": ["é"]}


def test_nothing_is_written_where_nobody_listens(caplog):
    with caplog.at_level(logging.WARNING):
        request_log.log(call(), "OK", 0.1)
    assert not caplog.records


def test_server_timing_adds_parts_of_one_name_up():
    one = call()
    assert request_log.server_timing(one) == ""
    one.stage_ns = {"engine": 20_100_000, "queue": 1_200_000, "tokenize": 400_000}
    assert request_log.server_timing(one) == "queue;dur=1.2, tokenize;dur=0.4, engine;dur=20.1"
    for _ in range(3):
        with one.stage("engine"):
            pass
    assert len(one.stages) == 3
    assert one.stage_ns["engine"] == 20_100_000 + sum(stage.end_ns - stage.start_ns for stage in one.stages)


def test_a_long_stream_keeps_sums_only():
    one = call()
    for _ in range(1000):
        with one.stage("queue"):
            pass
    assert len(one.stages) == 64
    assert one.stage_ns["queue"] >= sum(stage.end_ns - stage.start_ns for stage in one.stages)


def test_what_anybody_can_cause_is_sampled():
    now, dropped = [0.0], []
    sample = request_log.Sample(lambda: dropped.append(1), lambda: now[0])
    taken = [sample.take() for _ in range(1000)]
    assert taken == [0] * 10 + [None] * 990
    assert len(dropped) == 990
    now[0] += 2.5
    assert [sample.take() for _ in range(4)] == [990, 0, None, None]
    now[0] += 3600
    assert [sample.take() for _ in range(11)] == [2] + [0] * 9 + [None]
