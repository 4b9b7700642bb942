"""Whatever ends a call, the engine's slot is free within a second; SIGTERM drains."""

import subprocess
import sys
import threading
import time
import urllib.request

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from tuneserve.v1 import classification_pb2
from tuneserve.v1 import generation_pb2 as pb

pytestmark = pytest.mark.engine

STORY = pb.Prompt(chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="Tell me a very long story.")]))
ENDLESS = pb.GenerateRequest(model="chat", prompt=STORY, sampling=pb.SamplingParams(max_tokens=1500, ignore_eos=True))
CLIENT = """
import grpc, sys
from tuneserve.v1 import generation_pb2 as pb
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub
request = pb.GenerateRequest.FromString(bytes.fromhex(sys.argv[2]))
for message in GenerationServiceStub(grpc.insecure_channel(sys.argv[1])).GenerateStream(request):
    print("message", flush=True)
"""


def metrics(real) -> dict[str, list]:
    with urllib.request.urlopen(f"http://{real.server.addresses.metrics}/metrics", timeout=10) as page:
        return {family.name: family.samples for family in text_string_to_metric_families(page.read().decode())}


def unfinished(real, model: str) -> float:
    """Requests that the model's engine holds, running or waiting."""
    families = metrics(real)
    samples = families["vllm:num_requests_running"] + families["vllm:num_requests_waiting"]
    return sum(sample.value for sample in samples if sample.labels["model_name"] == model)


def wait_until(condition, seconds: float = 20.0) -> None:
    """Bounded by less than the calls would take if nothing ended them: 1,500 tokens, or 400 long texts."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        time.sleep(0.05)


def test_cancelled_streams_free_the_engine(real):
    calls = [real.generation.GenerateStream(ENDLESS) for _ in range(4)]
    for call in calls:
        next(call)
    wait_until(lambda: unfinished(real, "chat") == 4)
    for call in calls:
        call.cancel()
    wait_until(lambda: unfinished(real, "chat") == 0)


def test_a_cancelled_batch_frees_the_engine(real):
    inputs = [classification_pb2.ClassifyInput(text=f"{i} " + "a long film " * 100) for i in range(400)]
    call = real.classification.Classify.future(classification_pb2.ClassifyRequest(model="sentiment", inputs=inputs))
    wait_until(lambda: unfinished(real, "sentiment") > 0)
    call.cancel()
    wait_until(lambda: unfinished(real, "sentiment") == 0)
    answered = [sample.value for sample in metrics(real)["tuneserve_queue_depth"]]
    assert not any(answered)


def test_a_deadline_frees_the_engine(real):
    request = pb.GenerateRequest(model="chat", prompt=STORY, sampling=ENDLESS.sampling)
    with pytest.raises(grpc.RpcError) as caught:
        real.generation.Generate(request, timeout=0.5)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: unfinished(real, "chat") == 0)


def test_a_killed_client_frees_the_engine(real):
    arguments = [sys.executable, "-c", CLIENT, real.server.addresses.grpc, ENDLESS.SerializeToString().hex()]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"message\n"
        wait_until(lambda: unfinished(real, "chat") == 1)
        client.kill()
    wait_until(lambda: unfinished(real, "chat") == 0)


def test_every_models_metrics_are_on_one_page(real):
    inputs = [classification_pb2.ClassifyInput(text=text) for text in ("A wonderful film.", "A terrible mess.")]
    real.classification.Classify(classification_pb2.ClassifyRequest(model="sentiment", inputs=inputs))
    families = metrics(real)
    models = {"chat", "ner", "sentiment", "topics", "vectors"}
    assert {sample.labels["model_name"] for sample in families["vllm:num_requests_running"]} == models
    assert {sample.labels["model"] for sample in families["tuneserve_engine_up"]} == models
    labels = {
        sample.labels["label"] for sample in families["tuneserve_predictions"] if sample.labels["model"] == "sentiment"
    }
    assert labels
    assert labels <= {"negative", "positive"}


def test_sigterm_drains(real):
    """Last of all, with 50 live streams: health flips first, new calls are turned away, every stream finishes or is
    told UNAVAILABLE within the budget, the exit status is 0.
    """
    requests = [
        pb.GenerateRequest(model="chat", prompt=STORY, sampling=pb.SamplingParams(max_tokens=length, ignore_eos=True))
        # Half of them can't finish in time, on any machine.
        for length in [16] * 25 + [1500] * 25
    ]
    calls = [real.generation.GenerateStream(request) for request in requests]
    for call in calls:
        next(call)
    ends: list[int | grpc.StatusCode] = []
    health = health_pb2_grpc.HealthStub(real.channel).Watch(health_pb2.HealthCheckRequest())
    assert next(health).status == health_pb2.HealthCheckResponse.SERVING

    def read(call) -> None:
        last = None
        try:
            for message in call:
                last = message
        except grpc.RpcError as error:
            ends.append(error.code())
        else:
            ends.append(last.usage.completion_tokens)

    readers = [threading.Thread(target=read, args=(call,)) for call in calls]
    for reader in readers:
        reader.start()
    real.server.process.terminate()
    assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert len(ends) < 50, "while streams still ran"

    def call_until_refused() -> None:
        for _ in range(100):
            real.generation.Tokenize(pb.TokenizeRequest(model="chat", prompt=STORY))
            time.sleep(0.05)

    with pytest.raises(grpc.RpcError) as caught:
        call_until_refused()
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    for reader in readers:
        reader.join(60)
    assert len(ends) == 50
    assert set(ends) <= {16, 1500, grpc.StatusCode.UNAVAILABLE}
    assert 16 in ends
    assert grpc.StatusCode.UNAVAILABLE in ends
    assert real.server.process.wait(60) == 0
