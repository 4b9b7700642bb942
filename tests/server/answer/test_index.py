"""What an index asks of its models, and whom it shows its documents."""

import json
import random

import grpc
from prometheus_client import generate_latest

from tuneserve.server.call.tenants import hashed
from tuneserve.server.config import FeedbackConfig
from tuneserve.v1 import answer_pb2 as pb
from tuneserve.v1 import model_admin_pb2, model_pb2

from ..conftest import Models
from .conftest import Answers

GOOD = {"id": "1", "text": "the film was good"}
# Fields that are refused.
WRONG = (
    {"limit": 101},
    {"rerank": True},
    {"offset_unit": 9},
    {"liked": ["d1", "d1"]},
    {"filters": [pb.Filter(key="canary", values=[])]},
    {"index": "other"},
)
WRONG_FEEDBACK = (
    {"request_id": "canary ?"},
    {"model": "other"},
    {"model": "sentiment"},
    {"click": {"query": "canary", "chosen": "canary", "ignored": ["canary"]}},
    {"label": {"text": "canary", "labels": ["canary"]}},
)


async def test_texts_get_the_prompts_of_the_settings(answering):
    async with answering(passage_prompt="query") as answers:
        engine = answers.server.engines["vectors"]
        engine.pooled.clear()
        await answers.upsert(GOOD | {"title": "film"})
        await answers.search("tokyo")
        # [CLS] who : film the film was good [SEP], and the same of tokyo
        assert [len(one.token_ids) for one in engine.pooled] == [9, 5]


async def test_the_version_that_made_the_index_answers_until_it_is_gone(answering, make_bert, tmp_path, refused):
    make_bert("Model", [], hidden_size=48).rename(tmp_path / "other")
    async with answering({"models_root": tmp_path}) as answers:
        made_by = (await answers.upsert(GOOD)).model_version
        admin = Models(answers.server.admin)
        other = await admin.load("vectors", "other")
        alias = model_pb2.Alias(name="vectors", targets=[model_pb2.AliasTarget(model=other.id, weight=1)])
        await admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=alias))
        assert (await answers.search("film")).model_version == made_by
        assert (await answers.upsert({"id": "2", "text": "tokyo"})).model_version == made_by
        await admin.UnloadModel(model_admin_pb2.UnloadModelRequest(model=made_by))
        error = await refused(answers.search("film"), grpc.StatusCode.FAILED_PRECONDITION)
        assert error.details().startswith(f"index 'docs' was made by {made_by}, which is not served")
        await refused(answers.upsert(GOOD), grpc.StatusCode.FAILED_PRECONDITION)


async def test_more_passages_than_a_call_to_the_model_may_have(answering, make_bert):
    async with answering() as answers:
        limit = answers.server.app.models.latest("vectors").config.max_inputs
        words = [f"{('good', 'bad')[number % 2]} tokyo ." for number in range(10 * limit)]
        text = " ".join(words)
        assert len(text) < 1 << 18
        written = await answers.upsert({"id": "1", "text": text})
        assert written.usage.prompt_tokens > 2 * limit + 3 * len(words) - limit
        assert len(answers.server.engines["vectors"].pooled) > limit


async def test_a_refused_model_call_refuses_the_call(answering, refused):
    async with answering() as answers:
        await answers.upsert(GOOD)
        answers.server.engines["vectors"].broken = RuntimeError("canary")
        for call in (answers.upsert(GOOD | {"text": "tokyo"}), answers.search("film")):
            error = await refused(call, grpc.StatusCode.INTERNAL)
            assert "canary" not in error.details()
        answers.server.engines["vectors"].broken = None
        assert [one.text for one in (await answers.search("film")).passages] == [GOOD["text"]]


