"""Worker: classifies texts over the Open Inference Protocol's gRPC; each caller has a connection of its own.

Answers have the outputs that our server names. Only our server tells how many tokens it read: the protocol has no place
for it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tuneserve.benchmarks.serving.load.apis.oip import text_tensor
from tuneserve.benchmarks.serving.workers.grpc_client import open_channels
from tuneserve.benchmarks.serving.workers.job import Job, Outcome
from tuneserve.benchmarks.serving.workers.worker import drive, work
from tuneserve.oip import inference_pb2 as pb
from tuneserve.oip.inference_pb2_grpc import GRPCInferenceServiceStub


@asynccontextmanager
async def connected(job: Job) -> AsyncIterator[list[GRPCInferenceServiceStub]]:
    """Yields the stub of each of a job's channels."""
    async with open_channels(job.target, job.connections) as channels:
        yield [GRPCInferenceServiceStub(channel) for channel in channels]


async def send(
    stub: GRPCInferenceServiceStub, job: Job, piece: Sequence[str] | Sequence[int], outcome: Outcome
) -> None:
    """Makes one call."""
    request = pb.ModelInferRequest(model_name=job.model, inputs=[text_tensor("text", piece)])
    answer = await stub.ModelInfer(request)
    [labels] = [output.contents.bytes_contents for output in answer.outputs if output.name == "label"]
    outcome.texts += len(labels)
    if "prompt_tokens" in answer.parameters:
        outcome.prompt_tokens += answer.parameters["prompt_tokens"].int64_param
    outcome.answers += [label.decode() for label in labels] if job.answers else []


if __name__ == "__main__":
    work(lambda: lambda job: asyncio.run(drive(job, connected, send)))
