"""The measuring clients as processes of their own, against servers in this process that count what they get."""

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import grpc
import psutil
import pytest
from aiohttp import web

from tuneserve.benchmarks.serving.workers import job, worker
from tuneserve.benchmarks.serving.workers.job import Job, Outcome
from tuneserve.errors import StepFailed
from tuneserve.v1 import classification_pb2, classification_pb2_grpc, common_pb2, generation_pb2, generation_pb2_grpc


class Seen:
    """What a server was asked: texts of each call, prompts, and from how many connections."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.prompts: list[list[int]] = []
        self.peers: set[str] = set()
        self.streamed = 0


class Grpc(classification_pb2_grpc.ClassificationServiceServicer, generation_pb2_grpc.GenerationServiceServicer):
    """Answers with 3 tokens a text; each prompt with all that was asked for, a stream in messages of two."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    async def Classify(self, request, context):
        self.seen.peers.add(context.peer())
        self.seen.batches.append([one.text for one in request.inputs])
        await asyncio.sleep(0.005)
        return classification_pb2.ClassifyResponse(
            results=[
                classification_pb2.Classification(labels=[classification_pb2.LabelScore(label=one.text.lower())])
                for one in request.inputs
            ],
            usage=common_pb2.Usage(prompt_tokens=3 * len(request.inputs)),
        )

    async def ClassifyStream(self, request_iterator, context):
        self.seen.streamed += 1
        async for one in request_iterator:
            yield classification_pb2.ClassifyStreamResponse(response=await self.Classify(one.request, context))

    async def Generate(self, request, context):
        self.seen.prompts.append(list(request.prompt.token_ids.ids))
        assert request.sampling.ignore_eos
        text = str(self.seen.prompts[-1][0])
        completion = generation_pb2.Completion(token_ids=[1] * request.sampling.max_tokens, text=text)
        usage = common_pb2.Usage(prompt_tokens=len(self.seen.prompts[-1]))
        return generation_pb2.GenerateResponse(completions=[completion], usage=usage)

    async def GenerateStream(self, request, context):
        self.seen.streamed += 1
        self.seen.prompts.append(prompt := list(request.prompt.token_ids.ids))
        for left in range(request.sampling.max_tokens, 0, -2):
            completion = generation_pb2.Completion(token_ids=[1] * min(2, left))
            usage = common_pb2.Usage(prompt_tokens=len(prompt)) if left <= 2 else None
            yield generation_pb2.GenerateStreamResponse(completions=[completion], usage=usage)


