"""What a process that is started again has to do, from the journal of what was done without it."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from tuneserve.server.processes.journal import Entry


@dataclass
class Changes:
    """The difference between the server's file and what is served, by the entries of the journal that made it."""

    loading: dict[str, Entry] = field(default_factory=dict)  # by operation: not decided yet
    loaded: dict[str, Entry] = field(default_factory=dict)  # by version, in the order of loading
    failed: dict[str, Entry] = field(default_factory=dict)  # versions that could not be loaded
    unloaded: dict[str, Entry] = field(default_factory=dict)  # versions of the file
    aliases: dict[str, Entry] = field(default_factory=dict)  # without targets: deleted
    adapters: dict[tuple[str, str], Entry] = field(default_factory=dict)  # by version and name
    removed: dict[tuple[str, str], Entry] = field(default_factory=dict)  # adapters of the file


def changes(entries: Iterable[Entry], count: int) -> Changes:
    """Returns what is different after these entries. A version is served once all `count` processes have it ready,
    unless it failed before in one.
    """
    done = Changes()
    ready: dict[str, set[int]] = {}
    for entry in entries:
        body = entry.body
        if entry.kind == "load":
            done.failed.pop(body["id"], None)
            done.loading[entry.operation] = entry
            ready[entry.operation] = set()
        elif entry.kind == "ready" and body["load"] in done.loading:
            ready[body["load"]].add(entry.process)
            if len(ready[body["load"]]) == count:
                _serve(done, done.loading.pop(body["load"]))
        elif entry.kind == "failed":
            if load := done.loading.pop(body["load"], None):
                done.failed[load.body["id"]] = load
            if entry.operation:
                # Cancelled, not failed.
                done.failed = {id_: one for id_, one in done.failed.items() if one.operation != body["load"]}
        elif entry.kind == "unload":
            if not (done.loaded.pop(body["id"], None) or done.failed.pop(body["id"], None)):
                done.unloaded[body["id"]] = entry
            for adapters in (done.adapters, done.removed):
                for key in [key for key in adapters if key[0] == body["id"]]:
                    del adapters[key]
        elif entry.kind == "alias":
            done.aliases[body["name"]] = entry
        elif entry.kind == "adapter":
            key = body["model"], body["adapter"]
            if "directory" in body:
                done.adapters[key] = entry
            elif not done.adapters.pop(key, None):
                done.removed[key] = entry
    return done


def _serve(done: Changes, load: Entry) -> None:
    name, id_ = load.body["model"], load.body["id"]
    done.loaded[id_] = load
    if (alias := done.aliases.get(name)) and not alias.body.get("targets"):
        # Its alias had been deleted, so it got a new one.
        done.aliases[name] = replace(alias, body={"name": name, "targets": [{"model": id_, "weight": 1}]})


def needed(entries: Sequence[Entry], count: int, names: Collection[str]) -> list[Entry]:
    """Returns those entries from which a process that joins learns the same, with whatever comes next. `names` are the
    aliases of the server's file.
    """
    done = changes(entries, count)
    served = {*names, *(one.body["model"] for one in done.loaded.values())}
    # An alias that was deleted has to be deleted only by who would have it.
    aliases = [one for name, one in done.aliases.items() if one.body.get("targets") or name in served]
    others = (done.loading, done.loaded, done.failed, done.unloaded, done.adapters, done.removed)
    operations = {one.operation for one in aliases} | {one.operation for part in others for one in part.values()}
    running: dict[int, Entry] = {}
    for entry in entries:
        if entry.kind == "joined":
            running[entry.process] = entry
        elif entry.kind == "left":
            running.pop(entry.process, None)

    def is_needed(entry: Entry) -> bool:
        if entry.kind in ("joined", "left"):
            return entry is running.get(entry.process)
        # Answers are for the process that waits for them.
        return entry.kind not in ("done", "refused") and entry.body.get("load", entry.operation) in operations

    return list(filter(is_needed, entries))
