"""The shell client over a real wire, against a server that answers without a model."""

import json
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from google.protobuf import any_pb2, json_format
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from tuneserve.call.command import call_command
from tuneserve.v1 import (
    checkpoint_pb2,
    classification_pb2,
    classification_pb2_grpc,
    common_pb2,
    embedding_pb2,
    embedding_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    model_admin_pb2,
    model_admin_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)


class Server(
    model_admin_pb2_grpc.ModelAdminServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
    classification_pb2_grpc.ClassificationServiceServicer,
    embedding_pb2_grpc.EmbeddingServiceServicer,
    generation_pb2_grpc.GenerationServiceServicer,
):
    """Remembers the last request. A model's name decides what happens to its calls."""

    request: Any
    metadata: dict[str, str | bytes]

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def _take(self, request, context) -> None:
        self.request, self.metadata = request, dict(context.invocation_metadata())
        context.set_trailing_metadata((("x-request-id", "abc"),))
        if request.model == "hangs":
            self.may_go_on.wait(30)
        if request.model == "other":
            context.abort(grpc.StatusCode.NOT_FOUND, "model 'other' is not served here; served: sentiment")
        if request.model == "loading":
            context.abort(grpc.StatusCode.UNAVAILABLE, "model loading is not ready")
        if request.model == "busy":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full: 512 calls")
        if request.model == "locked":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "an API key is needed")
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
                id="chat@ba9876543210",
            ),
            model_pb2.Model(
                name="sentiment",
                task=checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION,
                state=model_pb2.MODEL_STATE_READY,
                version="0123456789ab",
                id="sentiment@0123456789ab",
                quantization="w8a8",
                labels=["neg", "pos"],
                adapters=[model_pb2.Adapter(name="polite", version="5555"), model_pb2.Adapter(name="terse")],
            ),
        ]
        # Two pages.
        return model_pb2.ListModelsResponse(
            models=models[1:] if request.page_token else models[:1], next_page_token="" if request.page_token else "x"
        )

    def ListAliases(self, request, context):
        split = [("chat@ba9876543210", 1), ("sentiment@0123456789ab", 7)]
        aliases = [
            model_pb2.Alias(
                name="sentiment",
                targets=[model_pb2.AliasTarget(model="sentiment@0123456789ab", weight=1)],
                shadow="chat@ba9876543210",
            ),
            model_pb2.Alias(
                name="split",
                targets=[model_pb2.AliasTarget(model=model, weight=weight) for model, weight in split],
            ),
        ]
        return model_pb2.ListAliasesResponse(aliases=aliases)

    def LoadModel(self, request, context):
        self._take(request, context)
        self.loaded = model_pb2.Model(
            name=request.model,
            id=f"{request.model}@77",
            version="77",
            task=checkpoint_pb2.TASK_EMBEDDING,
            state=model_pb2.MODEL_STATE_LOADING,
            load_step=model_pb2.LOAD_STEP_WAITING,
        )
        return model_admin_pb2.LoadModelResponse(model=self.loaded)

    def WatchModel(self, request, context):
        assert request.model == self.loaded.id
        yield model_pb2.WatchModelResponse(model=self.loaded)
        self.loaded.load_step = model_pb2.LOAD_STEP_UNSPECIFIED
        self.loaded.state = model_pb2.MODEL_STATE_READY
        if self.loaded.name == "broken":
            self.loaded.state, self.loaded.failure = model_pb2.MODEL_STATE_FAILED, "its engine did not start"
        yield model_pb2.WatchModelResponse(model=self.loaded)

    def CancelLoad(self, request, context):
        self._take(request, context)
        return model_admin_pb2.CancelLoadResponse()

    def UnloadModel(self, request, context):
        self._take(request, context)
        return model_admin_pb2.UnloadModelResponse()

    def SetAlias(self, request, context):
        self.request = request
        return model_admin_pb2.SetAliasResponse(alias=request.alias)

    def DeleteAlias(self, request, context):
        self.request = request
        return model_admin_pb2.DeleteAliasResponse()

    def LoadAdapter(self, request, context):
        self._take(request, context)
        return model_admin_pb2.LoadAdapterResponse(adapter=model_pb2.Adapter(name=request.adapter, version="88"))

    def UnloadAdapter(self, request, context):
        self._take(request, context)
        return model_admin_pb2.UnloadAdapterResponse()

    def Classify(self, request, context):
        self._take(request, context)
        labels = [
            classification_pb2.LabelScore(label="pos", score=0.75),
            classification_pb2.LabelScore(label="[red]neg", score=0.25),
        ]
        weights = [
            classification_pb2.WordWeight(text="A", start=0, end=1, weight=-0.125),
            classification_pb2.WordWeight(text="[bold]film", start=2, end=12, weight=0.5),
        ]
        result = classification_pb2.Classification(
            labels=labels[: request.top_k or 2],
            truncated=request.truncation == common_pb2.TRUNCATION_END,
            weights=weights if request.HasField("explain") else [],
        )
        return classification_pb2.ClassifyResponse(results=[result] * len(request.inputs))

    def Rank(self, request, context):
        self._take(request, context)
        order = list(reversed(range(len(request.candidates))))
        return classification_pb2.RankResponse(
            results=[classification_pb2.RankedCandidate(index=i, score=i / 4) for i in order[: request.top_k or None]]
        )

    def Embed(self, request, context):
        self._take(request, context)
        vector = embedding_pb2.Embedding(values=[0.5, -0.5, 0.25, 0, 0.125], token_count=7)
        return embedding_pb2.EmbedResponse(results=[vector] * len(request.texts))

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
        if request.model == "thinks":
            calls = [
                generation_pb2.ToolCall(index=0, id="a", name="weather"),
                generation_pb2.ToolCall(index=0, arguments='{"city": '),
                generation_pb2.ToolCall(index=0, arguments='"Lisbon"}'),
                generation_pb2.ToolCall(index=1, id="b", name="time", arguments="{}"),
            ]
            pieces: list[dict[str, Any]] = [{}, {"reasoning": "It may"}, {"reasoning": " rain."}, {"text": "I look."}]
            for fields in (*pieces, *({"tool_calls": [piece]} for piece in calls)):
                yield generation_pb2.GenerateStreamResponse(completions=[generation_pb2.Completion(**fields)])
            return
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
    model_admin_pb2_grpc.add_ModelAdminServiceServicer_to_server(servicer, server)
    classification_pb2_grpc.add_ClassificationServiceServicer_to_server(servicer, server)
    embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(servicer, server)
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
    assert [" ".join(row) for row in cells(call(target, "models"))] == [
        "chat ba9876543210 sentiment shadow, split 12.5% generation loading not quantized - -",
        "sentiment 0123456789ab sentiment, split 87.5% sequence-classification ready w8a8 polite, terse neg, pos",
    ]
    assert call(target, "admin", "models").stdout == call(target, "models").stdout
    listed = json.loads(call(target, "models", "--json").stdout)
    assert listed["models"][1]["labels"] == ["neg", "pos"]
    assert [alias["name"] for alias in listed["aliases"]] == ["sentiment", "split"]


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
    assert server.request.truncation == common_pb2.TRUNCATION_REJECT


