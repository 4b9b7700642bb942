from tuneserve.server.processes.history import Changes, changes, outcomes
from tuneserve.server.processes.journal import Entry


def load(operation: str, model: str, id_: str) -> Entry:
    return Entry("load", 1, operation, {"model": model, "id": id_})


def ready(process: int, operation: str) -> Entry:
    return Entry("ready", process, body={"load": operation})


def failed(operation: str, cancels: str = "") -> Entry:
    return Entry("failed", 1, cancels, {"load": operation})


def served(operation: str, model: str, id_: str) -> list[Entry]:
    return [load(operation, model, id_), ready(1, operation), ready(2, operation)]


def alias(name: str, *targets: str) -> Entry:
    return Entry("alias", 1, "x", {"name": name, "targets": [{"model": one, "weight": 1} for one in targets]})


def unload(id_: str) -> Entry:
    return Entry("unload", 1, "x", {"id": id_})


def test_what_comes_first_decides():
    begun = [load("a", "m", "m@1"), ready(1, "a")]
    assert outcomes(begun, 2) == {"a": None}
    assert outcomes([*begun, ready(1, "a")], 2) == {"a": None}, "one process, twice"
    assert outcomes([*begun, ready(2, "a"), failed("a")], 2) == {"a": True}
    assert outcomes([*begun, failed("a"), ready(2, "a")], 2) == {"a": False}
    assert outcomes([failed("other"), ready(1, "other")], 2) == {}


def test_nothing():
    assert changes([Entry("joined", 1), Entry("left", 1)], 2) == Changes()


def test_only_what_is_there_is_loaded():
    entries = [*served("a", "m", "m@1"), *served("b", "m", "m@2"), alias("m", "m@2"), unload("m@1")]
    done = changes(entries, 2)
    assert list(done.loaded) == ["m@2"]
    assert done.unloaded == {"m@1"}
    assert done.aliases["m"]["targets"] == [{"model": "m@2", "weight": 1}]
    assert list(changes([*entries, *served("c", "m", "m@1")], 2).loaded) == ["m@2", "m@1"]


def test_a_model_without_an_alias_gets_one_from_its_next_version():
    entries = [*served("a", "m", "m@1"), alias("m")]
    assert changes(entries, 2).aliases["m"]["targets"] == []
    entries += served("b", "m", "m@2")
    assert changes(entries, 2).aliases["m"]["targets"] == [{"model": "m@2", "weight": 1}]


def test_a_version_that_failed_stays_until_it_is_unloaded_or_loaded_again():
    entries = [load("a", "m", "m@1"), failed("a")]
    assert list(changes(entries, 2).failed) == ["m@1"]
    assert not changes([load("a", "m", "m@1"), failed("a", "cancel")], 2).failed
    assert not changes([*entries, unload("m@1")], 2).failed
    again = changes([*entries, *served("b", "m", "m@1")], 2)
    assert (list(again.failed), list(again.loaded)) == ([], ["m@1"])


def test_adapters_go_with_their_version():
    body = {"model": "m@1", "adapter": "tuned"}
    given = Entry("adapter", 1, "x", {**body, "directory": "/d"})
    assert changes([given], 2).adapters == {("m@1", "tuned"): given.body}
    assert changes([given, Entry("adapter", 1, "y", body)], 2).adapters == {("m@1", "tuned"): body}
    assert changes([given, unload("m@1")], 2).adapters == {}
