"""Mixed load with random cancels and deadlines on the real engines: nothing grows, and every count is right. And calls
that are all cancelled.

Short by default; `make soak` runs it for ten minutes, and cancels a thousand.
"""

import collections
import os
import random
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tuneserve.v1 import classification_pb2, common_pb2, generation_pb2

pytestmark = pytest.mark.engine

SECONDS = float(os.environ.get("TUNESERVE_SOAK_SECONDS", "20"))
CANCELS = int(os.environ.get("TUNESERVE_CANCELS", "60"))
CLIENTS = 8
TEXT = "Angela Merkel was born in Hamburg, and the film about it was a joy from its beginning to its end. "
# What a call that we cancel, or give too little time, may end with.
CUT_SHORT = {grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}


@dataclass
class Tally:
    """What the clients saw: calls and whole answers by method, and what ended the others."""

    calls: collections.Counter[str] = field(default_factory=collections.Counter)
    answered: collections.Counter[str] = field(default_factory=collections.Counter)
    codes: collections.Counter[tuple[str, grpc.StatusCode]] = field(default_factory=collections.Counter)


def one_call(real, chance: random.Random, tally: Tally) -> None:
    """One call of a random kind, cut short one time in four."""
    kind = chance.choice(("Classify", "ClassifyTokens", "Generate", "GenerateStream"))
    cut = chance.random() < 0.25
    timeout = chance.uniform(0.001, 0.3) if cut and chance.random() < 0.5 else 60
    tally.calls[kind] += 1
    try:
        call = begin(real, kind, chance, timeout)
        if cut:
            time.sleep(chance.uniform(0, 0.3))
            call.cancel()
        if kind == "GenerateStream":
            collections.deque(call, maxlen=0)
        else:
            call.result()
        tally.answered[kind] += 1
    except grpc.FutureCancelledError:
        tally.codes[kind, grpc.StatusCode.CANCELLED] += 1
    except grpc.RpcError as error:
        tally.codes[kind, error.code()] += 1


def begin(real, kind: str, chance: random.Random, timeout: float):
    if kind == "Classify":
        inputs = [
            classification_pb2.ClassifyInput(text=TEXT * chance.randint(1, 3)) for _ in range(chance.choice((1, 1, 16)))
        ]
        request = classification_pb2.ClassifyRequest(model=chance.choice(("sentiment", "topics")), inputs=inputs)
        request.truncation = common_pb2.TRUNCATION_END
        return real.classification.Classify.future(request, timeout=timeout)
    if kind == "ClassifyTokens":
        request = classification_pb2.ClassifyTokensRequest(model="ner", texts=[TEXT] * chance.randint(1, 4))
        return real.classification.ClassifyTokens.future(request, timeout=timeout)
    sampling = generation_pb2.SamplingParams(
        max_tokens=chance.randint(1, 24), n=chance.choice((1, 1, 2)), ignore_eos=True
    )
    prompt = generation_pb2.Prompt(text=TEXT * chance.randint(1, 3))
    if kind == "Generate":
        request = generation_pb2.GenerateRequest(model="chat", prompt=prompt, sampling=sampling)
        return real.generation.Generate.future(request, timeout=timeout)
    request = generation_pb2.GenerateRequest(model="chat", prompt=prompt, sampling=sampling)
    return real.generation.GenerateStream(request, timeout=timeout)


def load(real, seed: int, until: float, tally: Tally) -> None:
    chance = random.Random(seed)
    while time.monotonic() < until:
        one_call(real, chance, tally)


def families(real) -> dict[str, list]:
    with urllib.request.urlopen(f"http://{real.server.addresses.metrics}/metrics", timeout=30) as page:
        return {family.name: family.samples for family in text_string_to_metric_families(page.read().decode())}


def handled(real) -> collections.Counter[tuple[str, str]]:
    """Calls that the server says have ended, by method and code."""
    return collections.Counter(
        {
            (sample.labels["grpc_method"], sample.labels["grpc_code"]): int(sample.value)
            for sample in families(real)["grpc_server_handled"]
            if sample.name.endswith("_total")
        }
    )


def unfinished(real) -> float:
    found = families(real)
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "tuneserve_queue_depth")
    return sum(sample.value for name in names for sample in found[name])


@dataclass
class Size:
    """What a leak would make grow."""

    rss_mib: float  # of all processes
    front_mib: float  # of the server's own
    fds: int
    threads: int


def size(real) -> Size:
    process = psutil.Process(real.server.process.pid)
    family = [process, *process.children(recursive=True)]
    resident = [one.memory_info().rss / (1 << 20) for one in family]
    return Size(sum(resident), resident[0], process.num_fds(), process.num_threads())


