import pytest

from tuneserve.benchmarks.serving.load.tally import Answer, Tally, milliseconds


def test_percentiles_interpolate_and_are_milliseconds() -> None:
    assert milliseconds("x", [0.001 * i for i in range(1, 101)]) == {
        "x_ms_p50": 50.5,
        "x_ms_p90": 90.1,
        "x_ms_p99": 99.01,
        "x_ms_p99.9": 99.901,
    }
    assert milliseconds("x", [0.25], [99]) == {"x_ms_p99": 250.0}
    assert milliseconds("x", [], [50]) == {"x_ms_p50": None}


def test_only_what_ends_inside_the_window_counts() -> None:
    tally = Tally(begin=10.0, end=20.0)
    tally.finish(Answer(started=8.0, inputs=1), when=9.9)
    tally.finish(Answer(started=9.0, inputs=2, prompt_tokens=30), when=10.0)
    tally.finish(Answer(started=19.0, inputs=4), when=20.0)
    assert (tally.latencies, tally.inputs, tally.prompt_tokens) == ([1.0], 2, 30)
    for when in (9.9, 10.0, 19.9, 20.0):
        tally.token(when, 3)
    assert tally.output_tokens == 6
    tally.fail("UNAVAILABLE", "first", when=9.0)
    tally.fail("UNAVAILABLE", "second", when=11.0)
    assert tally.errors == {"UNAVAILABLE": 1}
    assert tally.error_texts == {"UNAVAILABLE": "first"}


def test_times_of_a_stream() -> None:
    tally = Tally(begin=0.0, end=100.0)
    tally.finish(Answer(started=1.0, inputs=1, arrivals=[(1.5, 1), (1.7, 2), (2.3, 2)]), when=2.4)
    assert tally.first_tokens == pytest.approx([0.5])
    # By message, as a reader sees them: two tokens that come together after 0.6 s are one wait, not two of 0.3 s.
    assert tally.gaps == pytest.approx([0.2, 0.6])
    assert (tally.messages, tally.message_tokens) == (3, 5)
    assert tally.per_token == pytest.approx([0.2])
    assert tally.latencies == pytest.approx([1.4])


def test_calls_count_by_when_they_were_due_in_an_open_loop() -> None:
    tally = Tally(begin=10.0, end=20.0, by_start=True)
    tally.finish(Answer(started=9.9, inputs=1), when=15.0)
    tally.finish(Answer(started=19.9, inputs=2), when=50.0)
    tally.finish(Answer(started=20.0, inputs=4), when=21.0)
    assert (tally.latencies, tally.inputs) == (pytest.approx([30.1]), 2)


def test_a_good_call_is_within_each_goal() -> None:
    tally = Tally(begin=0.0, end=100.0, goals={"ttft": 0.5, "tpot": 0.2, "e2el": 2.0})
    for first, last, end in ((1.5, 1.7, 2.4), (1.6, 1.7, 2.4), (1.5, 1.8, 2.4), (1.5, 1.7, 3.1)):
        tally.finish(Answer(started=1.0, inputs=1, arrivals=[(first, 1), (last, 1)]), when=end)
    assert tally.good == 1
    tally.finish(Answer(started=1.0, inputs=1), when=2.0)
    assert tally.good == 2, "a call without tokens has no times of them"


def test_what_several_processes_counted_is_added() -> None:
    parts = [Tally(begin=0.0, end=100.0, goals={"e2el": 2.0}) for _ in range(2)]
    for tally, end in zip(parts, (1.5, 4.0), strict=True):
        tally.finish(Answer(started=1.0, inputs=3, prompt_tokens=5, arrivals=[(1.1, 1), (end, 2)]), when=end)
        tally.token(end, 3)
        tally.lags.append(end)
        tally.fail("UNAVAILABLE", f"at {end}", when=2.0)
    whole, other = parts
    whole.join(other)
    assert (whole.good, whole.inputs, whole.prompt_tokens, whole.output_tokens) == (1, 6, 10, 6)
    assert (whole.messages, whole.message_tokens, whole.lags) == (4, 6, [1.5, 4.0])
    assert whole.latencies == pytest.approx([0.5, 3.0])
    assert (len(whole.first_tokens), len(whole.gaps), len(whole.per_token)) == (2, 2, 2)
    assert (whole.errors, whole.error_texts) == ({"UNAVAILABLE": 2}, {"UNAVAILABLE": "at 1.5"})
