"""The shell client over a real wire, against a server that answers without a model."""

import json
import threading
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from click.testing import CliRunner, Result
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from tuneserve.call import call_command
from tuneserve.v1 import (
    checkpoint_pb2,
    classification_pb2,
    classification_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)


class Server(
    model_pb2_grpc.ModelServiceServicer,
    classification_pb2_grpc.ClassificationServiceServicer,
    generation_pb2_grpc.GenerationServiceServicer,
):
    """Remembers the last request. A model's name decides what happens to its calls."""

    request: (
        classification_pb2.ClassifyRequest
        | classification_pb2.ClassifyTokensRequest
        | generation_pb2.GenerateStreamRequest
    )

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def _take(self, request, context) -> None:
        self.request = request
        context.set_trailing_metadata((("x-request-id", "abc"),))
        if request.model == "hangs":
            self.may_go_on.wait(30)
        if request.model == "other":
            context.abort(grpc.StatusCode.NOT_FOUND, "model 'other' is not served here; served: sentiment")
        if request.model == "loading":
            context.abort(grpc.StatusCode.UNAVAILABLE, "model loading is not ready")
        if request.model == "busy":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full: 512 calls")
        if request.model == "picky":
            violations = [
                error_details_pb2.BadRequest.FieldViolation(field="inputs[0].text", description="must not be empty"),
                error_details_pb2.BadRequest.FieldViolation(field="top_k", description="at least 1"),
            ]
            detail = any_pb2.Any()
            detail.Pack(error_details_pb2.BadRequest(field_violations=violations))
            message = "inputs[0].text: must not be empty"
            status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=message, details=[detail])
            context.abort_with_status(rpc_status.to_status(status))

    def ListModels(self, request, context):
        models = [
            model_pb2.Model(
                name="chat",
                task=checkpoint_pb2.TASK_GENERATION,
                state=model_pb2.MODEL_STATE_LOADING,
                version="ba9876543210",
            ),
            model_pb2.Model(
                name="sentiment",
                task=checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION,
                state=model_pb2.MODEL_STATE_READY,
                version="0123456789ab",
                quantization="w8a8",
                labels=["neg", "pos"],
            ),
        ]
        return model_pb2.ListModelsResponse(models=models)

    def Classify(self, request, context):
        self._take(request, context)
        labels = [
            classification_pb2.LabelScore(label="pos", score=0.75),
            classification_pb2.LabelScore(label="[red]neg", score=0.25),
        ]
        result = classification_pb2.Classification(
            labels=labels[: request.top_k or 2], truncated=request.truncation == classification_pb2.TRUNCATION_END
        )
        return classification_pb2.ClassifyResponse(results=[result] * len(request.inputs))

    def ClassifyTokens(self, request, context):
        self._take(request, context)
        spans = [
            classification_pb2.Span(label="PER", score=0.5, start=0, end=5, text="María"),
            classification_pb2.Span(label="LOC", score=0.25, start=11, end=16, text="東京🙂"),
        ]
        return classification_pb2.ClassifyTokensResponse(
            results=[classification_pb2.TokenClassification(spans=spans)]
            + [classification_pb2.TokenClassification()] * (len(request.texts) - 1)
        )

    def GenerateStream(self, request, context):
        self._take(request, context)
        for text in ("The sky", " is [bold]", " blue."):
            yield generation_pb2.GenerateStreamResponse(completions=[generation_pb2.Completion(text=text)])
            if request.model == "breaks":
                context.abort(grpc.StatusCode.INTERNAL, "internal error, request abc")
        long = request.sampling.max_tokens == 3
        reason = generation_pb2.FINISH_REASON_LENGTH if long else generation_pb2.FINISH_REASON_STOP
        yield generation_pb2.GenerateStreamResponse(completions=[generation_pb2.Completion(finish_reason=reason)])


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Server, str]]:
    servicer = Server()
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    model_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
    classification_pb2_grpc.add_ClassificationServiceServicer_to_server(servicer, server)
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def server(served: tuple[Server, str]) -> Server:
    return served[0]


@pytest.fixture
def target(served: tuple[Server, str]) -> str:
    return served[1]


