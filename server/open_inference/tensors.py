"""Converts Open Inference Protocol tensors to Python values, and back. Knows nothing of models.

Shapes and lengths come from the caller and are not trusted: no more elements are read than the model accepts, and none
beyond the message's own bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneserve.oip import inference_pb2 as pb
from tuneserve.server.call.departures import check_size
from tuneserve.server.call.errors import InvalidInput, Violations
from tuneserve.server.concurrency import pieces
from tuneserve.server.turns import in_turns

_LISTS = {"BOOL": "bool_contents", "BYTES": "bytes_contents", "FP32": "fp32_contents", "UINT32": "uint_contents"}
_NUMBERS = {"FP32": "<f4", "UINT32": "<u4"}
# Bytes of an output that are written at a time, and bytes of a number.
_RUN, _NUMBER = 1 << 16, 4
# Triton's extensions that change the meaning of a tensor. Other parameters of a tensor are hints and are ignored.
_REFUSED = ("shared_memory_region", "classification")


@dataclass(frozen=True)
class Spec:
    """An input or output tensor of a model. A shape of (1,) is one value for the whole call."""

    name: str
    datatype: str = "BYTES"
    shape: tuple[int, ...] = (-1,)

    def to_proto(self) -> pb.ModelMetadataResponse.TensorMetadata:
        """Returns the public description."""
        return pb.ModelMetadataResponse.TensorMetadata(name=self.name, datatype=self.datatype, shape=self.shape)


@dataclass(frozen=True)
class Input:
    """An input's values: texts or booleans. `path` is its name in errors."""

    path: str
    values: Sequence[Any]


@dataclass(frozen=True)
class Output:
    """An output's values, row by row: bytes or numbers."""

    spec: Spec
    shape: Sequence[int]
    values: Sequence[Any] | NDArray[np.float32]


def read(wrong: Violations, request: pb.ModelInferRequest, specs: Sequence[Spec], most: int) -> dict[str, Input]:
    """Returns the inputs by name, with at most `most` values each."""
    known = {spec.name: spec for spec in specs}
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidInput("raw_input_contents", f"has {len(raw)} entries for {len(request.inputs)} inputs")
    found: dict[str, Input] = {}
    given: dict[str, str] = {}
    for index, tensor in enumerate(request.inputs):
        if tensor.name not in known:
            wrong.add(f"inputs[{index}].name", f"is not an input of this model; allowed: {', '.join(known)}")
            continue
        path = f"inputs[{index}] ({tensor.name})"
        if tensor.name in given:
            wrong.add(path, f"is a duplicate of {given[tensor.name]}")
            continue
        given[tensor.name] = path
        try:
            values = _values(tensor, raw[index] if raw else None, known[tensor.name], most, path)
        except InvalidInput as error:
            wrong.include(error)
        else:
            found[tensor.name] = Input(path, values)
    return found


def _values(tensor: Any, raw: bytes | None, spec: Spec, most: int, path: str) -> Sequence[Any]:
    """Returns a tensor's values: at most `most`."""
    if tensor.datatype != spec.datatype:
        raise InvalidInput(path, f"has another datatype; allowed: {spec.datatype}")
    _refuse_extensions(tensor.parameters, path)
    count = _count(tensor.shape, 1 if spec.shape == (1,) else most, path)
    if raw is not None and tensor.HasField("contents"):
        raise InvalidInput(path, "has contents, and raw_input_contents is there too; allowed: one of them")
    values: Sequence[Any] = getattr(tensor.contents, _LISTS[spec.datatype])
    if raw is not None:
        # A BOOL tensor has one byte per element.
        values = _split(raw, count, path) if spec.datatype == "BYTES" else raw
    if len(values) != count:
        raise InvalidInput(path, f"has {len(values)} elements where its shape says {count}")
    return _texts(values, path) if spec.datatype == "BYTES" else values


def wanted(wrong: Violations, request: pb.ModelInferRequest, specs: Sequence[Spec]) -> list[str]:
    """Returns the names of the requested outputs, in order."""
    known = [spec.name for spec in specs]
    names: dict[str, int] = {}
    for index, output in enumerate(request.outputs):
        path = f"outputs[{index}] ({output.name})"
        if output.name not in known:
            wrong.add(f"outputs[{index}].name", f"is not an output of this model; allowed: {', '.join(known)}")
        elif output.name in names:
            wrong.add(path, f"is a duplicate of outputs[{names[output.name]}]")
        else:
            names[output.name] = index
            try:
                _refuse_extensions(output.parameters, path)
            except InvalidInput as error:
                wrong.include(error)
    return list(names) or known


async def write(response: pb.ModelInferResponse, outputs: Sequence[Output], names: Sequence[str], raw: bool) -> None:
    """Adds the outputs of these names to a response, as raw bytes or as typed lists, in runs of elements."""
    by_name = {output.spec.name: output for output in outputs}
    for output in (by_name[name] for name in names):
        spec, data = output.spec, bytearray()
        tensor = response.outputs.add(name=spec.name, datatype=spec.datatype, shape=output.shape)
        contents = None if raw else getattr(tensor.contents, _LISTS[spec.datatype])
        check_size(sum(map(len, output.values)) if spec.datatype == "BYTES" else _NUMBER * len(output.values))
        async for values in in_turns(_runs(output)):
            if contents is not None:
                contents.extend(values)
            elif spec.datatype == "BYTES":
                data += b"".join(part for value in values for part in (len(value).to_bytes(4, "little"), value))
            else:
                data += np.asarray(values, _NUMBERS[spec.datatype]).tobytes()
        if raw:
            response.raw_output_contents.append(bytes(data))


def _runs(output: Output) -> Iterator[Sequence[Any] | NDArray[np.float32]]:
    if output.spec.datatype == "BYTES":
        yield from pieces(list(output.values), lambda value: len(value) + _NUMBER, _RUN)
    else:
        step = _RUN // _NUMBER
        yield from (output.values[start : start + step] for start in range(0, len(output.values), step))


def _count(shape: Sequence[int], most: int, path: str) -> int:
    if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        raise InvalidInput(path, "has another shape; allowed: [N] or [N, 1]")
    if not 1 <= shape[0] <= most:
        raise InvalidInput(path, f"has {shape[0]} elements; allowed: {f'1 to {most}' if most > 1 else '1'}")
    return shape[0]


def _split(raw: bytes, count: int, path: str) -> list[bytes]:
    """Returns the elements of a BYTES tensor: each follows its length, in four bytes."""
    values: list[bytes] = []
    position = 0
    while position < len(raw):
        if len(values) == count:
            raise InvalidInput(path, f"has more raw bytes than {count} elements, the number in its shape")
        start = position + 4
        position = start + int.from_bytes(raw[position:start], "little")
        if start > len(raw) or position > len(raw):
            raise InvalidInput(f"{path}[{len(values)}]", "is cut off: its length is more than the raw bytes left")
        values.append(raw[start:position])
    return values


def _texts(values: Sequence[bytes], path: str) -> list[str]:
    texts: list[str] = []
    with Violations() as wrong:
        for place, value in enumerate(values):
            try:
                texts.append(value.decode("utf-8"))
            except UnicodeDecodeError:
                wrong.add(f"{path}[{place}]", "is not UTF-8")
    return texts


def _refuse_extensions(parameters: Mapping[str, Any], path: str) -> None:
    for name in _REFUSED:
        if name in parameters:
            raise InvalidInput(path, f"has the parameter {name}, which this server does not take")