def test_classify_options(server: Server, target: str) -> None:
    result = call(target, "classify", "--model", "nli", "A", "--pair", "B", "--top-k", "1", "--truncate")
    assert cells(result) == [["A", "(truncated)", "pos", "0.7500"]]
    assert server.request.inputs[0].text_pair == "B"
    assert server.request.top_k == 1


def test_classify_by_labels_of_the_callers_own(server: Server, target: str) -> None:
    examples = ("--example", "praise=Lovely!", "--example", "complaint=2 + 2 = 5?")
    options = ("--labels", "praise, complaint", *examples, "--instruction", "What is it?")
    assert call(target, "classify", "--model", "chat", *options, "It broke.").exit_code == 0
    assert list(server.request.labels) == ["praise", "complaint"]
    assert [(example.label, example.text) for example in server.request.examples] == [
        ("praise", "Lovely!"),
        ("complaint", "2 + 2 = 5?"),
    ]
    assert server.request.instruction == "What is it?"
    assert not server.request.HasField("explain")
    for wrong in ("praise", "=Lovely!", "praise="):
        result = call(target, "classify", "--model", "chat", "--labels", "a,b", "--example", wrong, "x")
        assert (result.exit_code, f"--example {wrong}: expected LABEL=TEXT" in result.stderr) == (2, True)


