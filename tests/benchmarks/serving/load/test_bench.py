"""The load tool against a server in the same event loop that answers without a model."""

import json
import time

import pytest

from tuneserve.benchmarks.serving.load import bench
from tuneserve.benchmarks.serving.load.bench import measure
from tuneserve.benchmarks.serving.load.report.table import table
from tuneserve.benchmarks.serving.load.tally import Answer, Tally
from tuneserve.errors import StepFailed

from ..conftest import SECONDS, Server, settings


async def test_classification(served: tuple[Server, str]) -> None:
    server, target = served
    result = await measure(settings(target, "sentiment", batch=3))
    figures = result.figures
    assert (result.served.task, result.served.version, result.served.quantization) == (
        "sequence-classification",
        "0123456789ab",
        "w8a8",
    )
    assert figures["calls_per_s"] == pytest.approx(result.calls / SECONDS, abs=0.01)
    assert figures["texts_per_s"] == pytest.approx(3 * result.calls / SECONDS, abs=0.01)
    assert figures["input_tokens_per_s"] == pytest.approx(30 * result.calls / SECONDS, abs=0.1)
    assert 5 <= figures["e2el_ms_p50"] <= figures["e2el_ms_p90"] <= figures["e2el_ms_p99"]
    # Warm-up calls, and those cut off at the end, are not counted.
    assert 0 < result.calls < len(server.requests)
    assert result.errors == {}
    texts = [entry.text for request in server.requests for entry in request.inputs]
    assert all(texts)
    assert len(set(texts)) > 10
    assert {len(request.inputs) for request in server.requests} == {3}


async def test_each_connection_is_its_own_and_has_one_call_at_a_time(served: tuple[Server, str]) -> None:
    server, target = served
    await measure(settings(target, "sentiment", connections=5))
    assert len(server.peers) == 5
    assert server.most_running == 5


async def test_token_classification(served: tuple[Server, str]) -> None:
    server, target = served
    result = await measure(settings(target, "ner", batch=2))
    assert result.served.task == "token-classification"
    assert result.figures["texts_per_s"] == pytest.approx(2 * result.calls / SECONDS, abs=0.01)
    assert {len(request.texts) for request in server.requests} == {2}


async def test_generation_stream(served: tuple[Server, str]) -> None:
    server, target = served
    result = await measure(settings(target, "chat"))
    figures = result.figures
    assert result.served.task == "generation"
    # Whole answers have 6 tokens; those cut off by either end of the window count with a part.
    assert figures["output_tokens_per_s"] * SECONDS == pytest.approx(6 * result.calls, abs=6 * 4)
    assert figures["ttft_ms_p50"] >= 5
    assert 0 < figures["itl_ms_p50"] < figures["ttft_ms_p50"]
    # One token, then messages of two, two and one.
    assert figures["tokens_per_message"] == 1.5
    # A message of two tokens counts as one wait.
    assert figures["itl_ms_p50"] > figures["tpot_ms_p50"]
    assert 0 < figures["tpot_ms_p50"] < figures["ttft_ms_p50"]
    assert figures["e2el_ms_p50"] > figures["ttft_ms_p50"]
    sampling = server.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.ignore_eos) == (6, 0, True)
    prompts = [request.prompt.chat.messages[0].content for request in server.requests]
    assert len(set(prompts)) == len(prompts), "no two prompts are the same, so no prefix cache can answer"


async def test_generation_unary_without_a_chat_template(served: tuple[Server, str]) -> None:
    server, target = served
    result = await measure(settings(target, "plain", stream=False))
    # The last answer of a connection can come just before the window's end and be counted just after it.
    assert result.figures["output_tokens_per_s"] * SECONDS == pytest.approx(6 * result.calls, abs=6 * 4)
    assert "ttft_ms_p50" not in result.figures
    assert result.figures["e2el_ms_p50"] >= 5
    assert server.requests[0].prompt.text


