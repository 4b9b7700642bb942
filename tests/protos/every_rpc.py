"""A call of every RPC: what is sent, and what a server on fake engines answers. A new RPC gets its line here."""

from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any

import pytest

MODELS, ADMIN = "tuneserve.v1.ModelService/", "tuneserve.v1.ModelAdminService/"
CLASSIFICATION, EMBEDDING = "tuneserve.v1.ClassificationService/", "tuneserve.v1.EmbeddingService/"
GENERATION, ANSWER = "tuneserve.v1.GenerationService/", "tuneserve.v1.AnswerService/"
MONITOR, FEEDBACK = "tuneserve.v1.MonitorService/", "tuneserve.v1.FeedbackService/"
INFERENCE, HEALTH = "inference.GRPCInferenceService/", "grpc.health.v1.Health/"

PROMPT = {"model": "chat", "prompt": {"text": "good"}, "sampling": {"max_tokens": 3}}
SCORE = pytest.approx(0.8807971)

Json = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A call, and what is expected of it: as much of each answer as is said here."""

    method: str
    requests: list[Json] = field(default_factory=lambda: [{}])
    answers: list[Json] = field(default_factory=lambda: [{}])
    until: Json | None = None  # the stream is cancelled after an answer that holds this
    code: str = "OK"
    any_before: bool = False  # answers come before these, nobody knows how many


def text_tensor(name: str, text: str) -> Json:
    contents = {"bytes_contents": [b64encode(text.encode()).decode()]}
    return {"name": name, "datatype": "BYTES", "shape": ["1"], "contents": contents}


def every_rpc(version: str) -> list[Call]:
    """A call of every RPC, in an order that works and leaves nothing behind. `version` is the model `sentiment`'s, and
    that of the checkpoint `copy`.
    """
    sentiment, spare = f"sentiment@{version}", f"spare@{version}"
    good = {"model": "sentiment", "inputs": [{"text": "good"}]}
    scores = {"labels": [{"label": "pos", "score": SCORE}, {"label": "neg", "score": pytest.approx(1 - 0.8807971)}]}
    load = {"model": "spare", "path": "copy", "settings": {"max_inputs": 7}}
    polite = {"model": "chat", "adapter": "polite"}
    # Larger than a number of JavaScript.
    bad = {"id": "9007199254740993", "request": {"model": "nobody"}}
    infer = {"model_name": "sentiment", "id": "seven", "inputs": [text_tensor("text", "good")]}
    stream = {"name": "stream", "datatype": "BOOL", "shape": [1], "contents": {"bool_contents": [True]}}
    tensors = {"model_name": "chat", "inputs": [text_tensor("text_input", "good"), stream]}
    two = {"parameters": {"max_tokens": {"int64_param": 2}}}
    serving = {"status": "SERVING"}
    return [
        Call(ADMIN + "LoadModel", [load], [{"model": {"name": "spare", "id": spare, "state": "MODEL_STATE_LOADING"}}]),
        Call(MODELS + "WatchModel", [{"model": spare}], [{"model": {"state": "MODEL_STATE_READY"}}], any_before=True),
        Call(ADMIN + "CancelLoad", [{"model": spare}], [], code="FAILED_PRECONDITION"),
        Call(MODELS + "GetModel", [{"model": spare}], [{"model": {"limits": {"max_inputs": 7}}, "checkpoint": {}}]),
        Call(MODELS + "ListModels", [{"page_size": 1}], [{"models": [{"name": "chat", "task": "TASK_GENERATION"}]}]),
        Call(ADMIN + "SetAlias", [{"alias": {"name": "a", "targets": [{"model": sentiment, "weight": 1}]}}]),
        Call(MODELS + "ListAliases", [{"page_size": 1}], [{"aliases": [{"name": "a", "targets": [{"weight": 1}]}]}]),
        Call(ADMIN + "DeleteAlias", [{"name": "a"}]),
        Call(ADMIN + "DeleteAlias", [{"name": "spare"}]),
        Call(ADMIN + "UnloadModel", [{"model": spare}]),
        Call(ADMIN + "LoadAdapter", [{**polite, "path": "polite"}], [{"adapter": {"name": "polite"}}]),
        Call(GENERATION + "Generate", [{**PROMPT, "adapter": "polite"}], [{"completions": [{"text": "ababab"}]}]),
        Call(ADMIN + "UnloadAdapter", [polite]),
        Call(
            CLASSIFICATION + "Classify",
            [{**good, "explain": {}}],
            [{"results": [{**scores, "weights": [{"text": "good"}]}], "model_version": sentiment}],
        ),
        Call(
            CLASSIFICATION + "ClassifyTokens",
            [{"model": "ner", "texts": ["merkel in hamburg"]}],
            [{"results": [{"spans": [{"label": "PER", "text": "merkel", "end": 6}, {"label": "LOC"}]}]}],
        ),
        Call(
            CLASSIFICATION + "ClassifyStream",
            [{"id": 1, "request": good}, bad],
            [{"id": "1", "response": {"results": [scores]}}, {"id": bad["id"], "error": {"code": 5}}],
        ),
        Call(
            CLASSIFICATION + "Rank",
            [{"model": "sentiment", "query": "good", "candidates": ["good film", "film"], "label": "pos"}],
            [{"results": [{"index": 1, "score": SCORE}, {"index": 0}]}],
        ),
        Call(
            MONITOR + "ObserveStream",
            [{"id": 1, "monitor": "news", "text": "good"}],
            [{"id": "1", "observation": {"topics": [{"label": "a"}, {}, {}], "sentiment": scores["labels"][0]}}],
        ),
        Call(
            MONITOR + "ObserveStream",
            [{"id": 2, "monitor": "nobody"}],
            [{"id": "2", "error": {"code": 5}}],
        ),
        Call(
            MONITOR + "Examples",
            [{"monitor": "news", "topic": "a", "sentiment": "pos"}],
            [{"examples": [{"text": "good"}]}],
        ),
        Call(
            FEEDBACK + "Feedback",
            [{"request_id": "r-1", "model": "sentiment", "label": {"text": "good", "labels": ["pos"]}}],
            [{"rows": 1}],
        ),
        Call(
            EMBEDDING + "Embed",
            [{"model": "vectors", "texts": ["good"], "normalize": False}],
            [{"results": [{"values": [3, 4, 3], "token_count": 3}]}],
        ),
        Call(
            GENERATION + "GenerateStream",
            [PROMPT],
            [
                {"completions": [{"text": "ab", "token_ids": [7]}], "usage": None},
                {"completions": [{"text": "ab", "finish_reason": "FINISH_REASON_UNSPECIFIED"}]},
                {"completions": [{"finish_reason": "FINISH_REASON_LENGTH"}], "usage": {"completion_tokens": 3}},
            ],
        ),
        Call(GENERATION + "Tokenize", [PROMPT], [{"text": "good", "tokens": [{"start": 0}, {"end": 4}]}]),
        Call(
            ANSWER + "UpsertDocuments",
            [{"index": "docs", "documents": [{"id": "1", "text": "good", "metadata": {"a": "b"}}]}],
            [{"written": 1, "usage": {"prompt_tokens": 3}}],
        ),
        Call(
            ANSWER + "Search",
            [{"index": "docs", "query": "good"}],
            [{"passages": [{"document_id": "1", "text": "good", "end": 4, "metadata": {"a": "b"}, "score": 1}]}],
        ),
        Call(
            ANSWER + "Answer",
            [{"index": "docs", "messages": [{"role": "user", "content": "good"}]}],
            [
                {"retrieval": {"query": "good", "found": {"passages": [{"document_id": "1"}]}}},
                {"text": "good"},
                {"end": {"outcome": "ANSWER_OUTCOME_ANSWERED", "citations": [{"end": 4, "document_end": 4}]}},
            ],
        ),
        Call(ANSWER + "DeleteDocuments", [{"index": "docs", "ids": ["1"]}], [{"deleted": 1}]),
        Call(INFERENCE + "ServerLive", answers=[{"live": True}]),
        Call(INFERENCE + "ServerReady", answers=[{"ready": True}]),
        Call(INFERENCE + "ModelReady", [{"name": "chat"}], [{"ready": True}]),
        Call(INFERENCE + "ServerMetadata", answers=[{"name": "tuneserve"}]),
        Call(INFERENCE + "ModelMetadata", [{"name": "sentiment"}], [{"versions": [version]}]),
        Call(
            INFERENCE + "ModelInfer", [infer], [{"id": "seven", "outputs": [text_tensor("label", "pos"), {}, {}, {}]}]
        ),
        Call(
            INFERENCE + "ModelStreamInfer",
            [{**tensors, **two, "id": "eight"}],
            [
                {"error_message": "", "infer_response": {"parameters": {"triton_final_response": {"bool_param": last}}}}
                for last in (False, True)
            ],
        ),
        Call(HEALTH + "Check", answers=[serving]),
        Call(
            HEALTH + "Watch",
            [{"service": "tuneserve.v1.GenerationService"}],
            [serving],
            until=serving,
            code="CANCELLED",
        ),
    ]
