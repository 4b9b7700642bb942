"""Quota equals work: what the engines read and write for a call is taken from its tenant's quota, no more and no less,
however the call ends.
"""

import asyncio
import contextlib

import grpc
import pytest

from tuneserve.oip import inference_pb2
from tuneserve.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from tuneserve.server.call import request_log
from tuneserve.server.call.tenants import hashed
from tuneserve.server.config import ModelConfig
from tuneserve.server.engine.interface import Delta, EngineFailed
from tuneserve.v1 import classification_pb2, embedding_pb2, generation_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

from ..conftest import loopback

KEY = (("x-api-key", "spender-key"),)
TOKENS = 40
PROMPTS = [b"the film was good"] * 100
CLASSIFY = classification_pb2.ClassifyRequest(
    model="sentiment", inputs=[classification_pb2.ClassifyInput(text="the film was good")] * 3
)
SAMPLING = generation_pb2.SamplingParams(max_tokens=TOKENS, n=2)
PROMPT = generation_pb2.Prompt(text="the film was")


class Work:
    """What a fake engine did: a token after the other, whether they are asked for one by one or all at once."""

    def __init__(self, engine) -> None:
        self.tokens = 0
        self.step = 0.0
        self.running = 0
        self.dead = False
        self.prompts: list[list[int]] = []
        self.block = engine.cache_block
        self._pool = engine.pool
        engine.pool, engine.generate = self.pool, self.generate

    async def pool(self, ticket, inputs, task):
        self.tokens += sum(len(one.token_ids) for one in inputs)
        self.running += 1
        try:
            await self._sleep()
            return await self._pool(ticket, inputs, task)
        finally:
            self.running -= 1

    async def generate(self, ticket, token_ids, sampling, stream):
        # The completions of a prompt find it in the prefix cache, but for its last block.
        is_cached = any(prompt is token_ids for prompt in self.prompts)
        self.tokens += (len(token_ids) - 1) % self.block + 1 if is_cached else len(token_ids)
        self.prompts.append(token_ids)
        self.running += 1
        unseen = 0
        try:
            for step in range(sampling.max_tokens):
                await self._sleep()
                self.tokens += 1
                unseen += 1
                if stream or step == sampling.max_tokens - 1:
                    count, unseen = unseen, 0
                    yield Delta(0, "ab" * count, [7] * count, finish="length")
        finally:
            self.running -= 1
            ticket.lost(unseen)

    async def _sleep(self):
        await asyncio.sleep(self.step)
        if self.dead:
            raise EngineFailed("gone")


@pytest.fixture
async def spending(serve_config, make_bert, make_llama, tmp_path, monkeypatch):
    """A server with one tenant, its engines' work, and what the tenant was charged."""
    path = tmp_path / "tenants.yaml"
    path.write_text(f"tenants: {{spender: {{keys: ['{hashed('spender-key')}'], tokens_per_minute: 1000000000}}}}\n")
    config = loopback(
        {
            "sentiment": ModelConfig(path=make_bert(), max_num_seqs=2),
            "ner": ModelConfig(path=make_bert("ForTokenClassification", ["O", "PER"]), max_num_seqs=2),
            "vectors": ModelConfig(path=make_bert("Model", []), max_num_seqs=2),
            "chat": ModelConfig(path=make_llama(), max_num_seqs=4),
        },
        tenants=path,
        drain_seconds=3,
    )
    async with serve_config(config) as served:
        charged: list[int] = []
        monkeypatch.setattr(served.app._tenants, "charge", lambda tenant, tokens: charged.append(tokens))
        yield served, {name: Work(engine) for name, engine in served.engines.items()}, charged


def batch(*prompts: bytes, tokens: int = 3) -> inference_pb2.ModelInferRequest:
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [len(prompts)]}
    request = inference_pb2.ModelInferRequest(model_name="chat", inputs=[tensor])
    request.inputs[0].contents.bytes_contents.extend(prompts)
    request.parameters["max_tokens"].int64_param = tokens
    return request


