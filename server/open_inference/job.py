"""The input and output tensors of each task in the Open Inference Protocol, and one checked request."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from tuneserve.oip import inference_pb2 as pb
from tuneserve.server.call import failures
from tuneserve.server.call.context import current
from tuneserve.server.call.errors import InvalidInput, Violations
from tuneserve.server.engine.interface import RequestRefused
from tuneserve.server.open_inference import parameters as options
from tuneserve.server.open_inference import tensors
from tuneserve.server.open_inference.tensors import Input, Output, Spec
from tuneserve.v1 import checkpoint_pb2, common_pb2, generation_pb2

_ONE = (1,)
# Fields of our own requests that hold a text. There is only one prompt.
_TEXT = re.compile(r"(?:inputs|texts)(?:\[(\d+)\](?:\.(text|text_pair))?)?|prompt(?:\..*)?")
_SAMPLING = tuple(
    # Log probabilities are not in any tensor.
    field.name
    for field in generation_pb2.SamplingParams.DESCRIPTOR.fields
    if "logprobs" not in field.name
)


@dataclass(frozen=True)
class Form:
    """The tensors of one task. The first input is required, the others are optional."""

    inputs: Sequence[Spec]
    outputs: Sequence[Spec]


_CLASSIFY = Form(
    inputs=(Spec("text"), Spec("text_pair")),
    outputs=(
        Spec("label"),  # the best one
        Spec("score", "FP32"),
        Spec("labels", "BYTES", (-1, -1)),  # best first
        Spec("scores", "FP32", (-1, -1)),
    ),
)
FORMS = {
    checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION: _CLASSIFY,
    checkpoint_pb2.TASK_RANKING: _CLASSIFY,
    checkpoint_pb2.TASK_TOKEN_CLASSIFICATION: Form(
        inputs=(Spec("text"),),
        outputs=(Spec("spans"),),  # a JSON list of objects with label, score, start, end and text
    ),
    checkpoint_pb2.TASK_EMBEDDING: Form(
        inputs=(Spec("text"),),
        outputs=(Spec("embedding", "FP32", (-1, -1)),),
    ),
    # Names and meanings are those of Triton's vLLM backend.
    checkpoint_pb2.TASK_GENERATION: Form(
        inputs=(
            Spec("text_input"),
            Spec("stream", "BOOL", _ONE),
            Spec("sampling_parameters", "BYTES", _ONE),  # a JSON object
            Spec("exclude_input_in_output", "BOOL", _ONE),  # by default the prompt comes first, except in a stream
            Spec("return_finish_reason", "BOOL", _ONE),  # accepted, but it is always returned
        ),
        outputs=(
            Spec("text_output"),
            Spec("finish_reason"),  # "stop" or "length"; empty while the completion is not finished
            Spec("num_output_tokens", "UINT32"),
        ),
    ),
}


@dataclass(frozen=True)
class Job:
    """One checked request."""

    request: pb.ModelInferRequest
    target: str  # NAME or NAME@VERSION
    task: checkpoint_pb2.Task
    given: Mapping[str, Input]
    names: Sequence[str]  # outputs to return
    context: Any  # gRPC's

    @classmethod
    def of(
        cls, request: pb.ModelInferRequest, target: str, task: checkpoint_pb2.Task, most: int, context: Any
    ) -> "Job":
        """Reads a request for a model that takes `most` texts. Raises InvalidInput."""
        form = FORMS[task]
        with Violations() as wrong:
            names = tensors.wanted(wrong, request, form.outputs)
            given = tensors.read(wrong, request, form.inputs, most)
            needed = form.inputs[0].name
            if all(tensor.name != needed for tensor in request.inputs):
                wrong.add("inputs", f"has no {needed}; a tensor of that name is needed")
        return cls(request, target, task, given, names, context)

    @property
    def texts(self) -> Input:
        """The texts, or the prompts."""
        return self.given[FORMS[self.task].inputs[0].name]

    def flag(self, name: str, default: bool = False) -> bool:
        """Returns the value of a BOOL input."""
        return bool(self.given[name].values[0]) if name in self.given else default

    @contextmanager
    def named(self, *targets: tuple[Message, Sequence[str]]) -> Iterator[None]:
        """Sets the call's options in our own requests. Errors in the block name the caller's tensors and options."""
        paths = options.fill(targets, options.parameters(self.request), "parameters")
        if "sampling_parameters" in self.given:
            given = self.given["sampling_parameters"]
            paths |= options.fill(targets, options.parse(given.values[0], given.path), given.path)
        try:
            yield
        except (InvalidInput, RequestRefused) as error:
            shown = failures.for_caller(error)
            assert isinstance(shown, InvalidInput)
            raise shown.renamed(lambda field: self._path(field, paths)) from error

    @contextmanager
    def generation(self, message: generation_pb2.GenerateRequest) -> Iterator[generation_pb2.GenerateRequest]:
        """Does the same as `named` for generation, in a request without a prompt."""
        message.model = self.target
        with self.named((message.sampling, _SAMPLING), (message, ("adapter", "priority"))):
            yield message

    def output(self, name: str, shape: Sequence[int], values: Sequence[Any] | NDArray[np.float32]) -> Output:
        """Returns an output of this task with the given name."""
        [spec] = (spec for spec in FORMS[self.task].outputs if spec.name == name)
        return Output(spec, shape, values)

    def completions(self, made: Sequence[Sequence[generation_pb2.Completion]], prepend: bool) -> list[Output]:
        """Returns the outputs of generation: a row a prompt, flat if there is one prompt or one completion each."""
        prompts = self.texts.values if prepend else [""] * len(made)
        flat = [(prompt, one) for prompt, row in zip(prompts, made, strict=True) for one in row]
        shape = (len(made), len(made[0])) if len(made) > 1 and len(made[0]) > 1 else (len(flat),)
        return [
            self.output("text_output", shape, [(prompt + one.text).encode() for prompt, one in flat]),
            self.output("finish_reason", shape, [_reason(one).encode() for _, one in flat]),
            self.output("num_output_tokens", shape, [len(one.token_ids) for _, one in flat]),
        ]

    async def response(self, outputs: Sequence[Output], usage: common_pb2.Usage) -> pb.ModelInferResponse:
        """Returns the answer, with tensors in the same form (raw or typed) as the request's."""
        response = pb.ModelInferResponse(
            model_name=self.request.model_name, model_version=current().version, id=self.request.id
        )
        await tensors.write(response, outputs, self.names, raw=bool(self.request.raw_input_contents))
        response.parameters["prompt_tokens"].int64_param = usage.prompt_tokens
        response.parameters["completion_tokens"].int64_param = usage.completion_tokens
        return response

    def _path(self, field: str, paths: Mapping[str, str]) -> str:
        """Returns the caller's name for a field of our own request."""
        if match := _TEXT.fullmatch(field):
            index, member = ("0", None) if field.startswith("prompt") else match.groups()
            tensor = self.given["text_pair"] if member == "text_pair" else self.texts
            return tensor.path if index is None else f"{tensor.path}[{index}]"
        name, _, rest = field.removeprefix("sampling").lstrip(".").partition(".")
        name, bracket, index = name.partition("[")
        path = paths.get(name, f"parameters.{name}" if name else "parameters")
        return path + bracket + index + ("." + rest if rest else "")


def _reason(completion: generation_pb2.Completion) -> str:
    name = generation_pb2.FinishReason.Name(completion.finish_reason).removeprefix("FINISH_REASON_")
    return "" if name == "UNSPECIFIED" else name.lower()