def test_soak(real):
    before, tally = handled(real), Tally()
    began = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(load, real, seed, began + SECONDS, tally) for seed in range(CLIENTS)]
        time.sleep(SECONDS / 3)
        warm = size(real)
        for client in clients:
            client.result()
    deadline = time.monotonic() + 120
    while unfinished(real):
        assert time.monotonic() < deadline, "gauges are not back at 0"
        time.sleep(0.1)
    after, end = handled(real) - before, size(real)
    print(f"{tally.calls.total()} calls in {SECONDS:g} s, {tally.answered.total()} answered; {warm} -> {end}")

    assert all(tally.answered[kind] for kind in tally.calls), "every kind was answered"
    assert {code for _, code in tally.codes} <= CUT_SHORT
    for kind, calls in tally.calls.items():
        ended = {code: count for (method, code), count in after.items() if method == kind}
        # A call that was cancelled, or out of time, before the server saw it is no call of the server's; one that
        # ended there just before may have been cut short on its way back.
        assert sum(ended.values()) <= calls
        assert ended["OK"] >= tally.answered[kind]
        assert set(ended) <= {"OK", "CANCELLED", "DEADLINE_EXCEEDED"}
        assert sum(ended.values()) >= tally.answered[kind]
    # Caches fill up in the first minutes; a leak of a request would be thousands of them.
    assert end.rss_mib < warm.rss_mib * 1.1 + 100
    assert end.fds <= warm.fds + CLIENTS
    assert end.threads <= warm.threads + 4


def doomed(real, chance: random.Random) -> list:
    """Calls in each phase of their lives: streaming, in prefill or waiting for it, in the engine, and in our queue."""
    story = generation_pb2.SamplingParams(max_tokens=1500, ignore_eos=True)
    request = generation_pb2.GenerateRequest(model="chat", prompt=generation_pb2.Prompt(text=TEXT), sampling=story)
    streaming = real.generation.GenerateStream(request)
    next(streaming)
    prompt = generation_pb2.Prompt(text=f"{chance.random()} {TEXT * 10}")
    prefill = real.generation.GenerateStream(
        generation_pb2.GenerateRequest(model="chat", prompt=prompt, sampling=story)
    )
    whole = real.generation.Generate.future(generation_pb2.GenerateRequest(model="chat", prompt=prompt, sampling=story))
    # The first fills the engine, the others wait for it.
    inputs = [classification_pb2.ClassifyInput(text=f"{number} {TEXT}") for number in range(512)]
    batch = classification_pb2.ClassifyRequest(model="sentiment", inputs=inputs, truncation=common_pb2.TRUNCATION_END)
    return [streaming, prefill, whole, *(real.classification.Classify.future(batch) for _ in range(3))]


def test_cancelled_calls_leave_nothing(real):
    chance, waits = random.Random(5), []
    warm = size(real)
    for number in range(rounds := max(1, CANCELS // 6)):
        calls = doomed(real, chance)
        time.sleep(chance.uniform(0, 0.2))
        chance.shuffle(calls)
        for call in calls:
            call.cancel()
        began = time.monotonic()
        # A step that has begun is not broken off, and on a CPU it may take a second.
        while unfinished(real):
            assert time.monotonic() < began + 20, "an engine still works for calls that were cancelled"
            time.sleep(0.02)
        waits.append(time.monotonic() - began)
        if number == rounds // 3:
            warm = size(real)
    end = size(real)
    waits.sort()
    print(f"{6 * rounds} calls cancelled; free after {waits[len(waits) // 2]:.2f} s, at most {waits[-1]:.2f} s")
    print(f"{warm} -> {end}")
    assert end.fds <= warm.fds + 8
    assert end.threads <= warm.threads + 8
    # Not of the engines: every new prompt touches pages of the KV cache that were given but not used before.
    assert end.front_mib < warm.front_mib + 32


def prompt_tokens(real, model: str) -> float:
    """Tokens that a model's engine has worked on."""
    samples = families(real)["vllm:prompt_tokens"]
    return sum(one.value for one in samples if one.labels["model_name"] == model and one.name.endswith("_total"))


def test_a_cancelled_batch_is_not_worked_off(real):
    """The batch is in the engine as a whole: what it has not begun with when the call ends, it never does."""
    inputs = [classification_pb2.ClassifyInput(text=f"{number} {TEXT * 10}") for number in range(128)]
    request = classification_pb2.ClassifyRequest(model="sentiment", inputs=inputs)
    request.truncation = common_pb2.TRUNCATION_END
    before = prompt_tokens(real, "sentiment")
    whole = real.classification.Classify(request).usage.prompt_tokens
    assert prompt_tokens(real, "sentiment") - before == whole
    call = real.classification.Classify.future(request)
    deadline = time.monotonic() + 120
    while prompt_tokens(real, "sentiment") == before + whole:
        assert time.monotonic() < deadline, "the engine did not begin"
        time.sleep(0.01)
    call.cancel()
    while unfinished(real):
        assert time.monotonic() < deadline, "the engine still works for a call that was cancelled"
        time.sleep(0.02)
    assert prompt_tokens(real, "sentiment") - before - whole < 0.5 * whole
