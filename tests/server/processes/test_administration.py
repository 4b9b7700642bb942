"""Administration of a server of two processes, here in one: both carry an operation out, or none does."""

import asyncio
from pathlib import Path

import grpc
import pytest

from tuneserve.server.call.errors import WrongState
from tuneserve.server.engine.interface import EngineFailed
from tuneserve.v1 import model_admin_pb2 as pb
from tuneserve.v1 import model_pb2

from ..troubled_engine import TroubledEngine

CODES = grpc.StatusCode
READY, FAILED, LOADING = model_pb2.MODEL_STATE_READY, model_pb2.MODEL_STATE_FAILED, model_pb2.MODEL_STATE_LOADING


def set_alias(name: str, *ids: str, **fields) -> pb.SetAliasRequest:
    targets = [model_pb2.AliasTarget(model=id_, weight=weight) for weight, id_ in enumerate(ids, 1)]
    return pb.SetAliasRequest(alias=model_pb2.Alias(name=name, targets=targets), **fields)


async def test_both_do_all_of_it(pair, refused):
    first, second = (one.admin for one in pair.ones)
    [[old], _] = await pair.both()
    new = await first.load("m", "b")
    assert new.state == READY
    assert await pair.both() == ({old: (READY, ()), new.id: (READY, ())}, {"m": ((old, 1),)})
    etag = (await second.SetAlias(set_alias("m", new.id))).alias.etag
    assert (await pair.both())[1] == {"m": ((new.id, 1),)}
    await refused(first.DeleteAlias(pb.DeleteAliasRequest(name="m", etag="other")), CODES.ABORTED)
    await first.SetAlias(set_alias("n", new.id, old))
    assert (await pair.both())[1] == {"m": ((new.id, 1),), "n": ((new.id, 1), (old, 2))}
    await second.DeleteAlias(pb.DeleteAliasRequest(name="n", unload_unused=True))
    assert await pair.both() == ({new.id: (READY, ())}, {"m": ((new.id, 1),)})
    await refused(second.UnloadModel(pb.UnloadModelRequest(model=new.id)), CODES.FAILED_PRECONDITION)
    await first.DeleteAlias(pb.DeleteAliasRequest(name="m", etag=etag))
    await second.UnloadModel(pb.UnloadModelRequest(model=new.id))
    assert await pair.both() == ({}, {})


@pytest.mark.parametrize("fails", [0, 1])
async def test_a_version_that_fails_in_one_fails_in_both(pair, fails):
    before = await pair.both()

    def trouble(number: int, engine: TroubledEngine) -> None:
        if number == fails:
            engine.starts = False
            engine.kill()

    pair.troubles.append(trouble)
    failed = await pair.ones[0].admin.load("n", "b")
    assert failed.state == FAILED
    models, aliases = await pair.both()
    assert (models, aliases) == ({**before[0], failed.id: (FAILED, ())}, before[1])
    pair.troubles.clear()
    assert (await pair.ones[1].admin.load("n", "b")).state == READY
    assert (await pair.both())[1].keys() == {"m", "n"}


async def test_a_version_is_served_once_both_have_it(pair, until):
    pair.troubles.append(lambda number, engine: setattr(engine, "starts", number == 0))
    loading = asyncio.create_task(pair.ones[0].admin.load("n", "b"))
    await until(lambda: all("n" in one.engines for one in pair.ones))
    await asyncio.sleep(0.2)
    for models, aliases in (one.serves() for one in pair.ones):
        assert LOADING in [state for state, _ in models.values()]
        assert "n" not in aliases
    pair.ones[1].engines["n"].starts = True
    assert (await loading).state == READY
    assert "n" in (await pair.both())[1]


@pytest.mark.parametrize("asked", [0, 1])
async def test_loading_is_cancelled_in_both(pair, refused, asked, until):
    before = await pair.both()
    pair.troubles.append(lambda number, engine: setattr(engine, "starts", number == 0))
    loading = (await pair.ones[0].admin.LoadModel(pb.LoadModelRequest(model="n", path="b"))).model
    await until(lambda: all("n" in one.engines for one in pair.ones))
    await pair.ones[asked].admin.CancelLoad(pb.CancelLoadRequest(model=loading.id))
    assert await pair.both() == before
    for one in pair.ones:
        await refused(one.admin.CancelLoad(pb.CancelLoadRequest(model=loading.id)), CODES.NOT_FOUND)


