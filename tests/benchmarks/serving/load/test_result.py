"""What the processes of a run counted, as one result."""

import json
from dataclasses import replace

import pytest

from tuneserve.benchmarks.serving.load.calls import Served
from tuneserve.benchmarks.serving.load.result import BUSY, LATE, Part, joined
from tuneserve.benchmarks.serving.load.tally import Answer, Tally
from tuneserve.client.endpoint import Endpoint
from tuneserve.errors import StepFailed

from ..conftest import settings

SERVED = Served("sequence-classification", "classify")
CHOSEN = settings("x:1", "m", seconds=10.0)


def part(answers: int, cpu: float, errors: int = 0) -> Part:
    tally = Tally(begin=0.0, end=10.0)
    for _ in range(answers):
        tally.finish(Answer(started=1.0, inputs=2, prompt_tokens=7), when=2.0)
    for _ in range(errors):
        tally.fail("UNAVAILABLE", "gone", when=2.0)
    return Part(SERVED, tally, cpu)


def test_parts_are_joined() -> None:
    result = joined(CHOSEN, [part(3, 0.1), part(2, 0.3, errors=1)])
    assert (result.calls, result.errors, result.error_texts) == (5, {"UNAVAILABLE": 1}, {"UNAVAILABLE": "gone"})
    figures = result.figures
    assert [figures[name] for name in ("calls_per_s", "texts_per_s", "input_tokens_per_s")] == [0.5, 1.0, 3.5]
    assert figures["client_cpu"] == 0.3, "that of the busiest process"
    assert figures["e2el_ms_p99"] == 1000


def test_a_run_without_answers_fails_with_what_the_server_said() -> None:
    with pytest.raises(StepFailed, match="no call was answered in 10 s; UNAVAILABLE: gone"):
        joined(CHOSEN, [part(0, 0.1, errors=1)])


def test_a_client_that_is_busy_or_late_limits_a_run() -> None:
    result = joined(CHOSEN, [part(1, 0.1)])
    assert not result.invalid
    for figures in ({"client_cpu": BUSY + 0.01}, {"lag_ms_p99": LATE + 1}):
        assert replace(result, figures=result.figures | figures).invalid


def test_calls_that_were_due() -> None:
    result = joined(CHOSEN, [part(5, 0.1, errors=5)])
    kinds = ({}, {"rate": 3.0}, {"self_timed": True})
    offered = [replace(result, settings=replace(CHOSEN, **chosen)).offered for chosen in kinds]
    assert offered == [0.0, 3.0, 1.0]


def test_json_has_the_settings_but_no_key() -> None:
    server = Endpoint("x:1", key="secret-of-mine")
    flat = joined(replace(CHOSEN, server=server), [part(1, 0.1)]).to_json()
    assert (flat["target"], flat["model"], flat["call"], flat["seconds"]) == ("x:1", "m", "classify", 10.0)
    assert "secret-of-mine" not in json.dumps(flat)
