"""The Open Inference Protocol on top of our own API: converts tensors to one of our own requests, and answers to
tensors.

Nothing is decided here: our own services check, admit, count and answer; this file only translates names, in errors,
too. `FORMS` has the tensors of each task; for generation they are those of Triton's vLLM backend.
"""

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from importlib.metadata import version
from typing import Any

import numpy as np

from tuneserve.checkpoint.tasks import TASK_NAMES
from tuneserve.oip import inference_pb2 as pb
from tuneserve.oip.inference_pb2_grpc import GRPCInferenceServiceServicer
from tuneserve.server.api import streams
from tuneserve.server.api.classification import ClassificationService
from tuneserve.server.api.embedding import EmbeddingService
from tuneserve.server.api.generation import GenerationService
from tuneserve.server.call import context as calls
from tuneserve.server.call import failures
from tuneserve.server.call.departures import LARGEST
from tuneserve.server.call.errors import InvalidInput, NotFound
from tuneserve.server.call.wire import Received
from tuneserve.server.models.aliases import Models
from tuneserve.server.open_inference import parameters as options
from tuneserve.server.open_inference.job import FORMS, Job
from tuneserve.server.open_inference.tensors import Input, Output
from tuneserve.server.turns import in_turns
from tuneserve.v1 import checkpoint_pb2, classification_pb2, common_pb2, embedding_pb2, generation_pb2

PLATFORM = "tuneserve_vllm"
# Requests of one stream that are answered at a time; further ones are not read yet.
_AT_ONCE = 64
# Characters of an id: each answer carries it, and a stream has one for each token.
_LONGEST_ID = 1024

Answer = tuple[list[Output], common_pb2.Usage]


