"""What a process that is started again has to do, from the journal of what was done without it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tuneserve.server.processes.journal import Entry


@dataclass
class Changes:
    """The difference between the server's file and what is served, by the bodies of the journal's last entries."""

    loaded: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # by version, in the order of loading
    failed: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # versions that could not be loaded
    unloaded: set[str] = field(default_factory=set)  # versions that were there at some time
    aliases: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # without targets: deleted
    adapters: dict[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)  # without a directory: unloaded


def outcomes(entries: Iterable[Entry], count: int) -> dict[str, bool | None]:
    """Returns whether each version that was to be loaded is served: once all `count` processes have it ready, unless it
    failed before in one. None: not decided yet.
    """
    ready: dict[str, set[int]] = {}
    found: dict[str, bool | None] = {}
    for entry in entries:
        if entry.kind == "load":
            found[entry.operation] = None
            ready[entry.operation] = set()
        elif entry.kind in ("ready", "failed") and found.get(entry.body["load"], False) is None:
            load = entry.body["load"]
            if entry.kind == "failed":
                found[load] = False
            else:
                ready[load].add(entry.process)
                found[load] = len(ready[load]) == count or None
    return found


def changes(entries: Iterable[Entry], count: int) -> Changes:
    """Returns what is different after these entries, the loads of which are all decided."""
    entries = list(entries)
    served = outcomes(entries, count)
    done = Changes()
    for entry in entries:
        body = entry.body
        if entry.kind == "load" and not served[entry.operation]:
            done.failed[body["id"]] = {**body, "operation": entry.operation}
        elif entry.kind == "failed" and entry.operation:
            # Cancelled, not failed.
            done.failed = {id_: one for id_, one in done.failed.items() if one["operation"] != body["load"]}
        elif entry.kind == "load":
            done.failed.pop(body["id"], None)
            done.loaded[body["id"]] = body
            if not done.aliases.get(body["model"], {"targets": True})["targets"]:
                # Its alias had been deleted, so it got a new one.
                done.aliases[body["model"]] = {"name": body["model"], "targets": [{"model": body["id"], "weight": 1}]}
        elif entry.kind == "unload":
            done.loaded.pop(body["id"], None)
            done.failed.pop(body["id"], None)
            done.unloaded.add(body["id"])
            done.adapters = {key: one for key, one in done.adapters.items() if key[0] != body["id"]}
        elif entry.kind == "alias":
            done.aliases[body["name"]] = {"targets": [], **body}
        elif entry.kind == "adapter":
            done.adapters[body["model"], body["adapter"]] = body
    return done