def call(target: str, *arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(
        call_command, arguments, input=stdin, env={"TUNESERVE_TARGET": target}, catch_exceptions=False
    )


def cells(result: Result) -> list[list[str]]:
    """The table's rows, without the headings."""
    assert result.exit_code == 0, result.stderr
    return [line.split() for line in result.stdout.splitlines()[1:]]


def test_models(target: str) -> None:
    assert cells(call(target, "models")) == [
        ["chat", "generation", "loading", "ba9876543210", "not", "quantized", "-"],
        ["sentiment", "sequence-classification", "ready", "0123456789ab", "w8a8", "neg,", "pos"],
    ]
    listed = json.loads(call(target, "models", "--json").stdout)
    assert listed["models"][1]["labels"] == ["neg", "pos"]


def test_classify(server: Server, target: str) -> None:
    result = call(target, "classify", "--model", "sentiment", "A quiet film.", "Bad [bold]film[/bold].")
    assert cells(result) == [
        ["A", "quiet", "film.", "pos", "0.7500"],
        ["[red]neg", "0.2500"],
        ["Bad", "[bold]film[/bold].", "pos", "0.7500"],
        ["[red]neg", "0.2500"],
    ]
    assert [entry.text for entry in server.request.inputs] == ["A quiet film.", "Bad [bold]film[/bold]."]
    assert not server.request.HasField("top_k")
    assert not server.request.inputs[0].HasField("text_pair")
    assert server.request.truncation == classification_pb2.TRUNCATION_REJECT


def test_classify_options(server: Server, target: str) -> None:
    result = call(target, "classify", "--model", "nli", "A", "--pair", "B", "--top-k", "1", "--truncate")
    assert cells(result) == [["A", "(cut)", "pos", "0.7500"]]
    assert server.request.inputs[0].text_pair == "B"
    assert server.request.top_k == 1


def test_pairs_must_match_the_texts(target: str) -> None:
    result = call(target, "classify", "--model", "nli", "A", "C", "--pair", "B")
    assert result.exit_code == 2
    assert "--pair: given 1 times for 2 texts" in result.stderr


def test_texts_come_from_standard_input(server: Server, target: str) -> None:
    long = "x " * 200
    result = call(target, "classify", "--model", "sentiment", "--top-k", "1", stdin=f"one\n\n{long}\n")
    assert [row[0] for row in cells(result)] == ["one", "x"]
    assert [entry.text for entry in server.request.inputs] == ["one", long.strip()]
    call(target, "chat", "--model", "chat", stdin="two\nlines\n")
    assert server.request.prompt.chat.messages[0].content == "two\nlines"


def test_empty_standard_input_is_a_usage_error(target: str) -> None:
    result = call(target, "classify", "--model", "sentiment", stdin=" \n")
    assert result.exit_code == 2
    assert "no TEXT given, and standard input is empty" in result.stderr


def test_tokens(server: Server, target: str) -> None:
    result = call(target, "tokens", "--model", "ner", "--aggregation", "max", "María visits 東京🙂", "nothing")
    assert cells(result) == [
        ["María", "visits", "東京🙂", "María", "PER", "0.5000", "0-5"],
        ["東京🙂", "LOC", "0.2500", "11-16"],
        ["nothing", "-", "-", "-", "-"],
    ]
    assert server.request.aggregation == classification_pb2.AGGREGATION_MAX


def test_tokens_as_json_keep_zeros_and_characters(target: str) -> None:
    result = call(target, "tokens", "--model", "ner", "--json", "María visits 東京🙂")
    span = json.loads(result.stdout)["results"][0]["spans"][0]
    assert span == {"label": "PER", "score": 0.5, "start": 0, "end": 5, "text": "María"}
    assert "東京🙂" in result.stdout


def test_chat(server: Server, target: str) -> None:
    result = call(target, "chat", "--model", "chat", "--system", "Be brief.", "--temperature", "0", "Why?")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "The sky is [bold] blue.\n", "")
    messages = [(message.role, message.content) for message in server.request.prompt.chat.messages]
    assert messages == [("system", "Be brief."), ("user", "Why?")]
    assert server.request.sampling.temperature == 0
    assert server.request.sampling.HasField("temperature")


def test_chat_says_when_it_was_cut_off(target: str) -> None:
    result = call(target, "chat", "--model", "chat", "--max-tokens", "3", "Why?")
    assert result.stdout == "The sky is [bold] blue.\n"
    assert "cut off" in result.stderr


def test_chat_as_json_is_one_message_a_line(target: str) -> None:
    lines = call(target, "chat", "--model", "chat", "--json", "Why?").stdout.splitlines()
    texts = [json.loads(line)["completions"][0]["text"] for line in lines]
    assert texts == ["The sky", " is [bold]", " blue.", ""]


def test_bad_input_names_every_field_once_and_exits_2(target: str) -> None:
    result = call(target, "classify", "--model", "picky", "x")
    assert result.exit_code == 2
    assert result.stderr == "error: inputs[0].text: must not be empty; top_k: at least 1 (INVALID_ARGUMENT)\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("model", "status", "message"),
    [
        (
            "other",
            2,
            "error: model 'other' is not served here; served: sentiment (NOT_FOUND)\nhint:  tuneserve call models",
        ),
        ("busy", 1, "error: queue full: 512 calls (RESOURCE_EXHAUSTED)\nhint:  "),
        ("loading", 1, "error: model loading is not ready (UNAVAILABLE)\n"),
    ],
)
def test_errors_of_the_server(target: str, model: str, status: int, message: str) -> None:
    for arguments in (("classify", "x"), ("tokens", "x"), ("chat", "x")):
        result = call(target, arguments[0], "--model", model, *arguments[1:])
        assert result.exit_code == status
        assert result.stderr.startswith(message)
        assert result.stdout == ""


def test_an_error_inside_a_stream_comes_after_the_text(target: str) -> None:
    result = call(target, "chat", "--model", "breaks", "Why?")
    assert result.exit_code == 1
    assert result.stdout == "The sky\n"
    assert result.stderr == "error: internal error, request abc (INTERNAL)\n"


def test_a_server_that_hangs(server: Server, target: str) -> None:
    server.may_go_on.clear()
    try:
        result = call(target, "classify", "--model", "hangs", "--timeout", "0.2", "x")
    finally:
        server.may_go_on.set()
    assert result.exit_code == 1
    assert result.stderr.startswith(
        f"error: no answer from {target} within 0.2 s (DEADLINE_EXCEEDED)\nhint:  wait longer"
    )


@pytest.mark.parametrize("target", ["127.0.0.1:1", "no.such.host.invalid:8033"])
def test_no_server(target: str) -> None:
    result = call(target, "models", "--timeout", "5")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: no server answers at {target}: ")
    assert "hint:  start one: tuneserve serve" in result.stderr


def test_help_shows_an_example(target: str) -> None:
    assert "tuneserve call classify --model sentiment" in call(target, "--help").stdout