async def test_one_token_answers_have_no_gaps(served: tuple[Server, str]) -> None:
    result = await measure(settings(served[1], "chat", max_tokens=1))
    assert result.figures["ttft_ms_p50"]
    assert result.figures["itl_ms_p50"] is None
    assert result.figures["tpot_ms_p99"] is None
    json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert table(result).row_count


async def test_errors_are_counted_by_status(served: tuple[Server, str]) -> None:
    server, target = served
    server.refuse = 3
    result = await measure(settings(target, "sentiment"))
    assert result.errors.keys() == {"RESOURCE_EXHAUSTED"}
    assert result.error_texts == {"RESOURCE_EXHAUSTED": "queue full"}
    assert 0 < result.errors["RESOURCE_EXHAUSTED"] <= len(server.requests) // 3
    assert result.calls > 0


async def test_no_answer_at_all_is_a_failure_that_says_why(served: tuple[Server, str]) -> None:
    server, target = served
    server.refuse = 1
    with pytest.raises(StepFailed, match="RESOURCE_EXHAUSTED: queue full"):
        await measure(settings(target, "sentiment"))
    # A refused connection pauses: 4 connections call some 40 times in 0.5 s, and thousands of times without it.
    assert len(server.requests) < 200


async def test_a_server_that_hangs_does_not_hang_the_tool(served: tuple[Server, str]) -> None:
    server, target = served
    server.delay = 3600
    with pytest.raises(StepFailed, match=r"no call was answered in 0\.2 s"):
        await measure(settings(target, "chat", seconds=0.2))


async def test_calls_that_arrive_independently_do_not_wait_for_each_other(served: tuple[Server, str]) -> None:
    server, target = served
    server.delay = 0.5
    result = await measure(settings(target, "sentiment", rate=100.0, goodput={"e2el": 10_000.0}, seconds=0.4))
    assert server.most_running > 20 > 4
    # 0.4 s of them, though all end later than that; the warm-up's do not count.
    assert 20 <= result.calls <= 65
    assert len(server.requests) > result.calls
    assert result.figures["e2el_ms_p50"] >= 500
    assert (
        result.figures["goodput_per_s"] == result.figures["calls_per_s"] == pytest.approx(result.calls / 0.4, abs=0.01)
    )
    assert 0 <= result.figures["lag_ms_p50"] <= result.figures["lag_ms_p99"]
    assert (result.good_share, result.to_json()["rate"]) == (pytest.approx(1, abs=0.01), 100.0)


async def test_errors_and_slow_calls_are_no_good_ones(served: tuple[Server, str]) -> None:
    server, target = served
    server.refuse = 2
    result = await measure(settings(target, "sentiment", rate=100.0, goodput={"e2el": 10_000.0}))
    assert result.errors["RESOURCE_EXHAUSTED"] == pytest.approx(result.calls, abs=1)
    assert result.good_share == pytest.approx(0.5, abs=0.05)
    server.refuse, server.delay = 0, 0.05
    result = await measure(settings(target, "sentiment", rate=100.0, goodput={"e2el": 20.0}))
    assert (result.good_share, result.figures["goodput_per_s"]) == (0, 0)


@pytest.mark.parametrize("rate", [None, 50.0])
async def test_a_client_that_is_late_makes_the_run_invalid(served: tuple[Server, str], rate: float | None) -> None:
    server, target = served

    async def hold() -> None:
        time.sleep(0.05)  # noqa: ASYNC251 - the server is in the client's loop

    server.work = hold
    result = await measure(settings(target, "sentiment", rate=rate))
    assert result.figures["lag_ms_p99"] >= 40
    assert result.invalid


async def test_times_count_from_when_a_call_was_due() -> None:
    now = time.perf_counter()
    tally = Tally(now - 5, now + 5, by_start=True)

    async def call(tally: Tally, started: float) -> None:
        tally.finish(Answer(started, 1), time.perf_counter())

    await bench._one(call, tally, now - 1)
    assert tally.latencies[0] >= 1
    assert tally.lags[0] >= 1
