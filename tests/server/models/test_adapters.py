"""Adapters without a server: what is one, copies that are named by their content, and those of one model's engine."""

import asyncio
import json
import tempfile
from pathlib import Path

import pytest

from tuneserve.errors import CheckpointError
from tuneserve.server.call import context
from tuneserve.server.call.errors import NotFound
from tuneserve.server.call.tenants import Tenant
from tuneserve.server.engine.interface import EngineFailed, RequestRefused
from tuneserve.server.metrics import Metrics
from tuneserve.server.models.adapters import Adapters, Copy, Store

from ..fake_engine import FakeEngine

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """Where the server's copies are."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def store():
    own = Store()
    yield own
    own.close()


@pytest.fixture
def make(tmp_path):
    """Makes an adapter's directory, of any weights: make("polite", "weights")."""

    def run(name: str, weights: str = "w", config: object = None) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        (directory / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 8} if config is None else config))
        (directory / WEIGHTS).write_text(weights)
        return directory

    return run


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("tuneserve-adapters-*/*"))


def test_equal_content_is_one_copy_until_nobody_holds_it(store, make, temporary):
    first, second = store.take(make("a"), 8), store.take(make("b"), 8)
    other = store.take(make("c", weights="x"), 8)
    assert first.version == second.version != other.version
    assert first.directory == second.directory
    assert (first.directory / WEIGHTS).read_text() == "w"
    assert kept(temporary) == sorted({first.version, other.version})
    store.release(first)
    assert kept(temporary) == sorted({first.version, other.version})
    store.release(second)
    assert kept(temporary) == [other.version]
    store.release(store.take(make("d"), 8))
    assert kept(temporary) == [other.version]
    store.close()
    assert list(temporary.iterdir()) == []