def test_classify_explains(server: Server, target: str) -> None:
    result = call(target, "classify", "--model", "sentiment", "--top-k", "1", "--explain", "A [bold]film")
    assert server.request.HasField("explain")
    labels, weights = result.stdout.split("\n\n")
    assert "pos" in labels
    assert [line.split() for line in weights.splitlines()[1:]] == [
        ["A", "[bold]film", "A", "-0.1250"],
        ["[bold]film", "+0.5000"],
    ]


def test_rank(server: Server, target: str) -> None:
    options = ("--model", "nli", "--top-k", "2", "--label", "pos", "--truncate")
    result = call(target, "rank", *options, "why", "one", "two [x]", "three")
    assert cells(result) == [["0.5000", "three"], ["0.2500", "two", "[x]"]]
    assert (server.request.query, list(server.request.candidates)) == ("why", ["one", "two [x]", "three"])
    assert (server.request.top_k, server.request.label) == (2, "pos")
    assert server.request.truncation == common_pb2.TRUNCATION_END
    assert len(cells(call(target, "rank", "--model", "nli", "why", stdin="a\n\nb\n"))) == 2
    assert not server.request.HasField("label")


def test_embed(server: Server, target: str) -> None:
    result = call(target, "embed", "--model", "vectors", "--raw", "--dimensions", "5", "A text")
    assert cells(result) == [["A", "text", "7", "5", "0.5000", "-0.5000", "0.2500", "0.0000"]]
    assert (server.request.normalize, server.request.dimensions) == (False, 5)
    listed = json.loads(call(target, "embed", "--model", "vectors", "--json", "A text").stdout)
    assert listed["results"][0]["values"] == [0.5, -0.5, 0.25, 0.0, 0.125]
    assert server.request.normalize
    assert not server.request.HasField("dimensions")


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


def test_generate(server: Server, target: str) -> None:
    result = call(target, "generate", "--model", "poet", "--adapter", "terse", "--temperature", "0", " Once\n", "Then")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "The sky is [bold] blue.\n" * 2, "")
    # The last of the two, and a prompt as it was given.
    assert server.request.prompt == generation_pb2.Prompt(text="Then")
    assert (server.request.model, server.request.adapter, server.request.sampling.max_tokens) == ("poet", "terse", 512)
    assert server.request.sampling.HasField("temperature")
    call(target, "generate", "--model", "poet", "--choice", "yes", " Once\n")
    assert server.request.prompt.text == " Once\n"
    assert list(server.request.sampling.structured_output.choice.options) == ["yes"]
    cut = call(target, "generate", "--model", "poet", "--max-tokens", "3", "Once")
    assert cut.stderr == "(cut off: the answer reached --max-tokens 3 or the model's length)\n"


def test_generate_from_standard_input(server: Server, target: str) -> None:
    given = CliRunner().invoke(
        call_command, ["generate", "--model", "poet", "--target", target, "--json"], input="  Once\n\n"
    )
    assert [json.loads(line)["completions"][0]["text"] for line in given.stdout.splitlines()][:1] == ["The sky"]
    assert server.request.prompt.text == "  Once\n"
    empty = CliRunner().invoke(call_command, ["generate", "--model", "poet", "--target", target], input="\n")
    assert (empty.exit_code, "no PROMPT given, and standard input is empty" in empty.stderr) == (2, True)


