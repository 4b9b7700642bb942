"""The real tritonclient, in a process of its own: its messages have the names of ours, and one process takes one of
them. `python triton_client.py ADDRESS` reads a JSON list of calls and writes the list of what came of them.

A call is an object with `method`, a method of tritonclient's InferenceServerClient, and its `arguments`; or, for
`infer`, with `model`, `inputs` (values by name) and what else it takes; for a stream there are `requests` of these.
"""

import asyncio
import base64
import json
import queue
import sys

import numpy as np
from google.protobuf import descriptor_pb2
from tritonclient import grpc
from tritonclient.grpc import aio, service_pb2
from tritonclient.utils import InferenceServerException

TIMEOUT = 120


def prepared(module, model: str, inputs: dict, outputs: list[str] = (), **options) -> dict:
    """The arguments of an inference, as anybody's program would make them."""
    tensors = []
    for name, values in inputs.items():
        array = np.array(values, dtype=bool if isinstance(values[0], bool) else np.object_)
        tensors.append(module.InferInput(name, list(array.shape), "BOOL" if array.dtype == bool else "BYTES"))
        tensors[-1].set_data_from_numpy(array)
    wanted = [module.InferRequestedOutput(name) for name in outputs] or None
    return {"model_name": model, "inputs": tensors, "outputs": wanted, **options}


def shown(result) -> dict:
    """An answer in JSON's types."""
    response = result.get_response()
    found = {output.name: result.as_numpy(output.name) for output in response.outputs}
    texts = np.vectorize(lambda value: value.decode(), otypes=[object])
    return {
        "id": response.id,
        "version": response.model_version,
        "parameters": {
            name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in response.parameters.items()
        },
        "shapes": {name: list(array.shape) for name, array in found.items()},
        **{name: (texts(array) if array.dtype == object else array).tolist() for name, array in found.items()},
    }


def failed(error: InferenceServerException) -> dict:
    return {"error": error.message(), "status": error.status()}


def infer(client, **request) -> dict:
    return shown(client.infer(**prepared(grpc, **request), client_timeout=TIMEOUT))


def stream(client, requests: list[dict]) -> list[dict]:
    """Every answer on one stream, in the order in which they came."""
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put(failed(error) if error else shown(result)))
    for request in requests:
        client.async_stream_infer(**prepared(grpc, **request))
    # Ends the caller's side and waits for the server's.
    client.stop_stream()
    return [answers.get_nowait() for _ in range(answers.qsize())]


def cancelled_stream(client, request: dict, after: int) -> int:
    """How many answers came until the stream was cancelled at the `after`th."""
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error or result))
    client.async_stream_infer(**prepared(grpc, **request))
    for _ in range(after):
        answers.get(timeout=TIMEOUT)
    client.stop_stream(cancel_requests=True)
    return after


def aio_stream(address: str, requests: list[dict]) -> list[dict]:
    """The same through tritonclient's asyncio side."""

    async def run() -> list[dict]:
        async def sent():
            for request in requests:
                yield prepared(aio, **request)

        async with aio.InferenceServerClient(address) as client:
            answers = client.stream_infer(sent(), stream_timeout=TIMEOUT)
            return [failed(error) if error else shown(result) async for result, error in answers]

    return asyncio.run(run())


def unlike(serialized: str) -> list[str]:
    """What a .proto file, given as a FileDescriptorProto, says of the service's messages otherwise than Triton's."""

    def facts(file: descriptor_pb2.FileDescriptorProto) -> set[tuple]:
        found = set()

        def visit(message, name: str) -> None:
            for field in message.field:
                place = (field.name, field.number, field.type, field.label, field.type_name)
                found.add((name, *place, field.HasField("oneof_index")))
            for nested in message.nested_type:
                visit(nested, f"{name}.{nested.name}")

        for message in file.message_type:
            visit(message, message.name)
        for method in file.service[0].method:
            found.add((method.name, method.input_type, method.output_type, method.server_streaming))
        return found

    ours = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(serialized))
    theirs = descriptor_pb2.FileDescriptorProto()
    service_pb2.DESCRIPTOR.CopyToProto(theirs)
    return sorted(map(str, facts(ours) - facts(theirs)))


def run(client, address: str, method: str, arguments: list = (), **request) -> object:
    try:
        if method == "aio_stream":
            return aio_stream(address, **request)
        if method == "unlike":
            return unlike(*arguments)
        if method in ("infer", "stream", "cancelled_stream"):
            return globals()[method](client, **request)
        answer = getattr(client, method)(*arguments, **({"as_json": True} if method.startswith("get_") else {}))
    except InferenceServerException as error:
        return failed(error)
    return answer


def main() -> None:
    calls, address = json.load(sys.stdin), sys.argv[1]
    with grpc.InferenceServerClient(address) as client:
        json.dump([run(client, address, **call) for call in calls], sys.stdout)


if __name__ == "__main__":
    main()