async def endless(request):
    yield request
    await asyncio.sleep(600)


TEXTS = ["the film was good", "bad"]
EXPLAIN = classification_pb2.ClassifyRequest(
    model="sentiment", inputs=[classification_pb2.ClassifyInput(text="the film was good")], explain={}
)
TOKENS_OF = classification_pb2.ClassifyTokensRequest(model="ner", texts=TEXTS)
RANK = classification_pb2.RankRequest(model="sentiment", query="the film", candidates=TEXTS, label="pos")
EMBED = embedding_pb2.EmbedRequest(model="vectors", texts=TEXTS)
GENERATE = generation_pb2.GenerateRequest(model="chat", prompt=PROMPT, sampling=SAMPLING)
PART = classification_pb2.ClassifyStreamRequest(id=1, request=CLASSIFY)
# Every call that engines work for: its model, its method and what makes its request.
METHODS = {
    "Classify": ("sentiment", ClassificationServiceStub, lambda: CLASSIFY),
    "Classify, explained": ("sentiment", ClassificationServiceStub, lambda: EXPLAIN),
    "ClassifyStream": ("sentiment", ClassificationServiceStub, lambda: endless(PART)),
    "ClassifyTokens": ("ner", ClassificationServiceStub, lambda: TOKENS_OF),
    "Rank": ("sentiment", ClassificationServiceStub, lambda: RANK),
    "Embed": ("vectors", EmbeddingServiceStub, lambda: EMBED),
    "Generate": ("chat", GenerationServiceStub, lambda: GENERATE),
    "GenerateStream": ("chat", GenerationServiceStub, lambda: GENERATE),
    "ModelInfer": ("chat", GRPCInferenceServiceStub, lambda: batch(*PROMPTS)),
    "ModelStreamInfer": ("chat", GRPCInferenceServiceStub, lambda: endless(batch(PROMPTS[0], tokens=TOKENS))),
}
# What holds all of a model's slots.
HOLDERS = {"sentiment": "Classify", "ner": "ClassifyTokens", "vectors": "Embed", "chat": "Generate"}


def begin(channel: grpc.aio.Channel, method: str, **options):
    _, stub, request = METHODS[method]
    return getattr(stub(channel), method.partition(",")[0])(request(), metadata=KEY, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("phase", ["queued", "running", "answered"])
async def test_calls_cost_what_was_done_for_them(spending, until, method, phase):
    served, works, charged = spending
    name = METHODS[method][0]
    [model] = [model for model in served.app.models if model.name == name]
    work = works[name]
    before, work.step = work.tokens, 600.0 if phase == "queued" else 0.01
    holders = []
    if phase == "queued":
        holders = [begin(served.channel, HOLDERS[name]) for _ in range(4)]
        await until(lambda: model.admission.running >= model.admission._sequences.size)
    call = begin(served.channel, method)
    if phase == "queued":
        await until(lambda: model.admission.waiting)
    elif phase == "running":
        await until(lambda: work.running)
        await asyncio.sleep(0.03)
    elif "Stream" in method:
        await call.read()
    else:
        await call
    for one in (call, *holders):
        one.cancel()
    await until(lambda: not (work.running or model.admission.calls))
    assert sum(charged) == work.tokens - before
    assert (work.tokens > before) == (phase != "queued" or bool(holders))
    for one in (call, *holders):
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await one.code()


def ended(answer) -> bool:
    """Whether an answer of a stream says that its part failed."""
    if isinstance(answer, inference_pb2.ModelStreamInferResponse):
        return bool(answer.error_message)
    return answer.HasField("error")


async def ended_by(ending: str, served, work: Work) -> None:
    """Ends the calls that run."""
    if ending == "dead engine":
        work.dead = True
    elif ending == "drain":
        served.app.config = served.app.config.model_copy(update={"drain_seconds": 0.05})
        await served.app.stop()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("ending", "code"), [("deadline", "DEADLINE_EXCEEDED"), ("dead engine", "UNAVAILABLE"), ("drain", "UNAVAILABLE")]
)
async def test_calls_that_others_end_cost_what_was_done_for_them(spending, until, method, ending, code):
    served, works, charged = spending
    work = works[METHODS[method][0]]
    # Of a prompt there are some tokens by then, and of a text nothing.
    before, work.step = work.tokens, 0.02 if work is works["chat"] else 0.6
    call = begin(served.channel, method, timeout=0.4 if ending == "deadline" else None)
    await until(lambda: work.running)
    await asyncio.sleep(0.1)
    await ended_by(ending, served, work)
    if ending == "dead engine" and "Stream" in method and method != "GenerateStream":
        # Only the parts end.
        while not ended(await call.read()):
            pass
        call.cancel()
    else:
        with contextlib.suppress(grpc.aio.AioRpcError):
            while "Stream" in method and await call.read() is not grpc.aio.EOF:
                pass
        assert (await call.code()).name == code
    await until(lambda: not work.running)
    assert sum(charged) == work.tokens - before > 0


