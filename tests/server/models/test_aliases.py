"""Names, versions and aliases, without engines: where a caller's name leads, and for whom."""

from collections import Counter

import pytest

from tuneserve.server.call import context
from tuneserve.server.call.errors import InvalidInput, NotAllowed, NotFound, Unavailable, WrongState, WrongTask
from tuneserve.server.call.tenants import ANYBODY, Tenant
from tuneserve.server.config import ModelConfig
from tuneserve.server.metrics import Metrics
from tuneserve.server.models.aliases import Models, Route, to_proto
from tuneserve.server.models.model import Model
from tuneserve.v1 import checkpoint_pb2, model_pb2

READY, LOADING, FAILED = (
    model_pb2.MODEL_STATE_READY,
    model_pb2.MODEL_STATE_LOADING,
    model_pb2.MODEL_STATE_FAILED,
)
CLASSIFIES, GENERATES = checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION, checkpoint_pb2.TASK_GENERATION


def call(tenant: Tenant = ANYBODY) -> context.Call:
    """Begins a call of a tenant's."""
    one = context.Call("req-1", "Classify", tenant, {}, Metrics())
    context.begin(one)
    return one


@pytest.fixture(autouse=True)
def anybody() -> None:
    call()


def version(name: str, content: str, state: int = READY, task: int = CLASSIFIES) -> Model:
    manifest = checkpoint_pb2.Checkpoint(task=task, files=[checkpoint_pb2.File(path="model", sha256=content)])
    return Model(name, ModelConfig(path=f"/{name}"), manifest, Metrics(), state=state)


def registered(*models: Model) -> Models:
    """Each, with an alias of its name for the first."""
    found = Models()
    for model in models:
        found.add(model)
        found.give_alias(model)
    return found


def test_versions_are_sorted_and_found():
    chat, old, new = version("chat", "a"), version("reviews", "a"), version("reviews", "b")
    models = registered(new, chat, old)
    assert list(models) == sorted([chat, old, new], key=lambda model: (model.name, model.version))
    assert models.version("reviews", old.version) is old
    assert models.by_id("field", new.id) is new
    assert models.same(version("reviews", "a")) is old
    assert models.same(version("other", "a")) is None
    with pytest.raises(InvalidInput, match=r"field: is not NAME@VERSION"):
        models.by_id("field", "reviews")
    with pytest.raises(NotFound, match=r"version 'reviews@x' .* served: reviews@"):
        models.version("reviews", "x")
    with pytest.raises(NotFound, match=r"model 'nope' .* served: chat, reviews"):
        models.version("nope", "x")


def test_the_first_version_has_the_alias_of_the_name():
    old, new = version("reviews", "a"), version("reviews", "b")
    models = registered(old, new)
    assert models.get("reviews") is old
    assert models.get(new.id) is new
    assert (models.is_used(old), models.is_used(new)) == (True, False)


def test_the_latest_is_the_one_that_was_added_last_and_loaded():
    old, new, broken = version("m", "a"), version("m", "b"), version("m", "c", FAILED)
    models = registered(old, new, broken)
    assert broken.load_failed
    assert models.latest("m") is new
    assert models.latest("nope") is None


def test_what_is_removed_is_gone():
    old, new = version("m", "a"), version("m", "b")
    models = registered(old, new)
    models.remove(new)
    assert list(models) == [old]
    models.set_route("m", None)
    models.remove(old)
    assert list(models) == []
    assert models.routes == {}
    with pytest.raises(NotFound):
        models.get("m")


def test_calls_are_split_by_weight_and_stay_where_they_are():
    old, new = version("m", "a"), version("m", "b")
    models = registered(old, new)
    models.set_route("m", Route([(old, 3), (new, 1)]))
    seen = Counter(_asked(models) for _ in range(2000))
    assert 0.65 < seen[old.version] / 2000 < 0.85
    one = call()
    assert {models.get("m").version for _ in range(50)} == {one.version}, "a call stays with one version"
    assert (one.asked, one.model) == ("m", "m")


def _asked(models: Models) -> str:
    call()
    return models.get("m").version


@pytest.mark.parametrize("state", [LOADING, FAILED, model_pb2.MODEL_STATE_DRAINING])
def test_a_version_that_answers_gets_the_calls_of_those_that_do_not(state):
    up, down = version("m", "a"), version("m", "b", state)
    route = Route([(down, 1000), (up, 1)])
    assert all(route.choose() is up for _ in range(100))
    assert route.serves
    assert not Route([(down, 1)]).serves
    assert Route([(down, 1)]).choose() is down
    assert route.is_loading == (state == LOADING)


def test_a_shadow_counts_as_used_and_gets_no_calls():
    old, new = version("m", "a"), version("m", "b")
    models = registered(old, new)
    models.set_route("m", Route([(old, 1)], shadow=new))
    assert models.is_used(new)
    assert models.routes["m"].models() == [old, new]
    assert models.all("m") == [old]


def test_names_of_several_versions():
    old, new = version("m", "a"), version("m", "b")
    models = registered(old, new)
    models.set_route("m", Route([(old, 1), (new, 9)]))
    assert models.all("m") == [new, old]
    with pytest.raises(WrongState, match=f"name one: {old.id}, {new.id}") as caught:
        models.only("m")
    assert caught.value.reason == "SEVERAL_VERSIONS"
    assert models.only(old.id) is old


def test_a_tenant_sees_its_own_models():
    models = registered(version("mine", "a"), version("theirs", "b"))
    call(Tenant("one", models=["mine", "absent"]))
    assert [alias.name for alias in models.aliases()] == ["mine"]
    assert models.get("mine").name == "mine"
    for name in ("theirs", "theirs@x", "nobodys"):
        with pytest.raises(NotAllowed) as caught:
            models.get(name)
        assert "theirs" not in str(caught.value)
    with pytest.raises(NotFound, match=r"served: mine$"):
        models.get("absent")


def test_a_task_and_a_state_are_checked():
    models = registered(version("m", "a"), version("off", "b", LOADING), version("chat", "c", task=GENERATES))
    assert models.for_task("m", CLASSIFIES, GENERATES).name == "m"
    with pytest.raises(InvalidInput, match="model: is empty"):
        models.for_task("", CLASSIFIES)
    with pytest.raises(WrongTask, match=r"'chat' does generation: it answers GenerationService\.Generate"):
        models.for_task("chat", CLASSIFIES)
    with pytest.raises(Unavailable, match="'off' is loading"):
        models.for_task("off", CLASSIFIES)


def test_an_etag_stands_for_all_that_an_alias_is():
    old, new = version("m", "a"), version("m", "b")
    routes = [Route([(old, 1)]), Route([(old, 2)]), Route([(new, 1)]), Route([(old, 1)], shadow=new)]
    etags = [to_proto("m", route).etag for route in routes] + [to_proto("n", routes[0]).etag]
    assert len(set(etags)) == 5
    assert to_proto("m", Route([(old, 1)])).etag == etags[0]
    described = to_proto("m", routes[3])
    assert ([target.model for target in described.targets], described.shadow) == ([old.id], new.id)
