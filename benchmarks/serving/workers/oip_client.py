"""Worker: classifies texts over the Open Inference Protocol's gRPC; each caller has a connection of its own.

Answers have the outputs that our server names. Only our server tells how many tokens it read: the protocol has no place
for it.
"""

import asyncio
from collections.abc import Sequence

import grpc

from tuneserve.benchmarks.serving.load.apis.oip import text_tensor
from tuneserve.benchmarks.serving.workers.grpc_client import connected
from tuneserve.benchmarks.serving.workers.job import Job, Outcome
from tuneserve.benchmarks.serving.workers.worker import drive, work
from tuneserve.oip import inference_pb2 as pb
from tuneserve.oip.inference_pb2_grpc import GRPCInferenceServiceStub


async def send(channel: grpc.aio.Channel, job: Job, piece: Sequence[str] | Sequence[int], outcome: Outcome) -> None:
    """Makes one call."""
    request = pb.ModelInferRequest(model_name=job.model, inputs=[text_tensor("text", piece)])
    answer = await GRPCInferenceServiceStub(channel).ModelInfer(request)
    [labels] = [output.contents.bytes_contents for output in answer.outputs if output.name == "label"]
    outcome.texts += len(labels)
    if "prompt_tokens" in answer.parameters:
        outcome.prompt_tokens += answer.parameters["prompt_tokens"].int64_param
    outcome.answers += [label.decode() for label in labels] if job.answers else []


if __name__ == "__main__":
    work(lambda: lambda job: asyncio.run(drive(job, connected, send)))