def test_chat_with_an_adapter_and_a_form(server: Server, target: str, tmp_path) -> None:
    def form(*options: str) -> generation_pb2.StructuredOutput:
        result = call(target, "chat", "--model", "chat", "--adapter", "polite", *options, "Why?")
        assert result.exit_code == 0, result.stderr
        return server.request.sampling.structured_output

    (tmp_path / "schema.json").write_text('{"type": "object"}')
    assert form("--json-schema", str(tmp_path / "schema.json")).json_schema == '{"type": "object"}'
    assert server.request.adapter == "polite"
    assert form("--json-schema", '{"type": "array"}').json_schema == '{"type": "array"}'
    assert form("--regex", "a+").regex == "a+"
    assert list(form("--choice", "yes", "--choice", "no, thanks").choice.options) == ["yes", "no, thanks"]
    form()
    assert not server.request.sampling.HasField("structured_output")
    for wrong in (("--regex", "a", "--choice", "b"), ("--json-schema", str(tmp_path / "none.json"))):
        result = call(target, "chat", "--model", "chat", *wrong, "Why?")
        assert result.exit_code == 2
        assert "--json-schema" in result.stderr


def test_chat_with_tools(server: Server, target: str, tmp_path) -> None:
    (tmp_path / "weather.json").write_text('{"name": "weather", "parameters": {"type": "object"}}')
    tools = ("--tool", str(tmp_path / "weather.json"), "--tool", '{"type": "function", "function": {"name": "time"}}')
    result = call(target, "chat", "--model", "thinks", *tools, "Rain?")
    assert result.stdout == 'I look.\nweather({"city": "Lisbon"})\ntime({})\n'
    assert result.stderr == "It may rain.\n"
    sent = [json_format.MessageToDict(tool) for tool in server.request.prompt.chat.tools]
    assert [(tool["type"], tool["function"]["name"]) for tool in sent] == [
        ("function", name) for name in ("weather", "time")
    ]
    for wrong in ("{", "[1]", str(tmp_path / "none.json")):
        result = call(target, "chat", "--model", "thinks", "--tool", wrong, "Rain?")
        assert (result.exit_code, "--tool" in result.stderr) == (2, True)


def test_admin_load(server: Server, target: str) -> None:
    settings = ("--set", "max_length=512", "--set", "engine={enable_prefix_caching: true}", "--set", "dtype=auto")
    result = call(target, "admin", "load", "vectors", "new/vectors", *settings, "--set", "redact=[email]")
    assert cells(result) == [["vectors", "77", "-", "embedding", "ready", "not", "quantized", "-", "-"]]
    assert result.stderr == "vectors@77: waiting\n"
    assert (server.request.model, server.request.path) == ("vectors", "new/vectors")
    assert server.request.settings == model_admin_pb2.ModelSettings(
        max_length=512, dtype="auto", engine={"enable_prefix_caching": True}, redact={"kinds": ["email"]}
    )
    begun = call(target, "admin", "load", "vectors", "new/vectors", "--no-wait")
    assert cells(begun)[0][4] == "loading"
    assert not server.request.HasField("settings")
    assert call(target, "admin", "load", "vectors", "x", "--set", "max_length").exit_code == 2
    assert call(target, "admin", "load", "vectors", "x", "--set", "engine={").exit_code == 2
    twice = ("--set", "max_queue=1", "--set", "max_queue=2")
    assert "given twice" in call(target, "admin", "load", "v", "x", *twice).stderr
    for wrong in ("path=/x", "adapters={}", "max_queue=many", "engine={scheduler_cls: x}", "redact=email"):
        result = call(target, "admin", "load", "v", "x", "--set", wrong)
        assert (result.exit_code, f"--set {wrong.partition('=')[0]}" in result.stderr) == (2, True)
    failed = call(target, "admin", "load", "broken", "x")
    assert (failed.exit_code, failed.stderr.splitlines()[-1]) == (1, "error: broken@77: its engine did not start")
    assert call(target, "admin", "cancel-load", "broken@77").stdout == "broken@77 is gone\n"
    assert server.request.model == "broken@77"