def test_settings_are_content_too(store, make):
    one = store.take(make("a"), 8)
    assert one.version != store.take(make("b", config={"peft_type": "LORA", "r": 4}), 8).version


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LORA", "r": 9}, "rank 9 is over the model's max_adapter_rank of 8"),
        ({"peft_type": "IA3", "target_modules": ["k_proj"]}, "peft_type is 'IA3'"),
        ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 20}, "peft_type is 'PREFIX_TUNING'"),
        ({"peft_type": "LORA", "r": 8, "use_dora": True}, "use_dora is set"),
        ({"peft_type": "LORA", "r": 8, "modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": ["LORA"], "r": 8}, "not the settings"),
        ({"r": 8}, "not the settings of a PEFT LoRA adapter"),
        ({"peft_type": "LORA", "r": "many"}, "not the settings"),
        ({"peft_type": "LORA", "r": None}, "not the settings"),
        ([], "not the settings"),
    ],
)
def test_what_cannot_be_served_is_refused_and_leaves_nothing(store, make, temporary, config, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        store.take(make("bad", config=config), 8)
    assert str(caught.value).startswith(f"bad/{CONFIG}: "), "no path of the server"
    assert kept(temporary) == []


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("how", ["absent", "link"])
def test_a_file_that_is_absent_or_leads_elsewhere_is_refused(store, make, tmp_path, file, how):
    directory = make("bad")
    (directory / file).rename(tmp_path / "elsewhere")
    if how == "link":
        (directory / file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"bad: no {file} here"):
        store.take(directory, 8)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(2)


def call_of(tenant: Tenant) -> None:
    context.begin(context.Call("req-1", "Generate", tenant, {}, Metrics()))


@pytest.fixture(autouse=True)
def call() -> None:
    call_of(Tenant("acme"))


@pytest.fixture
async def adapters(engine) -> Adapters:
    own = Adapters()
    await own.start(engine)
    return own


async def test_an_engine_that_is_started_has_those_that_were_named_before(store, make, engine, temporary):
    adapters, directory = Adapters(), make("a")
    for name in ("polite", "kind"):
        adapters.prepare(name, store.take(directory, 8))
    assert (len(adapters), engine.adapters) == (2, {})
    await adapters.start(engine)
    [adapter] = set(adapters.known().values())
    assert engine.adapters == {f"adapter-{adapter.version}": adapter.copy.directory}
    # Another engine in its place has them, too.
    other = FakeEngine(2)
    await adapters.start(other)
    assert other.adapters == engine.adapters
    await adapters.close()
    assert (len(adapters), kept(temporary)) == (0, [])


async def test_other_content_of_a_name_takes_the_place_of_the_first(store, make, engine, adapters, temporary):
    await adapters.add("b", store.take(make("one"), 8))
    await adapters.add("a", store.take(make("two", weights="x"), 8))
    assert list(adapters.known()) == ["a", "b"]
    new = store.take(make("three", weights="y"), 8)
    await adapters.add("b", new)
    assert adapters.known()["b"].version == new.version
    assert sorted(engine.adapters) == sorted(adapter.id for adapter in adapters.known().values())
    assert len(kept(temporary)) == 2


async def test_one_of_two_names_is_taken_away(store, make, engine, adapters, temporary):
    directory = make("one")
    for name in ("a", "b"):
        await adapters.add(name, store.take(directory, 8))
    await adapters.remove("a")
    assert list(engine.adapters) == [adapters.known()["b"].id]
    await adapters.remove("b")
    assert (engine.adapters, kept(temporary)) == ({}, [])


async def test_a_caller_knows_the_adapters_that_it_may_use(store, make, adapters):
    for name in ("theirs", "mine"):
        await adapters.add(name, store.take(make(name), 8))
    call_of(Tenant("acme", adapters=["mine"]))
    assert list(adapters.known()) == ["mine"]
    assert adapters.get("mine") is adapters.known()["mine"]
    for name in ("theirs", "absent"):
        with pytest.raises(NotFound, match=f"'{name}' .* served: mine$"):
            adapters.get(name)
        with pytest.raises(NotFound):
            await adapters.remove(name)
    await adapters.remove("mine")
    call_of(Tenant("other", adapters=["theirs"]))
    assert list(adapters.known()) == ["theirs"]


async def test_one_in_use_stays_until_its_last_call_ends(store, make, engine, adapters):
    await adapters.add("a", store.take(make("one"), 8))
    adapter = adapters.known()["a"]
    with adapter.in_use() as name:
        with adapter.in_use():
            removing = asyncio.create_task(adapters.remove("a"))
            await asyncio.sleep(0)
        assert len(adapters) == 0
        await asyncio.sleep(0)
        assert list(engine.adapters) == [name]
    await removing
    assert engine.adapters == {}


async def test_one_that_is_named_again_meanwhile_stays(store, make, engine, adapters):
    directory = make("one")
    await adapters.add("a", store.take(directory, 8))
    adapter = adapters.known()["a"]
    with adapter.in_use():
        removing = asyncio.create_task(adapters.remove("a"))
        await asyncio.sleep(0)
        await adapters.add("b", store.take(directory, 8))
    await removing
    assert adapters.known() == {"b": adapter}
    assert list(engine.adapters) == [adapter.id]


async def test_what_the_engine_refuses_is_neither_named_nor_kept(store, make, engine, adapters, temporary):
    async def refuse(name: str, directory: Path) -> None:
        raise RequestRefused

    engine.load_adapter = refuse
    with pytest.raises(RequestRefused):
        await adapters.add("a", store.take(make("one"), 8))
    assert (len(adapters), kept(temporary)) == (0, [])


async def test_a_dead_engine_keeps_no_copy(store, make, engine, adapters, temporary):
    async def dead(name: str) -> None:
        raise EngineFailed

    await adapters.add("a", store.take(make("one"), 8))
    engine.unload_adapter = dead
    await adapters.remove("a")
    assert kept(temporary) == []


async def test_a_release_goes_on_when_its_caller_gave_up(store, make, temporary, until):
    copy: Copy = store.take(make("one"), 8)
    releasing = asyncio.create_task(copy.release())
    await asyncio.sleep(0)
    releasing.cancel()
    await until(lambda: kept(temporary) == [])