async def test_an_adapter_is_in_both_or_in_none(pair, refused, monkeypatch):
    chat = await pair.ones[0].admin.load("chat", "chat", max_adapters=2)
    await pair.both()
    load = pb.LoadAdapterRequest(model="chat", adapter="tuned", path="adapter")

    async def fail(name: str, directory: Path) -> None:
        raise EngineFailed("no room")

    with monkeypatch.context() as patch:
        patch.setattr(pair.ones[1].engines["chat"], "load_adapter", fail)
        error = await refused(pair.ones[0].admin.LoadAdapter(load), CODES.FAILED_PRECONDITION)
        assert "so none did" in error.details()
    assert (await pair.both())[0][chat.id] == (READY, ())
    await pair.ones[0].admin.LoadAdapter(load)
    assert (await pair.both())[0][chat.id] == (READY, ("tuned",))
    for one in pair.ones:
        error = await refused(one.admin.LoadAdapter(load), CODES.FAILED_PRECONDITION)
        assert "unload it first" in error.details()
    unload = pb.UnloadAdapterRequest(model="chat", adapter="tuned")
    await pair.ones[1].admin.UnloadAdapter(unload)
    assert (await pair.both())[0][chat.id] == (READY, ())
    assert not any(one.engines["chat"].adapters for one in pair.ones)
    await refused(pair.ones[0].admin.UnloadAdapter(unload), CODES.NOT_FOUND)


async def test_an_alias_moves_back_if_one_can_not_move_it(pair, refused, monkeypatch):
    before = await pair.both()
    [old] = before[0]

    async def fail(body) -> None:
        raise EngineFailed("as the test wants it")

    with monkeypatch.context() as patch:
        patch.setattr(pair.ones[1].app.operations, "_set", fail)
        await refused(pair.ones[0].admin.SetAlias(set_alias("n", old)), CODES.FAILED_PRECONDITION)
    assert await pair.both() == before


async def test_aliases_move_while_the_other_reads_a_checkpoint(pair, monkeypatch):
    before = await pair.both()
    [old] = before[0]
    other, read = pair.ones[1].app.operations, asyncio.Event()
    prepare = other._prepared

    async def slow(*given):
        await read.wait()
        return await prepare(*given)

    monkeypatch.setattr(other, "_prepared", slow)
    loading = asyncio.ensure_future(pair.ones[0].admin.LoadModel(pb.LoadModelRequest(model="n", path="b")))
    await asyncio.sleep(0.3)
    await pair.ones[0].admin.SetAlias(set_alias("other", old))
    assert all("other" in one.serves()[1] for one in pair.ones)
    assert not loading.done()
    [id_] = pair.ones[0].serves()[0].keys() - {old}
    await pair.ones[0].admin.CancelLoad(pb.CancelLoadRequest(model=id_))
    read.set()
    await loading
    assert (await pair.both())[0] == before[0]


async def test_versions_are_loaded_in_any_order(pair, monkeypatch, until):
    other = pair.ones[1].app.operations
    prepare = other._prepared

    async def slow(name, config):
        await asyncio.sleep(0.5 if name == "n" else 0)
        return await prepare(name, config)

    monkeypatch.setattr(other, "_prepared", slow)
    first = asyncio.create_task(pair.ones[0].admin.load("n", "b"))
    await until(lambda: "n" in pair.ones[0].engines)
    async with asyncio.timeout(20):
        assert (await pair.ones[1].admin.load("o", "b")).state == READY
        assert (await first).state == READY
    assert (await pair.both())[1].keys() == {"m", "n", "o"}


async def test_a_version_that_the_other_refuses_is_in_none(pair, refused, monkeypatch):
    before = await pair.both()

    async def refuse(*given):
        raise WrongState("there is no memory", "NO_MEMORY")

    monkeypatch.setattr(pair.ones[1].app.operations, "_prepared", refuse)
    load = pair.ones[0].admin.LoadModel(pb.LoadModelRequest(model="n", path="b"))
    error = await refused(load, CODES.FAILED_PRECONDITION)
    assert "so none did: there is no memory" in error.details()
    assert await pair.both() == before


async def test_limits_of_a_version_are_those_of_the_server(pair):
    for path, given in (("b", {"max_queue": 10}), ("a", {})):
        assert (await pair.ones[0].admin.load("n", path, **given)).limits.max_queue == 5
