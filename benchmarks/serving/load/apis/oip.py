"""The Open Inference Protocol over gRPC, of our server and of others, such as Triton and KServe's runtimes.

ModelMetadata tells the tensors: the first input of texts is sent. Generation is that of Triton's vLLM backend, with
`text_input`. Only our server tells the numbers of tokens; elsewhere a message of a stream counts as one token.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from tuneserve.benchmarks.serving.load.apis.ours import answered, asked, channels, connected, refused
from tuneserve.benchmarks.serving.load.calls import CALLS, Message, Refused, Send, Served, default_call
from tuneserve.benchmarks.serving.load.inputs import Request
from tuneserve.benchmarks.serving.load.settings import Settings
from tuneserve.errors import UserError
from tuneserve.oip import inference_pb2 as pb
from tuneserve.oip.inference_pb2_grpc import GRPCInferenceServiceStub

_PROMPT = "text_input"


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[Served, list[Send]]]:
    """See the package."""
    if settings.call in ("rank", "chat"):
        raise UserError(f"--call {settings.call}: --api oip has no such call", "classify, tokens, embed or generate")
    async with channels(settings) as each:
        request = pb.ModelMetadataRequest(name=settings.model)
        found = await asked(GRPCInferenceServiceStub(each[0]).ModelMetadata, request, settings)
        await connected(each, settings)
        texts = [one.name for one in found.inputs if one.datatype == "BYTES"]
        if not texts:
            raise UserError(f"model {settings.model}: takes no texts: no input of type BYTES")
        name = _PROMPT if _PROMPT in texts else texts[0]
        call = settings.call or ("generate" if name == _PROMPT else "classify")
        if task := found.properties.get("task"):
            call = settings.call or default_call(task, is_chat=False)
        served = Served(
            task=task or CALLS[call],
            call=call,
            version=found.versions[0] if len(found.versions) == 1 else "",
            max_inputs=int(found.properties.get("max_inputs", 0)),
        )
        make = _generating if served.generates else _pooling
        is_ours = found.platform.startswith("tuneserve")
        yield served, [make(channel, name, is_ours, settings) for channel in each]


def _pooling(channel: grpc.aio.Channel, name: str, is_ours: bool, settings: Settings) -> Send:
    stub = GRPCInferenceServiceStub(channel)

    async def send(request: Request) -> AsyncIterator[Message]:
        message = pb.ModelInferRequest(model_name=settings.model, inputs=[text_tensor(name, request.texts)])
        if is_ours:
            message.parameters["truncation"].string_param = "TRUNCATION_END"
        yield _message(await answered(stub.ModelInfer, message, settings))

    return send


def _generating(channel: grpc.aio.Channel, name: str, is_ours: bool, settings: Settings) -> Send:
    stub = GRPCInferenceServiceStub(channel)

    def infer(request: Request) -> pb.ModelInferRequest:
        sampling = {"max_tokens": request.max_tokens, "temperature": 0, "ignore_eos": True}
        inputs = [text_tensor(name, request.texts), text_tensor("sampling_parameters", [json.dumps(sampling)])]
        inputs += [_flag("stream", settings.stream), _flag("exclude_input_in_output", True)]
        return pb.ModelInferRequest(model_name=settings.model, inputs=inputs)

    async def send(request: Request) -> AsyncIterator[Message]:
        if not settings.stream:
            yield _message(await answered(stub.ModelInfer, infer(request), settings))
            return
        try:
            async for response in stub.ModelStreamInfer([infer(request)], **settings.server.options):
                if response.error_message:
                    raise Refused("ERROR", response.error_message)
                yield _message(response.infer_response)
        except grpc.aio.AioRpcError as error:
            raise refused(error) from None

    return send


def text_tensor(name: str, texts: Any) -> Any:
    """An input of texts."""
    contents = pb.InferTensorContents(bytes_contents=[text.encode() for text in texts])
    return pb.ModelInferRequest.InferInputTensor(name=name, datatype="BYTES", shape=[len(texts)], contents=contents)


def _flag(name: str, value: bool) -> Any:
    contents = pb.InferTensorContents(bool_contents=[value])
    return pb.ModelInferRequest.InferInputTensor(name=name, datatype="BOOL", shape=[1], contents=contents)


def _message(response: pb.ModelInferResponse) -> Message:
    """Reads an answer: the type of its tensors is that of the request's, or raw."""
    text, tokens = "", None
    for index, output in enumerate(response.outputs):
        raw = response.raw_output_contents[index] if response.raw_output_contents else b""
        if output.name == "text_output":
            # Raw texts have their length in four bytes before them.
            text = (raw[4:] or b"".join(output.contents.bytes_contents)).decode(errors="replace")
        elif output.name == "num_output_tokens":
            numbers = output.contents.uint_contents
            tokens = int.from_bytes(raw, "little") if raw else sum(numbers)
    prompt_tokens = response.parameters["prompt_tokens"].int64_param if "prompt_tokens" in response.parameters else 0
    return Message(prompt_tokens, bool(text) if tokens is None else tokens, text)