async def test_nobody_reads_what_is_not_for_them(answering, tmp_path, caplog):
    """Whatever a caller asks for or tells, there is no word of a document that its readers do not include."""
    chance, people = random.Random(7), ["ann", "bob", "o'neil", "group:x"]
    readers = {f"d{number}": chance.sample(people, chance.randint(0, 3)) for number in range(24)}
    canaries = {id_: f"canary{id_}x" for id_ in readers}
    refused, told = 0, []
    async with answering({"feedback": FeedbackConfig(path=tmp_path / "kept", max_rows=40)}) as answers:
        await answers.upsert(
            *(
                {
                    "id": id_,
                    "title": f"{canaries[id_]} title",
                    "text": f"the film {canaries[id_]} was good",
                    "readers": names,
                    "metadata": {"canary": canaries[id_]},
                    "reply": canaries[id_],
                }
                for id_, names in readers.items()
            )
        )
        for number in range(1000):
            asked = chance.sample([*people, "*", "' OR '1'='1", "x"], chance.randint(0, 3))
            allowed = {id_ for id_, names in readers.items() if not names or set(names) & set(asked)}
            fields, expected = {"readers": asked, "limit": 50}, True
            match number % 5:
                case 1:
                    values = list(canaries.values())[: chance.randint(1, 24)]
                    fields["filters"] = [pb.Filter(key="canary", values=values)]
                case 2:
                    ids = chance.sample([*readers, "nobody"], chance.randint(2, 9))
                    fields |= {"liked": ids[:-1], "disliked": ids[-1:]}
                case 3:
                    fields, expected = fields | chance.choice(WRONG), False
            try:
                query = chance.choice([*canaries.values(), "film"])
                found = await answers.search(query, **fields)
                said = str(found)
                assert expected
                if number % 5 < 2:
                    answer = await answers.answer(query, **fields | {"limit": 9})
                    assert answer[0].retrieval.query == query
                    answer[0].retrieval.query = ""
                    said = f"{said} {answer}"
                elif number % 5 == 4:
                    # What was found is kept as it is told, and what is named by its id is an id.
                    click = {"query": query, "chosen": found.passages[0].text, "ignored": [chance.choice([*readers])]}
                    wrong = chance.choice(({}, {}, *WRONG_FEEDBACK))
                    expected, allowed = not wrong and len(told) < 40, set()
                    said = str(await answers.feedback(**{"request_id": str(number), "click": click} | wrong))
                    assert expected
                    row = {"query": query, "positive": click["chosen"], "negatives": click["ignored"]}
                    told.append({**row, "request_id": str(number)})
            except grpc.aio.AioRpcError as error:
                assert not expected
                refused += 1
                said = f"{error.details()} {error.trailing_metadata()}"
            shown = {id_ for id_, canary in canaries.items() if canary in said}
            assert shown <= allowed
            if number % 5 == 0:
                assert shown == allowed
        assert "canary" not in generate_latest(answers.server.app.metrics.registry).decode()
    assert len(told) == 40
    assert refused == 360
    [file] = (tmp_path / "kept").rglob("*.jsonl")
    assert [json.loads(line) for line in file.read_text().splitlines()] == told
    assert "canary" not in caplog.text


async def test_tenants_have_documents_of_their_own(answering, tmp_path, refused):
    tenants = {
        "acme": {"keys": [hashed("acme-key"), hashed("acme-other")]},
        "bolt": {"keys": [hashed("bolt-key")]},
        "chat": {"keys": [hashed("chat-key")], "models": ["sentiment"]},
    }
    (tmp_path / "tenants.yaml").write_text(json.dumps({"tenants": tenants}))
    async with answering({"tenants": tmp_path / "tenants.yaml"}) as server:
        acme, other, bolt, chat = (
            Answers(server.server, key) for key in ("acme-key", "acme-other", "bolt-key", "chat-key")
        )
        await acme.upsert(GOOD)
        assert list((await bolt.search("film")).passages) == []
        await bolt.upsert(GOOD | {"text": "tokyo"})
        assert (await bolt.delete("1")).deleted == 1
        assert [one.text for one in (await other.search("film")).passages] == [GOOD["text"]]
        # The tenant may not use the model.
        await refused(chat.search("film"), grpc.StatusCode.PERMISSION_DENIED)
        await refused(chat.upsert(GOOD), grpc.StatusCode.PERMISSION_DENIED)