def test_admin_unload_and_adapters(server: Server, target: str) -> None:
    assert call(target, "admin", "unload", "chat@77").stdout == "chat@77 is gone\n"
    assert server.request.model == "chat@77"
    assert call(target, "admin", "unload", "chat").exit_code == 2
    assert call(target, "admin", "load-adapter", "chat", "polite", "a/b").stdout == "polite is loaded, version 88\n"
    assert (server.request.model, server.request.adapter, server.request.path) == ("chat", "polite", "a/b")
    assert call(target, "admin", "unload-adapter", "chat", "polite").stdout == "polite is gone\n"
    assert (server.request.model, server.request.adapter) == ("chat", "polite")


def test_admin_alias(server: Server, target: str) -> None:
    def alias(*arguments: str) -> tuple[str, model_admin_pb2.SetAliasRequest]:
        result = call(target, "admin", "alias", *arguments)
        assert result.exit_code == 0, result.stderr
        return result.stdout, server.request

    printed, request = alias("prod", "chat@1=90", "chat@2=10", "--shadow", "chat@3", "--unload-unused")
    assert printed == "prod -> chat@1 90%, chat@2 10%, shadow chat@3\n"
    assert [(one.model, one.weight) for one in request.alias.targets] == [("chat@1", 90), ("chat@2", 10)]
    assert (request.alias.shadow, request.alias.etag, request.unload_unused) == ("chat@3", "", True)
    printed, request = alias("prod", "chat@2")
    assert (printed, request.alias.targets[0].weight) == ("prod -> chat@2\n", 1)
    assert not request.alias.shadow
    assert alias("prod", "chat@2", "--etag", "abc")[1].alias.etag == "abc"
    printed, request = alias("prod", "--remove", "--etag", "abc")
    assert (printed, request.name, request.etag) == ("prod is removed\n", "prod", "abc")
    wrongs = ([], ["chat"], ["chat@1=0"], ["chat@1=x"], ["chat@1", "--remove"], ["chat@1", "--shadow", "chat@2=5"])
    for wrong in wrongs:
        assert call(target, "admin", "alias", "prod", *wrong).exit_code == 2


def test_a_key_goes_with_every_call_and_not_into_any_output(server: Server, target: str) -> None:
    assert "authorization" not in (call(target, "classify", "--model", "a", "x") and server.metadata)
    for arguments in (
        ("classify", "x"),
        ("chat", "x"),
        ("generate", "x"),
        ("rank", "x", "y"),
        ("admin", "load", "a", "b"),
    ):
        model = () if arguments[0] == "admin" else ("--model", "a")
        call(target, *arguments, *model, "--key", "SECRET")
        assert server.metadata["authorization"] == "Bearer SECRET"
    for arguments in (["--model", "locked", "x", "--key", "SECRET"], ["--model", "a", "x", "--key", "SECRÉT"]):
        result = call(target, "classify", *arguments)
        assert result.exit_code == 2
        assert "SECR" not in result.stdout + result.stderr
    result = call(target, "classify", "--model", "locked", "x")
    assert result.stderr.endswith("hint:  set TUNESERVE_KEY, or pass --key\n")


def test_tls(certified: tuple[Path, Path]) -> None:
    key, certificate = certified
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())], certificate.read_bytes(), True
    )
    servicer, server = Server(), grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    model_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
    model_admin_pb2_grpc.add_ModelAdminServiceServicer_to_server(servicer, server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        ca, own = ("--ca", str(certificate)), ("--cert", str(certificate), "--cert-key", str(key))
        target = f"127.0.0.1:{port}"
        assert call(target, "models", *ca, *own).exit_code == 0
        # Without TLS, without trust, and without a certificate of one's own, which this server wants.
        for options in ((), ("--tls", *own), ca):
            result = call(target, "models", "--timeout", "5", *options)
            assert (result.exit_code, f"no server answers at {target}" in result.stderr) == (1, True)
        assert "--cert and --cert-key belong together" in call(target, "models", *ca, *own[:2]).stderr
    finally:
        server.stop(None).wait()


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
    for arguments in (("classify", "x"), ("tokens", "x"), ("chat", "x"), ("generate", "x")):
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