class InferenceService(GRPCInferenceServiceServicer):
    """See inference.proto."""

    def __init__(
        self,
        models: Models,
        classification: ClassificationService,
        embedding: EmbeddingService,
        generation: GenerationService,
    ) -> None:
        self._models = models
        self._classification = classification
        self._embedding = embedding
        self._generation = generation
        # Once: it is read from the disk.
        self._version = version("tuneserve")
        self._answers = {
            checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION: self._classify,
            checkpoint_pb2.TASK_RANKING: self._classify,
            checkpoint_pb2.TASK_TOKEN_CLASSIFICATION: self._classify_tokens,
            checkpoint_pb2.TASK_EMBEDDING: self._embed,
            checkpoint_pb2.TASK_GENERATION: self._generate,
        }

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Any) -> pb.ServerLiveResponse:
        """See inference.proto."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Any) -> pb.ServerReadyResponse:
        """See inference.proto."""
        # By the protocol, every model must be ready; the health service is SERVING if one is.
        serving = [route.serves for route in self._models.routes.values()]
        return pb.ServerReadyResponse(ready=bool(serving) and all(serving))

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:
        """See inference.proto."""
        try:
            return pb.ModelReadyResponse(ready=self._models.get(_target(request.name, request.version)).is_ready)
        except NotFound:
            # Clients poll until it is true, even for a model that is not loaded yet.
            return pb.ModelReadyResponse(ready=False)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Any) -> pb.ServerMetadataResponse:
        """See inference.proto."""
        return pb.ServerMetadataResponse(name="tuneserve", version=self._version)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> pb.ModelMetadataResponse:
        """See inference.proto."""
        model = self._models.all(_target(request.name, request.version))[0]
        form = FORMS[model.manifest.task]
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[other.version for other in self._models if other.name == model.name],
            platform=PLATFORM,
            inputs=[spec.to_proto() for spec in form.inputs],
            outputs=[spec.to_proto() for spec in form.outputs],
            properties={
                "task": TASK_NAMES[model.manifest.task],
                "labels": json.dumps(model.labels),
                "max_inputs": str(model.config.max_inputs),
            },
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        """See inference.proto."""
        job = self._job(request, context)
        if job.flag("stream"):
            raise InvalidInput(job.given["stream"].path, "is true; only ModelStreamInfer streams")
        return await self._infer(job)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[Received], context: Any
    ) -> AsyncGenerator[pb.ModelStreamInferResponse, None]:
        """See inference.proto."""

        def answers(some: Sequence[Received]) -> AsyncGenerator[pb.ModelStreamInferResponse, None]:
            return self._stream(some[0], context)

        async with aclosing(streams.answered(request_iterator, answers, _AT_ONCE)) as responses:
            async for response in responses:
                yield response

    async def _stream(self, received: Received, context: Any) -> AsyncGenerator[pb.ModelStreamInferResponse, None]:
        """Answers one request of a stream, with an error if it fails."""
        request: pb.ModelInferRequest = received.message
        with streams.part() as call:
            try:
                call.admit()
                call.hold(received.size)
                job = self._job(request, context)
                if not job.flag("stream"):
                    response = await self._infer(job)
                    response.parameters["triton_final_response"].bool_param = True
                    yield pb.ModelStreamInferResponse(infer_response=response)
                    return
                async with aclosing(self._generate_stream(job)) as responses:
                    async for response in responses:
                        yield pb.ModelStreamInferResponse(infer_response=response)
            except Exception as error:
                response = pb.ModelInferResponse(model_name=request.model_name, id=request.id[:_LONGEST_ID])
                response.parameters["triton_final_response"].bool_param = True
                yield pb.ModelStreamInferResponse(
                    error_message=failures.status(error, call).message, infer_response=response
                )

    def _job(self, request: pb.ModelInferRequest, context: Any) -> Job:
        if len(request.id) > _LONGEST_ID:
            raise InvalidInput("id", f"has {len(request.id)} characters; allowed: {_LONGEST_ID}")
        if not request.model_name:
            raise InvalidInput("model_name", "is empty; a model's name is needed")
        target = _target(request.model_name, request.model_version)
        model = self._models.get(target)
        if "timeout" in request.parameters:
            # As in Triton, the timeout counts while the call waits.
            call = calls.current()
            until = time.monotonic() + options.microseconds(request.parameters["timeout"], "parameters.timeout") / 1e6
            call.deadline = until if call.deadline is None else min(call.deadline, until)
        return Job.of(request, target, model.manifest.task, model.config.max_inputs, context)

    async def _infer(self, job: Job) -> pb.ModelInferResponse:
        outputs, usage = await self._answers[job.task](job)
        return await job.response(outputs, usage)

    async def _classify(self, job: Job) -> Answer:
        message = classification_pb2.ClassifyRequest(model=job.target)
        pairs = job.given.get("text_pair")
        if pairs and len(pairs.values) != len(job.texts.values):
            raise InvalidInput(pairs.path, f"has {len(pairs.values)} elements for {len(job.texts.values)} of text")
        for index, text in enumerate(job.texts.values):
            message.inputs.add(text=text, text_pair=pairs.values[index] if pairs else None)
        with job.named((message, ("top_k", "truncation", "raw_scores", "priority"))):
            response = await self._classification.Classify(message, job.context)
        rows = [result.labels for result in response.results]
        count, width = len(rows), len(rows[0])
        labels: list[bytes] = []
        scores: list[float] = []
        async for row in in_turns(rows):
            labels += [one.label.encode() for one in row]
            scores += [one.score for one in row]
        return [
            job.output("label", (count,), labels[::width]),
            job.output("score", (count,), scores[::width]),
            job.output("labels", (count, width), labels),
            job.output("scores", (count, width), scores),
        ], response.usage

    async def _classify_tokens(self, job: Job) -> Answer:
        message = classification_pb2.ClassifyTokensRequest(model=job.target, texts=job.texts.values)
        with job.named((message, ("aggregation", "offset_unit", "truncation", "priority"))):
            response = await self._classification.ClassifyTokens(message, job.context)
        # One text at a time: keeping all spans as objects would take the garbage collector long to traverse.
        values = [_json(result.spans) async for result in in_turns(response.results)]
        return [job.output("spans", (len(values),), values)], response.usage

    async def _embed(self, job: Job) -> Answer:
        message = embedding_pb2.EmbedRequest(model=job.target, texts=job.texts.values)
        with job.named((message, ("truncation", "normalize", "dimensions", "prompt_name", "priority"))):
            response = await self._embedding.Embed(message, job.context)
        rows = [np.array(result.values, np.float32) async for result in in_turns(response.results)]
        return [job.output("embedding", (len(rows), len(rows[0])), np.concatenate(rows))], response.usage

    async def _generate(self, job: Job) -> Answer:
        prepend = not job.flag("exclude_input_in_output")
        with job.generation(generation_pb2.GenerateRequest()) as message:
            if prepend:
                _check_repeats(job.texts, message.sampling.n)
            responses = await self._generation.generate_each(message, job.texts.values)
        completions = [list(response.completions) for response in responses]
        usage = common_pb2.Usage(
            prompt_tokens=sum(response.usage.prompt_tokens for response in responses),
            completion_tokens=sum(response.usage.completion_tokens for response in responses),
        )
        return job.completions(completions, prepend), usage

    async def _generate_stream(self, job: Job) -> AsyncGenerator[pb.ModelInferResponse, None]:
        if len(job.texts.values) != 1:
            raise InvalidInput(job.texts.path, f"has {len(job.texts.values)} elements; allowed in a stream: 1")
        if not job.flag("exclude_input_in_output", default=True):
            raise InvalidInput(job.given["exclude_input_in_output"].path, "is false; streams hold new text only")
        with job.generation(generation_pb2.GenerateRequest()) as message:
            [message.prompt.text] = job.texts.values
            empty = [generation_pb2.Completion(index=index) for index in range(max(1, message.sampling.n))]
            async with aclosing(self._generation.GenerateStream(message, job.context)) as news:  # type: ignore[type-var]
                async for new in news:
                    by_index = {one.index: one for one in new.completions}
                    found = [by_index.get(one.index, one) for one in empty]
                    response = await job.response(job.completions([found], prepend=False), new.usage)
                    response.parameters["triton_final_response"].bool_param = new.HasField("usage")
                    yield response


def _json(found: Sequence[classification_pb2.Span]) -> bytes:
    spans = [
        {"label": one.label, "score": one.score, "start": one.start, "end": one.end, "text": one.text} for one in found
    ]
    return json.dumps(spans, ensure_ascii=False).encode()


def _check_repeats(prompts: Input, n: int) -> None:
    """Raises InvalidInput if the prompts, repeated for each completion, would make the answer too large."""
    size = sum(map(len, prompts.values)) * max(1, n)
    if size > LARGEST:
        what = f"would be {size} characters in the answer, once for each completion; allowed: {LARGEST}"
        raise InvalidInput("texts", f"{what}; exclude_input_in_output leaves them out")


def _target(name: str, version_: str) -> str:
    return f"{name}@{version_}" if version_ else name
