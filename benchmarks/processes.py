"""CPU time and memory of a running program with its children, read from Linux's /proc; and the end of all children.

A program is a session: it is started as the session's leader, and its children stay in the session.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SET_CHILD_SUBREAPER = 36  # prctl(2)
_END_SECONDS = 10.0


@dataclass(frozen=True)
class Usage:
    """CPU seconds since the start, of the first process and of its children; resident bytes of all."""

    leader: float
    others: float
    resident: int

    @property
    def cpu(self) -> float:
        """CPU seconds of all processes."""
        return self.leader + self.others

    def since(self, before: "Usage") -> "Usage":
        """CPU seconds since `before`; memory as it is now."""
        return Usage(self.leader - before.leader, self.others - before.others, self.resident)


def usage(session: int) -> Usage:
    """Returns a program's usage. Memory that processes share is counted in each of them."""
    leader = others = 0.0
    resident = 0
    for pid, fields in _stats():
        if int(fields[3]) != session:
            continue
        # The times of ended children are included in those of the parent that waited for them.
        seconds = sum(int(value) for value in fields[11:15]) * _TICK
        if pid == session:
            leader += seconds
        else:
            others += seconds
        resident += int(fields[21]) * _PAGE
    return Usage(leader, others, resident)


def named(session: int, name: str) -> list[psutil.Process]:
    """Returns a program's processes with `name` in their command line."""
    found = []
    for pid, fields in _stats():
        if int(fields[3]) == session:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                found += [process] if name in " ".join(process.cmdline()) else []
    return found


def machine_cpu() -> float:
    """Returns the CPU seconds that the whole machine was busy, or that its host took from it (steal time)."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) * _TICK


def adopt_orphans() -> None:
    """Makes this process the parent of those that its children leave behind, so that `end_children` finds them."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_children() -> None:
    """Kills all processes that this one started, with their children, in whatever session they are."""
    # Those that are started meanwhile are found the next time.
    while children := psutil.Process().children(recursive=True):
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, _END_SECONDS)


def _stats() -> Iterator[tuple[int, list[str]]]:
    """Yields each process's id and the fields of its stat, from the state on (field 3 of proc(5)): the name before it
    may contain any character.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            yield int(entry.name), text.rpartition(")")[2].split()
