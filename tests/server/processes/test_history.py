import random
from collections.abc import Sequence

import pytest

from tuneserve.server.processes.history import Changes, changes, needed
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


class Served:
    """What a server serves, from the file's `m@0` with the adapter `f`; and entries of whatever is done with it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.versions: dict[str, set[str]] = {"m@0": {"f"}}
        self.failed: set[str] = set()
        self.loading: dict[str, str] = {}  # by operation
        self.aliases: dict[str, Sequence[str]] = {"m": ["m@0"]}
        self.running: set[int] = set()
        self.done = 0

    def shown(self) -> tuple:
        return self.versions, self.failed, set(self.loading.values()), self.aliases, self.running

    def something(self) -> list[Entry]:
        self.done += 1
        do = [
            self.load,
            self.decide,
            self.decide,
            self.unload,
            self.unload,
            self.point,
            self.delete,
            self.adapter,
            self.join,
        ]
        return [*self.random.choice(do)(str(self.done)), Entry("done", 2, str(self.done))]

    def load(self, operation: str) -> list[Entry]:
        id_ = f"{self.random.choice('mn')}@{self.random.randrange(self.done)}"
        if id_ in self.versions or id_ in self.loading.values():
            return []
        self.failed.discard(id_)
        self.loading[operation] = id_
        return [load(operation, id_[0], id_), ready(1, operation)]

    def decide(self, operation: str) -> list[Entry]:
        if not self.loading:
            return []
        begun = next(iter(self.loading))
        id_ = self.loading.pop(begun)
        how = self.random.choice(["serves", "serves", "fails", "is cancelled"])
        if how == "serves":
            self.versions[id_] = set()
            self.aliases.setdefault(id_[0], [id_])
            return [ready(2, begun), failed(begun)]
        if how == "fails":
            self.failed.add(id_)
        return [failed(begun, operation if how == "is cancelled" else ""), ready(2, begun)]

    def unload(self, operation: str) -> list[Entry]:
        used = {id_ for ids in self.aliases.values() for id_ in ids}
        if not (unused := sorted({*self.versions, *self.failed} - used)):
            return []
        id_ = self.random.choice(unused)
        self.versions.pop(id_, None)
        self.failed.discard(id_)
        return [Entry("unload", 1, operation, {"id": id_})]

    def point(self, operation: str) -> list[Entry]:
        if not self.versions:
            return []
        name = self.random.choice(["m", "n", f"canary-{self.done}"])
        self.aliases[name] = self.random.choices(list(self.versions))
        return [
            Entry("alias", 1, operation, {"name": name, "targets": [{"model": self.aliases[name][0], "weight": 1}]})
        ]

    def delete(self, operation: str) -> list[Entry]:
        if not self.aliases:
            return []
        name = self.random.choice(list(self.aliases))
        del self.aliases[name]
        return [Entry("alias", 1, operation, {"name": name})]

    def adapter(self, operation: str) -> list[Entry]:
        if not self.versions:
            return []
        id_ = self.random.choice(list(self.versions))
        body = {"model": id_, "adapter": self.random.choice(["f", "g", f"adapter-{self.done}"])}
        if body["adapter"] not in self.versions[id_]:
            self.versions[id_].add(body["adapter"])
            return [Entry("adapter", 1, operation, {**body, "directory": "/d"})]
        self.versions[id_].remove(body["adapter"])
        return [Entry("adapter", 1, operation, body)]

    def join(self, operation: str) -> list[Entry]:
        process = self.random.randrange(100)
        if process in self.running:
            self.running.remove(process)
            return [Entry("left", process)]
        self.running.add(process)
        return [Entry("joined", process)]


def joined(entries: list[Entry]) -> tuple:
    """What a process serves that begins with the file and these entries."""
    done = changes(entries, 2)
    versions: dict[str, set[str]] = {"m@0": {"f"}}
    aliases: dict[str, Sequence[str]] = {"m": ["m@0"]}
    for id_ in done.unloaded:
        del versions[id_]
    for id_ in done.loaded:
        versions[id_] = set()
        aliases.setdefault(id_[0], [id_])
    for id_, name in done.removed:
        versions[id_].remove(name)
    for id_, name in done.adapters:
        versions[id_].add(name)
    for name, alias in done.aliases.items():
        aliases.pop(name, None)
        if targets := alias.body.get("targets"):
            aliases[name] = [target["model"] for target in targets]
    running = set[int]()
    for entry in entries:
        if entry.kind in ("joined", "left"):
            running ^= {entry.process}
    return versions, set(done.failed), {load.body["id"] for load in done.loading.values()}, aliases, running


@pytest.mark.parametrize("seed", range(20))
def test_what_is_needed_says_the_same_and_is_no_more_than_what_is_served(seed):
    served, entries, short = Served(seed), list[Entry](), list[Entry]()
    for _ in range(500):
        new = served.something()
        entries += new
        short += new
        if served.random.random() < 0.1:
            short = needed(short, 2, ["m"])
            assert joined(short) == joined(entries) == served.shown()
            versions, failed, loading, aliases, running = map(len, served.shown())
            adapters = sum(map(len, served.versions.values()))
            # Of the file: its version, alias and adapter.
            assert len(short) <= 4 * (versions + failed + loading) + aliases + adapters + running + 3
    assert len(entries) > 5 * len(short)
