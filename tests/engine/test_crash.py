"""A crashed or hung engine process: no call hangs, health says so, other models go on, the engine comes back."""

import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tuneserve.v1 import classification_pb2, embedding_pb2, generation_pb2

pytestmark = pytest.mark.engine

SERVING = health_pb2.HealthCheckResponse.SERVING
TEXT = "Angela Merkel was born in Hamburg."
# What a call may end with while an engine is down.
DOWN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


def call(real, model: str) -> None:
    """One call to a model, without a deadline of its own."""
    if model == "chat":
        real.generation.Generate(
            generation_pb2.GenerateRequest(
                model=model,
                prompt=generation_pb2.Prompt(text=TEXT),
                sampling=generation_pb2.SamplingParams(max_tokens=8, ignore_eos=True),
            )
        )
    elif model == "ner":
        real.classification.ClassifyTokens(classification_pb2.ClassifyTokensRequest(model=model, texts=[TEXT]))
    elif model == "vectors":
        real.embedding.Embed(embedding_pb2.EmbedRequest(model=model, texts=[TEXT]))
    else:
        inputs = [classification_pb2.ClassifyInput(text=TEXT)]
        real.classification.Classify(classification_pb2.ClassifyRequest(model=model, inputs=inputs))


MODELS = ("chat", "ner", "sentiment", "topics", "vectors")


class Callers:
    """One thread a model that calls it over and over, and what its calls ended with."""

    def __init__(self, real) -> None:
        self.answered = dict.fromkeys(MODELS, 0)
        self.began = dict.fromkeys(MODELS, 0.0)
        self.codes: dict[str, set[grpc.StatusCode]] = {model: set() for model in MODELS}
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(len(MODELS))
        self._futures = [self._pool.submit(self._run, real, model) for model in MODELS]

    def _run(self, real, model: str) -> None:
        while not self._stopping.is_set():
            self.began[model] = time.monotonic()
            try:
                call(real, model)
                self.answered[model] += 1
            except grpc.RpcError as error:
                self.codes[model].add(error.code())
                time.sleep(0.1)

    def stop(self) -> None:
        """Ends the threads; fails if one hangs in its call."""
        self._stopping.set()
        for future in self._futures:
            future.result(300)
        self._pool.shutdown()


@pytest.fixture
def callers(real) -> Iterator[Callers]:
    running = Callers(real)
    yield running
    running.stop()


def engines(real) -> list[psutil.Process]:
    """The server's engine processes: not Python's helper that tracks shared memory, nor the fork server, nor those that
    check constraints.
    """
    others = "resource_tracker|forkserver|constraint_process"
    started = psutil.Process(real.server.process.pid).children(recursive=True)
    return [one for one in started if not re.search(others, str(one.cmdline()))]


def states(real) -> dict[str, int]:
    stub = health_pb2_grpc.HealthStub(real.channel)
    requests = {model: health_pb2.HealthCheckRequest(service=f"models/{model}") for model in MODELS}
    return {model: stub.Check(request).status for model, request in requests.items()}


def wait_for(condition, seconds: float) -> float:
    """Waits until something holds; returns after how long."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"did not happen within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - started


def test_a_step_longer_than_the_watchdog_is_waited_for(real):
    running = set(engines(real))
    real.trouble.write_text("25")
    call(real, "vectors")
    assert not real.trouble.exists()
    assert set(engines(real)) == running
    assert set(states(real).values()) == {SERVING}
    assert "its engine computes one step for over 15 s" in real.server.log.read_text()


def test_a_deadlocked_engine_is_replaced_and_its_calls_are_told_why(real):
    """Its main thread waits for ever, while those that serve gloo go on looking for messages."""
    real.trouble.write_text("deadlock")
    with pytest.raises(grpc.RpcError) as caught:
        call(real, "vectors")
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    told = "model 'vectors': its engine gave no sign of life for 15 s and is being restarted"
    assert told in caught.value.details()
    wait_for(lambda: set(states(real).values()) == {SERVING}, 600)
    call(real, "vectors")


@pytest.mark.parametrize(("number", "notice"), [(signal.SIGKILL, 20.0), (signal.SIGSTOP, 120.0)])
def test_an_engine_process_is_lost(real, callers, number, notice):
    """`notice` bounds the wait for health to say so: a crash is seen at once, a hang by the watchdog of 15 s."""
    wait_for(lambda: all(callers.answered.values()), 300)
    victim = engines(real)[0]
    victim.send_signal(number)
    seconds = wait_for(lambda: set(states(real).values()) != {SERVING}, notice)
    print(f"{number.name}: NOT_SERVING after {seconds:.2f} s")
    [lost] = [model for model, state in states(real).items() if state != SERVING]
    others = [model for model in MODELS if model != lost]

    before = dict(callers.answered)
    wait_for(lambda: all(callers.answered[model] > before[model] + 3 for model in others), 300)
    assert all(not callers.codes[model] for model in others), "other models go on"
    assert callers.codes[lost] <= set(DOWN)
    # Whatever waited for the lost engine was told so: its caller has begun another call since.
    noticed = time.monotonic()
    wait_for(lambda: callers.began[lost] > noticed, 120)

    wait_for(lambda: set(states(real).values()) == {SERVING}, 600)
    before = dict(callers.answered)
    wait_for(lambda: all(callers.answered[model] > before[model] for model in MODELS), 300)
    assert not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE
    assert len(engines(real)) == len(MODELS)
