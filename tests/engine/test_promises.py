"""The server's promises where the engine is the real one: isolation, hygiene, quotas and traces. The others have files
of their own (crash, lifecycle, soak), or are `make bench`'s.
"""

import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice

import grpc
import pytest
from google.protobuf.message import Message

from tuneserve import samples
from tuneserve.server.api import generation_messages as convert
from tuneserve.v1 import classification_pb2, embedding_pb2, model_admin_pb2
from tuneserve.v1 import generation_pb2 as pb

pytestmark = pytest.mark.engine

CANARY = "canary7f3a"
# The longest that a turn of the event loop may take, in seconds of its thread's CPU time.
LONGEST_TURN = 0.1
TEXTS = ["A wonderful film.", "Angela Merkel was born in Hamburg.", "It was long, dull, and far too loud for its age."]
ROUNDS = 2


def classify(*texts: str, **fields: object) -> classification_pb2.ClassifyRequest:
    inputs = [classification_pb2.ClassifyInput(text=text) for text in texts]
    return classification_pb2.ClassifyRequest(model="sentiment", inputs=inputs, **fields)


def generate(text: str, **sampling: object) -> pb.GenerateRequest:
    given = {"max_tokens": 16, "temperature": 0.0, **sampling}
    return pb.GenerateRequest(model="chat", prompt=pb.Prompt(text=text), sampling=pb.SamplingParams(**given))


def calls(real, text: str) -> list[tuple[Callable, Message]]:
    """Every kind of call that an engine answers, with a text in it."""
    return [
        # One text: several may run in one step of the engine or in two, and the last bits tell.
        (real.classification.Classify, classify(text)),
        (real.classification.ClassifyTokens, classification_pb2.ClassifyTokensRequest(model="ner", texts=[text])),
        (real.embedding.Embed, embedding_pb2.EmbedRequest(model="vectors", texts=[text])),
        (real.generation.Generate, generate(text, logprobs=3)),
        (real.generation.Generate, generate(text, temperature=1.0, seed=7, n=2)),
    ]


def bad_calls(real, text: str) -> list[tuple[Callable, Message]]:
    """Calls that are refused, some of them late: after the tokenizer, or by the grammar's compiler."""
    forms = [
        pb.StructuredOutput(json_schema=f'{{"type": "{text}"}}'),
        pb.StructuredOutput(regex=f"({text}"),
        pb.StructuredOutput(grammar=f"root ::= {text}"),
    ]
    unknown = generate(text)
    unknown.prompt.token_ids.ids.extend([1, 2, 999_999])
    return [
        (real.classification.Classify, classify(text, " ")),
        (real.classification.Classify, classify(f"{text} " * 2000)),
        (real.classification.Classify, classify(text, thresholds={text: 0.5})),
        (real.generation.Generate, generate(f"{text} " * 9000)),
        (real.generation.Generate, generate(text, temperature=-1.0)),
        (real.generation.Generate, unknown),
        (real.generation.Generate, pb.GenerateRequest(prompt=pb.Prompt(text=text), model=text)),
        *((real.generation.Generate, with_form(text, form)) for form in forms),
    ]


def with_form(text: str, form: pb.StructuredOutput) -> pb.GenerateRequest:
    request = generate(text)
    request.sampling.structured_output.CopyFrom(form)
    return request


def answer(call: tuple[Callable, Message]) -> bytes:
    method, request = call
    return method(request, timeout=60).SerializeToString(deterministic=True)


@contextmanager
def poured(bad: list[tuple[Callable, Message]]) -> Iterator[list[str]]:
    """Sends bad calls again and again, from a thread of its own; their codes come together in the list."""
    codes: list[str] = []
    enough = threading.Event()

    def pour() -> None:
        while not enough.is_set():
            for method, request in bad:
                try:
                    method(request, timeout=60)
                    codes.append("OK")
                except grpc.RpcError as error:
                    codes.append(error.code().name)

    thread = threading.Thread(target=pour)
    thread.start()
    try:
        yield codes
    finally:
        enough.set()
        thread.join()


def test_neighbours_of_bad_calls_answer_as_if_alone(real):
    good = [call for text in TEXTS for call in calls(real, text)]
    for call in good:
        answer(call)  # so that the prefix cache is as full for the first run as for the second
    clean = [answer(call) for call in good]
    with poured(bad_calls(real, "the film")) as codes:
        for _ in range(ROUNDS):
            assert [answer(call) for call in good] == clean
    assert set(codes) == {"INVALID_ARGUMENT", "NOT_FOUND"}


