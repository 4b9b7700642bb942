from tuneserve.server.processes.history import Changes, changes
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
    assert changes(begun, 2) == Changes(loading={"a": begun[0]})
    assert changes([*begun, ready(1, "a")], 2) == Changes(loading={"a": begun[0]}), "one process, twice"
    assert changes([*begun, ready(2, "a"), failed("a")], 2) == Changes(loaded={"m@1": begun[0]})
    assert changes([*begun, failed("a"), ready(2, "a")], 2) == Changes(failed={"m@1": begun[0]})
    assert changes([failed("other"), ready(1, "other")], 2) == Changes()


def test_nothing():
    assert changes([Entry("joined", 1), Entry("left", 1)], 2) == Changes()


def test_only_what_is_there_is_loaded():
    entries = [*served("a", "m", "m@1"), *served("b", "m", "m@2"), alias("m", "m@2"), unload("m@1")]
    done = changes(entries, 2)
    assert list(done.loaded) == ["m@2"]
    assert not done.unloaded, "it is not of the file"
    assert list(changes([*entries, unload("m@0")], 2).unloaded) == ["m@0"]
    assert done.aliases["m"].body["targets"] == [{"model": "m@2", "weight": 1}]
    assert list(changes([*entries, *served("c", "m", "m@1")], 2).loaded) == ["m@2", "m@1"]


def test_a_model_without_an_alias_gets_one_from_its_next_version():
    entries = [*served("a", "m", "m@1"), alias("m")]
    assert changes(entries, 2).aliases["m"].body["targets"] == []
    begun, *decided = served("b", "m", "m@2")
    for whole in ([*entries, begun, *decided], [*entries[:-1], begun, entries[-1], *decided]):
        assert changes(whole, 2).aliases["m"].body["targets"] == [{"model": "m@2", "weight": 1}]


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
    removed = Entry("adapter", 1, "y", body)
    assert changes([given], 2) == Changes(adapters={("m@1", "tuned"): given})
    assert changes([given, removed], 2) == Changes()
    assert changes([removed], 2) == Changes(removed={("m@1", "tuned"): removed}), "it is of the file"
    assert changes([removed, given], 2) == Changes(
        adapters={("m@1", "tuned"): given}, removed={("m@1", "tuned"): removed}
    )
    for entries in ([given], [removed], [removed, given]):
        done = changes([*entries, unload("m@1")], 2)
        assert not done.adapters
        assert not done.removed
