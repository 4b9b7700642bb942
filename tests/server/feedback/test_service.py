"""FeedbackService, over the wire."""

import json
from pathlib import Path

import grpc
import pytest

from tuneserve.errors import UserError
from tuneserve.server.app import App
from tuneserve.server.call.tenants import hashed
from tuneserve.server.config import AliasConfig, FeedbackConfig, ModelConfig
from tuneserve.v1 import feedback_pb2 as pb
from tuneserve.v1.feedback_pb2_grpc import FeedbackServiceStub

from ..conftest import loopback

TENANTS = """
tenants:
  one: {{keys: ['{one}']}}
  two: {{keys: ['{two}']}}
  narrow: {{keys: ['{narrow}'], models: [chat]}}
"""
KEYS = {name: f"{name}-key" for name in ("one", "two", "narrow")}


def labelled(text: str = "good", model: str = "sentiment", id_: str = "r-1", label: str = "pos") -> pb.FeedbackRequest:
    return pb.FeedbackRequest(request_id=id_, model=model, label=pb.LabelFeedback(text=text, labels=[label]))


@pytest.fixture
async def server(serve_config, make_bert, make_llama, tmp_path):
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text(TENANTS.format(**{name: hashed(key) for name, key in KEYS.items()}))
    models = {
        "sentiment": ModelConfig(path=make_bert(labels=["neg", "pos"]), redact=("ip",)),
        "other": make_bert(labels=["pos", "neg"]),
        "chat": make_llama(),
    }
    config = loopback(
        models,
        aliases={"split": AliasConfig(targets={"sentiment": 1, "other": 1})},
        feedback=FeedbackConfig(path=tmp_path / "kept", max_rows=20, redact=("email",)),
        tenants=tenants,
    )
    async with serve_config(config) as served:
        yield served


@pytest.fixture
def written(tmp_path):
    """The rows of each file that there is now."""

    def read() -> dict[str, list[dict]]:
        root = tmp_path / "kept"
        found = {str(path.relative_to(root)): path.read_text().splitlines() for path in root.rglob("*.jsonl")}
        return {path: [json.loads(line) for line in lines] for path, lines in found.items()}

    return read


def send(served, request: pb.FeedbackRequest, tenant: str = "one"):
    return FeedbackServiceStub(served.channel).Feedback(request, metadata=(("x-api-key", KEYS[tenant]),))


async def test_a_row_is_on_disk_when_it_answers(server, written):
    assert (await send(server, labelled())).rows == 1
    assert written() == {"one/sentiment/labels.jsonl": [{"text": "good", "label": "pos", "request_id": "r-1"}]}
    [metric] = server.app.metrics.feedback.collect()
    assert [(one.labels, one.value) for one in metric.samples if one.name.endswith("_total")] == [
        ({"model": "sentiment", "kind": "labels"}, 1)
    ]


async def test_a_tenants_rows_are_in_its_own_files_by_the_name_that_it_calls(server, written):
    version = server.app.models.latest("sentiment").id
    for model in ("sentiment", version, *["split"] * 8):
        await send(server, labelled(f"canary of one in {model}", model))
    await send(server, labelled("canary of two"), "two")
    found = written()
    assert {path: len(rows) for path, rows in found.items()} == {
        "one/sentiment/labels.jsonl": 2,
        "one/split/labels.jsonl": 8,
        "two/sentiment/labels.jsonl": 1,
    }
    for path, rows in found.items():
        assert all(f"canary of {path.split('/')[0]}" in row["text"] for row in rows)


async def test_personal_data_is_masked_as_the_model_and_the_settings_say(server, written):
    await send(server, labelled("mail jane.doe@example.com from 10.1.2.3"))
    chat = {"messages": [{"role": "user", "content": "I am jane.doe@example.com at 10.1.2.3"}]}
    answer = {"prompt": {"chat": chat}, "answer": "Hi jane.doe@example.com", "correction": "Hello a@example.com"}
    await send(server, pb.FeedbackRequest(request_id="r-2", model="chat", answer=answer))
    found = written()
    assert [row["text"] for row in found["one/sentiment/labels.jsonl"]] == ["mail [EMAIL] from [IP]"]
    [preference] = found["one/chat/preferences.jsonl"]
    # The chat model masks nothing itself.
    assert preference == {
        "prompt": [{"role": "user", "content": "I am [EMAIL] at 10.1.2.3"}],
        "chosen": "Hello [EMAIL]",
        "rejected": "Hi [EMAIL]",
        "request_id": "r-2",
    }
    assert "example.com" not in json.dumps(found)


async def test_a_full_share_is_told_at_once_and_is_the_tenants_own(server, refused, written):
    for _ in range(20):
        await send(server, labelled())
    error = await refused(send(server, labelled()), grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert "the tenant's feedback is full: allowed are 20 rows" in error.details()
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "-1"
    assert (await send(server, labelled(), "two")).rows == 1
    assert len(written()["one/sentiment/labels.jsonl"]) == 20


async def test_refusals_leave_nothing(server, refused, written):
    await refused(send(server, labelled("canary", "nobody")), grpc.StatusCode.NOT_FOUND)
    await refused(send(server, labelled("canary", "")), grpc.StatusCode.INVALID_ARGUMENT)
    await refused(send(server, labelled("canary"), "narrow"), grpc.StatusCode.PERMISSION_DENIED)
    error = await refused(send(server, labelled("canary", label="canary")), grpc.StatusCode.INVALID_ARGUMENT)
    assert "label.labels[0]: is not a label of the model; labels: neg, pos" in error.details()
    assert written() == {}


async def test_it_needs_no_engine(server):
    server.engines["sentiment"].broken = RuntimeError("dead")
    asked = len(server.engines["sentiment"].pooled)
    assert (await send(server, labelled())).rows == 1
    assert len(server.engines["sentiment"].pooled) == asked


async def test_without_settings_nothing_is_kept(serve_config, make_bert, refused):
    async with serve_config(loopback({"sentiment": make_bert(labels=["neg", "pos"])})) as served:
        call = FeedbackServiceStub(served.channel).Feedback(labelled())
        error = await refused(call, grpc.StatusCode.FAILED_PRECONDITION)
    assert "keeps no feedback: set `feedback` in its settings" in error.details()


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({"redact": ("names",)}, "feedback.redact: 'names' is not allowed"),
        ({"path": Path("/proc/no")}, "feedback.path: /proc/no"),
    ],
)
def test_bad_settings_are_named(make_bert, tmp_path, kept, said):
    with pytest.raises(UserError) as caught:
        App(loopback({"sentiment": make_bert()}, feedback=FeedbackConfig(**{"path": tmp_path} | kept)))
    assert said in str(caught.value)
