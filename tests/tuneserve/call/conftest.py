"""A server that answers without a model, and calls to it as from a shell."""

import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from google.protobuf import any_pb2, timestamp_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from tuneserve.call.command import call_command
from tuneserve.server.call.errors import NotFound, to_status
from tuneserve.v1 import (
    answer_pb2,
    answer_pb2_grpc,
    checkpoint_pb2,
    classification_pb2,
    classification_pb2_grpc,
    common_pb2,
    embedding_pb2,
    embedding_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    model_admin_pb2,
    model_admin_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    monitor_pb2,
    monitor_pb2_grpc,
)


def not_found(context: grpc.ServicerContext, kind: str, known: str) -> None:
    """Ends a call as the real server does."""
    context.abort_with_status(rpc_status.to_status(to_status(NotFound(kind, "other", [known]), "abc")))


class Server(
    answer_pb2_grpc.AnswerServiceServicer,
    model_admin_pb2_grpc.ModelAdminServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
    classification_pb2_grpc.ClassificationServiceServicer,
    embedding_pb2_grpc.EmbeddingServiceServicer,
    feedback_pb2_grpc.FeedbackServiceServicer,
    generation_pb2_grpc.GenerationServiceServicer,
    monitor_pb2_grpc.MonitorServiceServicer,
):
    """Remembers the last request. A model's name decides what happens to its calls."""

    request: Any
    metadata: dict[str, str | bytes]

    def __init__(self) -> None:
        self.observed: list[monitor_pb2.ObserveStreamRequest] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.sizes = list[int]()

    def _take(self, request, context) -> None:
        self.request, self.metadata = request, dict(context.invocation_metadata())
        context.set_trailing_metadata((("x-request-id", "abc"),))
        if request.model == "hangs":
            self.may_go_on.wait(30)
        if request.model == "other":
            not_found(context, "model", "sentiment")
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

    def Feedback(self, request, context):
        self._take(request, context)
        return feedback_pb2.FeedbackResponse(rows=2)

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

    def ObserveStream(self, request_iterator, context):
        for request in request_iterator:
            self.observed.append(request)
            answer = monitor_pb2.ObserveStreamResponse(id=request.id)
            if request.monitor == "other":
                answer.error.code, answer.error.message = code_pb2.NOT_FOUND, "monitor 'other' is not served here"
            elif request.text == "bad":
                answer.error.code, answer.error.message = code_pb2.INVALID_ARGUMENT, "is too long"
            else:
                answer.observation.sentiment.label, answer.observation.sentiment.score = "neg", 0.9
                for topic, score in (("arts", 0.75), ("trade", 0.5)) if "film" in request.text else ():
                    answer.observation.topics.add(label=topic, score=score)
            yield answer

    def Examples(self, request, context):
        self.request = request
        if request.monitor == "other":
            not_found(context, "monitor", "news")
        time = timestamp_pb2.Timestamp()
        time.FromJsonString("2026-01-02T03:04:05Z")
        return monitor_pb2.ExamplesResponse(examples=[monitor_pb2.Example(text="a [bold]film", time=time)])

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

    def UpsertDocuments(self, request, context):
        self.request = request
        self.sizes.append(len(request.documents))
        if request.index == "other":
            not_found(context, "index", "docs")
        return answer_pb2.UpsertDocumentsResponse(written=len(request.documents), unchanged=1, index_version=7)

    def Search(self, request, context):
        self.request = request
        passage = answer_pb2.Passage(
            document_id="faq", title="Who pays?", text="Tenants\n[bold]do.[/bold]", start=3, end=14, score=0.5
        )
        if request.index == "empty":
            return answer_pb2.SearchResponse()
        by = "reranker@1" if request.index == "ranked" and not request.HasField("rerank") else ""
        return answer_pb2.SearchResponse(passages=[passage], index_version=7, ranking_model_version=by)

    def Answer(self, request, context):
        self.request = request
        passage = answer_pb2.Passage(document_id="faq", text="Tenants [bold]do. Not in cash.", start=3, end=33)
        found = answer_pb2.SearchResponse(passages=[passage], index_version=7)
        yield answer_pb2.AnswerResponse(retrieval={"query": request.messages[-1].content, "found": found})
        if request.index == "empty":
            yield answer_pb2.AnswerResponse(end={"outcome": answer_pb2.ANSWER_OUTCOME_NOT_FOUND})
            return
        for text in ("Tenants [bold]do.", " Not in cash."):
            yield answer_pb2.AnswerResponse(text=text)
        if request.index == "written":
            yield answer_pb2.AnswerResponse(end={"outcome": answer_pb2.ANSWER_OUTCOME_UNGROUNDED})
            return
        citations = [
            {"end": 17, "document_id": "faq", "document_start": 3, "document_end": 20},
            {"start": 18, "end": 30, "document_id": "faq", "document_start": 21, "document_end": 33},
        ]
        yield answer_pb2.AnswerResponse(
            end={"outcome": answer_pb2.ANSWER_OUTCOME_ANSWERED, "citations": citations, "usage": {"prompt_tokens": 7}}
        )

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
    answer_pb2_grpc.add_AnswerServiceServicer_to_server(servicer, server)
    feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(servicer, server)
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server)
    monitor_pb2_grpc.add_MonitorServiceServicer_to_server(servicer, server)
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
