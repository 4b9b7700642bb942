"""A process that ends, and one that takes its place (`test_parent.py` has real ones)."""

import asyncio
from pathlib import Path

import grpc

from tuneserve.server.processes import journal
from tuneserve.server.processes.journal import Entry, Journal
from tuneserve.v1 import model_admin_pb2 as pb

from .test_administration import FAILED, READY, set_alias


async def test_one_that_ends_is_not_waited_for_and_another_makes_up_for_it(pair, refused):
    chat = await pair.ones[0].admin.load("chat", "chat", max_adapters=2)
    await pair.ones[0].admin.LoadAdapter(pb.LoadAdapterRequest(model="chat", adapter="tuned", path="adapter"))
    new = await pair.ones[0].admin.load("m", "b")
    await pair.both()
    # It hears nothing any more.
    pair.ones[1].app._agreeing.cancel()
    moving = asyncio.ensure_future(pair.ones[0].admin.SetAlias(set_alias("m", new.id, unload_unused=True)))
    await asyncio.sleep(0.3)
    assert not moving.done()
    Journal(pair.folder).append(Entry("left", 1))
    await moving
    error = await refused(
        pair.ones[0].admin.DeleteAlias(pb.DeleteAliasRequest(name="chat")), grpc.StatusCode.UNAVAILABLE
    )
    assert "while one of the server's processes starts" in error.details()
    async with pair.start(2) as another:
        assert another.serves() == pair.ones[0].serves()
        assert another.serves()[0][chat.id] == (READY, ("tuned",))
        assert another.serves()[1]["m"] == ((new.id, 1),)
        await another.admin.DeleteAlias(pb.DeleteAliasRequest(name="chat"))
        assert "chat" not in pair.ones[0].serves()[1]


async def test_one_that_starts_from_a_summary_serves_the_same(pair, monkeypatch):
    monkeypatch.setattr(journal, "_LONG", 1000)
    first, second = (one.admin for one in pair.ones)
    [[old], _] = await pair.both()
    chat = await first.load("chat", "chat", max_adapters=2)
    for name in ("tuned", "other"):
        await second.LoadAdapter(pb.LoadAdapterRequest(model="chat", adapter=name, path="adapter"))
    await first.UnloadAdapter(pb.UnloadAdapterRequest(model="chat", adapter="other"))
    new = await second.load("m", "b")
    for one, ids in ((first, [old]), (second, [new.id, old]), (first, [new.id])):
        await one.SetAlias(set_alias("m", *ids))
        await one.SetAlias(set_alias("other", *ids))
    await second.DeleteAlias(pb.DeleteAliasRequest(name="other"))
    await first.UnloadModel(pb.UnloadModelRequest(model=old))
    await second.DeleteAlias(pb.DeleteAliasRequest(name="chat"))
    serves = {chat.id: (READY, ("tuned",)), new.id: (READY, ())}, {"m": ((new.id, 1),)}
    assert await pair.both() == serves
    assert len(Journal(pair.folder).new()) < 20
    pair.ones[1].app._agreeing.cancel()
    Journal(pair.folder).append(Entry("left", 1))
    async with pair.start(2) as another:
        assert another.serves() == serves


async def test_one_that_has_missed_something_is_started_again(pair, monkeypatch, until):
    ends: list[str] = []
    behind = pair.ones[1].app
    behind._agreeing.cancel()
    monkeypatch.setattr(behind.operations, "_start_again", ends.append)
    monkeypatch.setattr(journal, "_LONG", 0)

    def parts() -> set[Path]:
        return set(pair.folder.glob("part.*"))

    for _ in range(2):
        before = parts()
        Journal(pair.folder).append(Entry("left", 9))
        await until(lambda before=before: parts() != before)
    await behind.operations._catch_up()
    assert len(ends) == 1
    assert "FileNotFoundError" in ends[0]


async def test_a_version_that_was_loading_when_one_ended_fails(pair, until):
    pair.troubles.append(lambda number, engine: setattr(engine, "starts", number != 1))
    loading = asyncio.create_task(pair.ones[0].admin.load("n", "b"))
    await until(lambda: all("n" in one.engines for one in pair.ones))
    pair.ones[1].app._agreeing.cancel()
    Journal(pair.folder).append(Entry("left", 1))
    async with pair.start(2) as another:
        failed = await loading
        assert failed.state == FAILED
        assert "another of the server's processes could not load it" in failed.failure
        assert another.serves() == pair.ones[0].serves()


async def test_one_that_could_not_do_it_starts_again_if_the_first_ends_before_it_is_undone(pair, monkeypatch, until):
    [[old], _] = await pair.both()
    ends: list[str] = []
    for one in pair.ones:
        monkeypatch.setattr(one.app.operations, "_start_again", ends.append)
    missing = {"name": "n", "targets": [{"model": "m@000000000000", "weight": 1}]}
    Journal(pair.folder).append(Entry("alias", 9, "x", missing))
    Journal(pair.folder).append(Entry("alias", 9, "y", {"name": "n", "targets": [{"model": old, "weight": 1}]}))
    Journal(pair.folder).append(Entry("left", 9))
    await until(lambda: all("n" in one.serves()[1] for one in pair.ones))
    assert not ends, "it was undone"
    Journal(pair.folder).append(Entry("alias", 9, "z", missing))
    Journal(pair.folder).append(Entry("left", 9))
    await until(lambda: len(ends) == 2)