def test_what_callers_send_is_in_no_status_log_or_metric(real):
    for call in calls(real, CANARY):
        answer(call)
    bad = bad_calls(real, CANARY)
    administration = [
        (real.models.LoadModel, model_admin_pb2.LoadModelRequest(model="another", path=CANARY)),
        (
            real.models.LoadAdapter,
            model_admin_pb2.LoadAdapterRequest(model="chat", adapter="style", path=f"../{CANARY}"),
        ),
    ]
    for method, request in [*bad, *administration]:
        with pytest.raises(grpc.RpcError) as caught:
            method(request, timeout=60)
        # A name, of a model or a label, is what a caller must be told was not found.
        named = getattr(request, "model", "") == CANARY or CANARY in getattr(request, "thresholds", ())
        assert named or CANARY not in f"{caught.value.details()} {caught.value.trailing_metadata()}", request
    stream = pb.GenerateRequest(model="chat", prompt=pb.Prompt(text=CANARY))
    stream.sampling.stop.append(CANARY)
    stream.sampling.max_tokens = 16
    for _ in real.generation.GenerateStream(stream):
        pass
    with urllib.request.urlopen(f"http://{real.server.addresses.metrics}/metrics", timeout=10) as page:
        assert CANARY not in page.read().decode()
    log = real.server.log.read_text(errors="replace")
    assert log
    assert CANARY not in log
    assert CANARY.encode() not in b"".join(one.SerializeToString() for one in real.collector.received)


@pytest.mark.parametrize("n", [1, 2])
def test_an_answer_that_is_cancelled_counts_what_was_written_for_it(real, n):
    """As vLLM counts it."""
    names = "tuneserve_completion_tokens_total", "vllm:generation_tokens_total"
    before = {name: real.total(name) for name in names}
    deadline = time.monotonic() + 60
    call = real.generation.Generate.future(generate("Once", max_tokens=1000, ignore_eos=True, temperature=1.0, n=n))
    while real.total(names[1]) < before[names[1]] + 20:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    call.cancel()
    while not (ours := real.total(names[0]) - before[names[0]]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert 20 <= ours < 1000 * n
    assert ours == real.total(names[1]) - before[names[1]]


def test_the_engines_spans_are_under_ours(real):
    trace_id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    real.generation.Generate(generate("A trace"), metadata=[("traceparent", f"00-{trace_id}-{parent}-01")])
    deadline = time.monotonic() + 30
    while len(spans := [one for one in real.collector.all_spans() if one.trace_id.hex() == trace_id]) < 5:
        assert time.monotonic() < deadline, [one.name for one in spans]
        time.sleep(0.2)
    [ours] = [one for one in spans if one.parent_span_id.hex() == parent]
    assert ours.name == "tuneserve.v1.GenerationService/Generate"
    under = {one.name for one in spans if one.parent_span_id == ours.span_id}
    assert {"tokenize", "queue", "engine", "llm_request"} <= under, under


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("others", [0, 20])
@pytest.mark.parametrize("kind", ["characters", "parts of characters"])
def test_the_texts_of_a_prompts_log_probabilities_are_made_in_one_turn(kind, others):
    """As many as one call may ask for, by vLLM itself: it makes them on the event loop."""
    import torch
    from transformers import AutoTokenizer
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.outputs import LogprobsTensors

    tokenizer = AutoTokenizer.from_pretrained(samples.chat_model())
    texts = tokenizer.backend_tokenizer.decode_batch([[id_] for id_ in range(len(tokenizer))])
    is_part = kind != "characters"
    known = [id_ for id_, text in enumerate(texts) if text.endswith("\ufffd") == is_part]
    most = convert._MOST_PROMPT_LOGPROBS // (convert._FRAGMENT if is_part else 1) // (1 + others)
    ids = torch.tensor(list(islice(cycle(known), most)), dtype=torch.int32)[:, None].repeat(1, 1 + others)
    tensors = LogprobsTensors(ids, torch.zeros(ids.shape), torch.ones(most, dtype=torch.int32))

    def turn() -> float:
        made = LogprobsProcessor(tokenizer, None, [None], None, None, others)
        began = time.thread_time()
        made._update_prompt_logprobs(tensors)
        seconds = time.thread_time() - began
        assert len(made.prompt_logprobs) == 1 + most
        return seconds

    assert min(turn() for _ in range(5)) < LONGEST_TURN