class Http:
    """The same in the way of `vllm serve`."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def classify(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen.peers.add(str(request.transport.get_extra_info("peername")))
        self.seen.batches.append(body["input"])
        await asyncio.sleep(0.005)
        size = len(body["input"])
        best = [{"label": text.lower(), "score": 0.9} for text in body["input"]]
        # Of two texts, the second is answered as Infinity does.
        data = [[{"label": "x", "score": 0.1}, one] if index % 2 else one for index, one in enumerate(best)]
        return web.json_response({"data": data, "usage": {"prompt_tokens": 3 * size}})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.prompts.append(body["prompt"])
        assert body["ignore_eos"]
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        if not body.get("stream"):
            return web.json_response({"choices": [{"text": str(body["prompt"][0])}], "usage": usage})
        self.seen.streamed += 1
        assert body["stream_options"] == {"include_usage": True}
        response = web.StreamResponse()
        await response.prepare(request)
        messages = [{"choices": [{"text": "a"}]}] * 2 + [{"choices": [], "usage": usage}]
        for line in [*map(json.dumps, messages), "[DONE]"]:
            await response.write(f"data: {line}\n\n".encode())
        return response


@pytest.fixture(params=["grpc_client", "http_client"])
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Seen, worker.Worker, str]]:
    seen = Seen()
    with worker.started(request.param, [], tmp_path / "log", os.environ) as client:
        if request.param == "grpc_client":
            server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
            classification_pb2_grpc.add_ClassificationServiceServicer_to_server(Grpc(seen), server)
            generation_pb2_grpc.add_GenerationServiceServicer_to_server(Grpc(seen), server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            yield seen, client, f"127.0.0.1:{port}"
            await server.stop(None)
        else:
            http, app = Http(seen), web.Application()
            app.add_routes([web.get("/health", http.health), web.post("/classify", http.classify)])
            app.add_routes([web.post("/v1/completions", http.complete)])
            runner = web.AppRunner(app)
            await runner.setup()
            await (site := web.TCPSite(runner, "127.0.0.1", 0)).start()
            yield seen, client, f"127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
            await runner.cleanup()


async def do(client: worker.Worker, job: Job) -> Outcome:
    return await asyncio.to_thread(client.do, job)


async def test_texts(served: tuple[Seen, worker.Worker, str]) -> None:
    seen, client, target = served
    texts = job.texts(40, seed=1)
    outcome = await do(client, Job(texts=texts, connections=5, batch=3, target=target, model="m"))
    assert outcome.counts == (40, 120, 0)
    assert sorted(map(len, seen.batches)) == [1, *[3] * 13]
    assert sorted(text for batch in seen.batches for text in batch) == sorted(texts)
    assert len(seen.peers) == 5
    assert outcome.rate == 40 / outcome.seconds
    assert outcome.client_cpu > 0
    assert outcome.first_tokens == []


async def test_a_client_of_several_processes(tmp_path: Path) -> None:
    seen, server = Seen(), grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    classification_pb2_grpc.add_ClassificationServiceServicer_to_server(Grpc(seen), server)
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    with worker.started("grpc_client", ["2"], tmp_path / "log", os.environ) as client:
        work = Job(texts=job.texts(40, seed=1), connections=5, batch=3, target=target, model="m")
        outcome = await do(client, work)
        lines = [child.cmdline() for child in psutil.Process(client.process.pid).children()]
    await server.stop(None)
    assert sum("spawn_main" in " ".join(line) for line in lines) == 2
    assert outcome.counts == (40, 120, 0)
    assert sorted(text for batch in seen.batches for text in batch) == sorted(work.texts)
    assert len(seen.peers) == 5


@pytest.mark.parametrize("served", ["grpc_client"], indirect=True)
async def test_texts_on_streams(served: tuple[Seen, worker.Worker, str]) -> None:
    seen, client, target = served
    work = Job(texts=job.texts(40, seed=1), connections=2, batch=10, stream=True, target=target, model="m")
    assert (await do(client, work)).counts == (40, 120, 0)
    assert sorted(text for [text] in seen.batches) == sorted(work.texts)
    assert seen.streamed == 4
    assert len(seen.peers) == 2


async def test_labels_in_the_order_of_the_texts(served: tuple[Seen, worker.Worker, str]) -> None:
    _, client, target = served
    texts = job.texts(20, seed=1)
    outcome = await do(client, Job(texts=texts, batch=3, answers=True, target=target, model="m"))
    assert outcome.answers == [text.lower() for text in texts]
    assert (await do(client, Job(texts=texts, batch=3, target=target, model="m"))).answers == []


@pytest.mark.parametrize("stream", [True, False])
async def test_prompts(served: tuple[Seen, worker.Worker, str], stream: bool) -> None:
    seen, client, target = served
    prompts = job.prompts(6, 10, vocab_size=500, seed=1)
    work = Job(prompts=prompts, max_tokens=5, connections=3, stream=stream, target=target, model="m")
    outcome = await do(client, work)
    assert outcome.counts == (0, 60, 30)
    assert sorted(seen.prompts) == sorted(prompts)
    assert seen.streamed == (6 if stream else 0)
    assert len(outcome.first_tokens) == (6 if stream else 0)
    # Five tokens come in messages of two over gRPC, and in two messages over HTTP.
    gaps = 2 if "grpc" in str(client.process.args) else 1
    assert len(outcome.gaps) == (6 * gaps if stream else 0)
    assert outcome.rate == 30 / outcome.seconds


async def test_what_follows_prompts_in_their_order(served: tuple[Seen, worker.Worker, str]) -> None:
    _, client, target = served
    prompts = job.prompts(5, 3, vocab_size=500, seed=1)
    work = Job(prompts=prompts, max_tokens=1, answers=True, target=target, model="m")
    assert (await do(client, work)).answers == [str(prompt[0]) for prompt in prompts]


async def test_several_jobs_one_after_the_other(served: tuple[Seen, worker.Worker, str]) -> None:
    _, client, target = served
    for count in (1, 2):
        assert (await do(client, Job(texts=job.texts(count, 1), target=target))).texts == count


async def test_a_job_that_fails_says_why_and_the_next_is_done(served, tmp_path: Path) -> None:
    _, client, target = served
    with pytest.raises(StepFailed, match="ValueError"):
        client.do(Job(texts=["a"], batch=0))
    assert (await do(client, Job(texts=["a"], target=target))).texts == 1


async def test_a_worker_that_ended_is_told_of(tmp_path: Path) -> None:
    with worker.started("grpc_client", [], tmp_path / "client.log", os.environ) as client:
        client.process.kill()
        for _ in range(2):
            with pytest.raises(StepFailed, match="client: ended without an answer"):
                client.do(Job(texts=["a"]))


def test_only_answers_reach_the_one_who_asks() -> None:
    program = textwrap.dedent("""
        import os
        from tuneserve.benchmarks.serving.workers.job import Outcome
        from tuneserve.benchmarks.serving.workers.worker import work
        def prepare():
            print("a banner", flush=True); os.system("echo from a child")
            def do(job):
                print("chatter", flush=True)
                return Outcome(seconds=1, texts=len(job.texts))
            return do
        work(prepare)
    """)
    work = json.dumps(asdict(Job(texts=["a", "b"])))
    ended = subprocess.run([sys.executable, "-c", program], input=work, capture_output=True, text=True, timeout=600)
    ready, answer = ended.stdout.splitlines()
    assert json.loads(ready) == {"ready": True}
    assert Outcome(**json.loads(answer)).texts == 2
    assert ended.stderr.splitlines() == ["a banner", "from a child", "chatter"]