async def test_whoever_cancels_every_answer_pays_for_all_of_them(spending, until):
    served, works, charged = spending
    work = works["chat"]
    work.step = 0.001
    before = work.tokens
    for tokens in range(20, 2 * TOKENS, 4):
        start = work.tokens
        call = begin(served.channel, "Generate")
        await until(lambda start=start, tokens=tokens: work.tokens >= start + tokens)
        call.cancel()
        await until(lambda: not work.running)
    assert sum(charged) == work.tokens - before > 15 * 20


async def test_a_call_of_many_parts_costs_and_logs_all_of_them(spending, monkeypatch, until):
    """Of a call's stages only the first are kept one by one."""
    served, works, charged = spending
    ended = []
    monkeypatch.setattr(request_log, "log", lambda call, *_: ended.append(call))
    before = works["chat"].tokens
    answer = await begin(served.channel, "ModelInfer")
    await until(lambda: ended)
    done = works["chat"].tokens - before
    assert len(PROMPTS) * 3 < done == sum(charged) == ended[0].prompt_tokens + ended[0].completion_tokens
    assert answer.parameters["completion_tokens"].int64_param == ended[0].completion_tokens == 3 * len(PROMPTS)


async def test_labels_asked_of_a_generation_model_cost_as_they_are_asked(spending, until):
    """The prompt once, and its last block again for each token of a label; when cancelled, those that were asked."""
    served, _, charged = spending
    request = classification_pb2.ClassifyRequest(
        model="chat", labels=["good", "bad", "awful"], inputs=[classification_pb2.ClassifyInput(text="a")]
    )
    stub, asked = ClassificationServiceStub(served.channel), []
    answer_at_once = asyncio.Event()
    answer_at_once.set()

    async def generate(ticket, token_ids, sampling, stream):
        asked.append(len(token_ids))
        await answer_at_once.wait()
        [only] = sampling.allowed_token_ids
        yield Delta(0, "", [only], logprobs=[_Logprob(only)], finish="length")

    served.engines["chat"].generate = generate
    served.engines["chat"].max_length = 512
    answer = await stub.Classify(request, metadata=KEY)
    block = served.engines["chat"].cache_block
    again = sum((length - 1) % block + 1 for length in asked[1:])
    assert sum(charged) == answer.usage.prompt_tokens == asked[0] + again + len(asked)
    charged.clear()
    asked.clear()
    answer_at_once.clear()
    call = stub.Classify(request, metadata=KEY)
    await until(lambda: asked)
    call.cancel()
    [model] = [model for model in served.app.models if model.name == "chat"]
    await until(lambda: not model.admission.calls)
    assert sum(charged) == asked[0] + 1


class _Logprob:
    """A log probability for one token."""

    def __init__(self, token_id: int) -> None:
        self.token_id, self.logprob, self.alternatives = token_id, -1.0, ()
