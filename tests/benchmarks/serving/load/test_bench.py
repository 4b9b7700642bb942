"""The load tool against a server in the same event loop that answers without a model."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner

from tuneserve.benchmarks.serving.command import bench_command
from tuneserve.benchmarks.serving.load import bench
from tuneserve.benchmarks.serving.load.bench import measure
from tuneserve.benchmarks.serving.load.calls import Settings
from tuneserve.benchmarks.serving.load.report import table
from tuneserve.benchmarks.serving.load.search import highest
from tuneserve.benchmarks.serving.load.tally import Answer, Tally
from tuneserve.call.channel import CallFailed
from tuneserve.client.endpoint import Endpoint
from tuneserve.errors import StepFailed, UserError
from tuneserve.machine.tiers import measured_on
from tuneserve.v1 import (
    checkpoint_pb2,
    classification_pb2,
    classification_pb2_grpc,
    common_pb2,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)

TASKS = {
    "sentiment": checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION,
    "ner": checkpoint_pb2.TASK_TOKEN_CLASSIFICATION,
    "chat": checkpoint_pb2.TASK_GENERATION,
    "plain": checkpoint_pb2.TASK_GENERATION,
}


class Server(
    model_pb2_grpc.ModelServiceServicer,
    classification_pb2_grpc.ClassificationServiceServicer,
    generation_pb2_grpc.GenerationServiceServicer,
):
    """Answers after `delay` seconds; refuses every call whose running number `refuse` divides."""

    def __init__(self) -> None:
        self.delay = 0.005
        self.refuse = 0
        self.key = ""
        self.requests: list[
            classification_pb2.ClassifyRequest
            | classification_pb2.ClassifyTokensRequest
            | generation_pb2.GenerateRequest
        ] = []
        self.peers: set[str] = set()
        self.running = 0
        self.most_running = 0

    async def GetModel(
        self, request: model_pb2.GetModelRequest, context: grpc.aio.ServicerContext
    ) -> model_pb2.GetModelResponse:
        await self._let_in(context)
        if request.model not in TASKS:
            await context.abort(grpc.StatusCode.NOT_FOUND, "served: sentiment, ner, chat")
        return model_pb2.GetModelResponse(
            model=model_pb2.Model(
                name=request.model,
                task=TASKS[request.model],
                version="0123456789ab",
                quantization="w8a8",
                limits=model_pb2.Limits(max_inputs=8),
            ),
            checkpoint=checkpoint_pb2.Checkpoint(chat_template_sha256="f00" if request.model == "chat" else ""),
        )

    async def _let_in(self, context) -> None:
        if self.key and dict(context.invocation_metadata()).get("authorization") != f"Bearer {self.key}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")

    async def _take(self, request, context) -> None:
        await self._let_in(context)
        self.requests.append(request)
        self.peers.add(context.peer())
        if self.refuse and len(self.requests) % self.refuse == 0:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full")
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.delay)
        finally:
            self.running -= 1

    async def Classify(self, request, context):
        await self._take(request, context)
        return classification_pb2.ClassifyResponse(usage=common_pb2.Usage(prompt_tokens=10 * len(request.inputs)))

    async def ClassifyTokens(self, request, context):
        await self._take(request, context)
        return classification_pb2.ClassifyTokensResponse(usage=common_pb2.Usage(prompt_tokens=7 * len(request.texts)))

    async def Generate(self, request, context):
        await self._take(request, context)
        tokens = list(range(request.sampling.max_tokens))
        return generation_pb2.GenerateResponse(
            completions=[generation_pb2.Completion(token_ids=tokens)], usage=common_pb2.Usage(prompt_tokens=5)
        )

    async def GenerateStream(self, request, context):
        """Sends one token, then the others in messages of at most two."""
        await self._take(request, context)
        left = request.sampling.max_tokens
        size = 1
        while left:
            size = min(size, left)
            left -= size
            yield generation_pb2.GenerateStreamResponse(
                completions=[generation_pb2.Completion(token_ids=[1] * size)],
                usage=None if left else common_pb2.Usage(prompt_tokens=5),
            )
            await asyncio.sleep(0.002)
            size = 2


@pytest.fixture
async def served() -> AsyncIterator[tuple[Server, str]]:
    servicer = Server()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    model_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
    classification_pb2_grpc.add_ClassificationServiceServicer_to_server(servicer, server)
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)


def settings(target: str, model: str, **others: object) -> Settings:
    return Settings(
        Endpoint(target), model, **{"connections": 4, "seconds": 0.4, "warmup": 0.1, "max_tokens": 6} | others
    )


async def test_classification(served: tuple[Server, str]) -> None:
    server, target = served
    result = await measure(settings(target, "sentiment", batch=3))
    figures = result.figures
    assert (result.task, result.version, result.quantization) == ("sequence-classification", "0123456789ab", "w8a8")
    assert figures["calls_per_s"] == pytest.approx(result.calls / 0.4, abs=0.01)
    assert figures["texts_per_s"] == pytest.approx(3 * result.calls / 0.4, abs=0.01)
    assert figures["input_tokens_per_s"] == pytest.approx(30 * result.calls / 0.4, abs=0.1)
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
    assert result.task == "token-classification"
    assert result.figures["texts_per_s"] == pytest.approx(2 * result.calls / 0.4, abs=0.01)
    assert {len(request.texts) for request in server.requests} == {2}


async def test_generation_stream(served: tuple[Server, str]) -> None:
    server, target = served
    result = await measure(settings(target, "chat"))
    figures = result.figures
    assert result.task == "generation"
    # Whole answers have 6 tokens; those cut off by either end of the window count with a part.
    assert figures["output_tokens_per_s"] * 0.4 == pytest.approx(6 * result.calls, abs=6 * 4)
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
    assert result.figures["output_tokens_per_s"] * 0.4 == pytest.approx(6 * result.calls, abs=6 * 4)
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
    result = await measure(settings(target, "sentiment", rate=100.0, goodput={"e2el": 10_000.0}))
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


async def test_times_count_from_when_a_call_was_due() -> None:
    now = time.perf_counter()
    tally = Tally(now - 5, now + 5, by_start=True)

    async def call(tally: Tally, started: float) -> None:
        tally.finish(Answer(started, 1), time.perf_counter())

    await bench._one(call, tally, now - 1)
    assert tally.latencies[0] >= 1
    assert tally.lags[0] >= 1


@pytest.mark.parametrize("capacity", [37.0, 100.0, 400.0, 5.0])
def test_the_highest_rate_is_found(capacity: float) -> None:
    asked: list[float | None] = []

    def measured(chosen: Settings) -> bench.Result:
        asked.append(chosen.rate)
        if (chosen.rate or 0) > 3 * capacity:
            raise StepFailed("no call was answered")
        figures = {"calls_per_s": 100.0, "goodput_per_s": min(chosen.rate or 0, capacity), "client_cpu": 0.1}
        calls = round((chosen.rate or 0) * chosen.seconds)
        return bench.Result(chosen, "t", "v", "", calls, {}, {}, figures)

    shown: list[float] = []
    chosen = settings("x:1", "sentiment", seconds=10.0, goodput={"e2el": 20.0})
    best, results = highest(chosen, lambda rate, result: shown.append(rate), measured)
    assert asked[0] is None
    assert shown == asked[1:]
    assert 0.9 * capacity <= best <= 1.02 * capacity
    assert all(one.good_share >= 0.99 for one in results if (one.settings.rate or 0) <= best)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--goodput", "e2e:5"], "--goodput 'e2e:5' is not e2el, ttft or tpot, a colon and milliseconds"),
        (["--goodput", "ttft"], "--goodput 'ttft' is not"),
        (["--goodput", "ttft:-1"], "--goodput 'ttft:-1' is not"),
        (["--max-rate"], "--max-rate needs --goodput"),
        (["--max-rate", "--rate", "5", "--goodput", "ttft:5"], "--max-rate and --rate exclude each other"),
        (["--rate", "0"], "--rate"),
    ],
)
def test_wrong_goals_and_rates_are_named(wrong: list[str], message: str) -> None:
    result = CliRunner().invoke(bench_command, ["--model", "m", *wrong])
    assert result.exit_code == 2
    assert message in result.stderr


async def test_the_command_finds_the_highest_rate(served: tuple[Server, str]) -> None:
    arguments = ["--target", served[1], "--model", "sentiment", "--connections", "1", "--seconds", "0.2"]
    arguments += ["--warmup", "0", "--max-rate", "--goodput", "e2el:60000"]
    result = await asyncio.to_thread(CliRunner().invoke, bench_command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["max_rate"] == max(one["rate"] for one in found["results"])
    assert "highest rate with 99 of 100 calls good" in result.stdout


async def test_two_runs_are_compared(served: tuple[Server, str], tmp_path: Path) -> None:
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file, connections, delay in zip(files, (2, 4), (0.04, 0.01), strict=True):
        served[0].delay = delay
        result = await measure(settings(served[1], "sentiment", connections=connections))
        file.write_text(f"a table\n{json.dumps(result.to_json())}\n")
    result = CliRunner().invoke(bench_command, ["--compare", *map(str, files)], catch_exceptions=False)
    assert "connections: 2 and 4" in result.stdout.replace("\n", " ")
    rows = {line.split("│")[1].strip(): line.split("│")[2:5] for line in result.stdout.splitlines() if "│" in line}
    before, after, ratio = (float(one.replace(",", "")) for one in rows["e2el_ms_p50"])
    assert 10 <= after < before
    assert ratio == pytest.approx(after / before, abs=0.01)
    files[0].write_text("a table\n")
    result = CliRunner().invoke(bench_command, ["--compare", *map(str, files)])
    assert "a.txt: its last line is no result of tuneserve bench" in str(result.exception)
    result = CliRunner().invoke(bench_command, [])
    assert "Missing option '--model'" in result.stderr


async def test_unknown_model_and_wrong_batch_are_refused(served: tuple[Server, str]) -> None:
    with pytest.raises(CallFailed, match="served: sentiment, ner, chat"):
        await measure(settings(served[1], "other"))
    with pytest.raises(UserError, match="--batch 9: model sentiment takes at most 8"):
        await measure(settings(served[1], "sentiment", batch=9))
    with pytest.raises(UserError, match="--batch 2: model chat takes at most 1"):
        await measure(settings(served[1], "chat", batch=2))


async def test_no_server() -> None:
    with pytest.raises(CallFailed, match=r"no server answers at 127\.0\.0\.1:1"):
        await measure(settings("127.0.0.1:1", "sentiment"))


async def test_command_prints_a_table_and_json_as_the_last_line(
    served: tuple[Server, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    server, target = served
    texts = tmp_path_factory.mktemp("texts") / "texts.txt"
    texts.write_text("only this\n\n and  that \n")
    arguments = ["--target", target, "--model", "sentiment", "--connections", "2", "--seconds", "0.3"]
    arguments += ["--warmup", "0", "--batch", "2", "--texts", str(texts)]
    # The command runs its own event loop, so it needs a thread: this one serves.
    result = await asyncio.to_thread(CliRunner().invoke, bench_command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["target"] == target
    assert (last["model"], last["task"], last["version"]) == ("sentiment", "sequence-classification", "0123456789ab")
    assert (last["connections"], last["batch"], last["seconds"]) == (2, 2, 0.3)
    assert last["texts_per_s"] > 0
    assert last["errors"] == {}
    assert last["texts"] == str(texts)
    assert "texts/s" in result.stdout
    sent = [entry.text for request in server.requests for entry in request.inputs]
    assert {text.partition(" ")[2] for text in sent} == {"only this", "and  that"}
    assert len(set(sent)) == len(sent)
    assert last["client_tier"] == measured_on()


async def test_no_input_is_sent_twice_not_even_by_the_next_run(served: tuple[Server, str]) -> None:
    server, target = served
    for model in ("chat", "plain", "ner", "sentiment") * 2:
        await measure(settings(target, model, seconds=0.5, warmup=0.0))
    sent: list[str] = []
    for request in server.requests:
        if isinstance(request, classification_pb2.ClassifyRequest):
            sent += [entry.text for entry in request.inputs]
        elif isinstance(request, classification_pb2.ClassifyTokensRequest):
            sent += request.texts
        else:
            sent.append(request.prompt.text or request.prompt.chat.messages[0].content)
    assert len(sent) > 100
    assert len(set(sent)) == len(sent)


async def test_a_server_with_keys_and_tls(certified: tuple[Path, Path]) -> None:
    key, certificate = certified
    servicer = Server()
    servicer.key = "secret-of-mine"
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    model_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
    classification_pb2_grpc.add_ClassificationServiceServicer_to_server(servicer, server)
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server)
    pair = [(key.read_bytes(), certificate.read_bytes())]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair, certificate.read_bytes(), True))
    await server.start()
    tls = ["--ca", str(certificate), "--cert", str(certificate), "--cert-key", str(key)]
    plain = ["--target", f"127.0.0.1:{port}", "--seconds", "0.3", "--warmup", "0", "--connections", "2"]
    try:
        for model, calls in (("sentiment", []), ("ner", []), ("chat", []), ("chat", ["--unary"])):
            arguments = [*plain, "--model", model, *tls, "--key", servicer.key, *calls]
            result = await asyncio.to_thread(CliRunner().invoke, bench_command, arguments)
            assert result.exit_code == 0, result.output
            assert json.loads(result.stdout.splitlines()[-1])["tls"] is True
            assert servicer.key not in result.output
        for wrong, message in (([*tls, "--key", "x"], "who are you"), ([], "no server answers"), (tls, "who are you")):
            arguments = [*plain, "--model", "sentiment", *wrong]
            result = await asyncio.to_thread(CliRunner().invoke, bench_command, arguments)
            assert result.exit_code in (1, 2)
            assert message in result.stderr
    finally:
        await server.stop(None)
