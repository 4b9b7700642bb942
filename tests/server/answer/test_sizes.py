"""What the metrics say of an index, also of what another process writes."""

import json
import logging

from tuneserve.server.answer import sizes
from tuneserve.server.answer.store import Store
from tuneserve.server.call.tenants import hashed

from .conftest import Answers
from .test_store import row


def values(answers: Answers, name: str, **labels: str) -> float | None:
    return answers.server.app.metrics.registry.get_sample_value(f"tuneserve_index_{name}", {"index": "docs", **labels})


async def test_how_much_there_is_and_when_it_was_written(answering, tmp_path, monkeypatch, until):
    monkeypatch.setattr(sizes, "_SECONDS", 0.02)
    tenants = {name: {"keys": [hashed(f"{name}-key")]} for name in ("acme", "bolt")}
    (tmp_path / "tenants.yaml").write_text(json.dumps({"tenants": tenants}))
    async with answering({"tenants": tmp_path / "tenants.yaml"}) as server:
        acme = Answers(server.server, "acme-key")
        written = await acme.upsert({"id": "1", "text": "bad " * 300}, {"id": "2", "text": "good"})
        passages = len((await acme.search("bad", limit=100)).passages)
        await until(lambda: values(server, "passages", tenant="acme") == passages)
        assert values(server, "documents", tenant="acme") == 2 < passages
        assert values(server, "version", tenant="acme") >= written.index_version
        assert values(server, "fragments", tenant="acme") >= 1
        assert values(server, "documents", tenant="bolt") is None
        changed = values(server, "written_timestamp_seconds", tenant="acme")
        await acme.upsert({"id": "2", "text": "good"})
        await acme.delete("nobody")
        assert values(server, "written_timestamp_seconds", tenant="acme") == changed
        await acme.delete("1")
        assert values(server, "written_timestamp_seconds", tenant="acme") > changed > 0
        await until(lambda: values(server, "documents", tenant="acme") == 1)

        beside = Store(tmp_path / "docs")
        await (await beside.documents("bolt")).replace("m@1", ["a"], [row("a")])
        await beside.close()
        await until(lambda: values(server, "documents", tenant="bolt") == 1)


async def test_how_long_calls_take_and_the_store_in_them(answers):
    for part in ("search", "upsert", "read", "write"):
        assert values(answers, "seconds_count", part=part) == 0
    await answers.upsert({"id": "1", "text": "good"})
    await answers.upsert({"id": "1", "text": "good"})
    await answers.search("good")
    counts = {part: values(answers, "seconds_count", part=part) for part in ("search", "upsert", "read", "write")}
    assert counts == {"search": 1, "upsert": 2, "read": 1, "write": 1}
    assert values(answers, "seconds_sum", part="search") > values(answers, "seconds_sum", part="read") > 0


async def test_an_index_that_can_not_be_measured_is_searched(answering, monkeypatch, until, caplog):
    monkeypatch.setattr(sizes, "_SECONDS", 0.02)
    async with answering() as answers:
        written = await answers.upsert({"id": "1", "text": "good"})
        await until(lambda: values(answers, "documents", tenant="anonymous") == 1)
        index = answers.server.app._answers._indexes["docs"]

        async def broken() -> None:
            raise OSError("canary")

        monkeypatch.setattr(index, "sizes", broken)
        with caplog.at_level(logging.WARNING, logger=sizes.__name__):
            await until(lambda: "index docs could not be measured: OSError" in caplog.text)
        assert "canary" not in caplog.text
        assert (await answers.search("good")).index_version >= written.index_version
