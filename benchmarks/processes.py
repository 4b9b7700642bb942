"""What running programs cost, read from Linux's /proc: CPU time and memory of a program with its children.

A program is a session: it was started as the leader of one, and what it starts stays in it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """CPU seconds since the start, of the process that was started and of those it started; resident bytes of all."""

    leader: float
    others: float
    resident: int

    @property
    def cpu(self) -> float:
        """Of all."""
        return self.leader + self.others

    def since(self, before: "Usage") -> "Usage":
        """CPU seconds spent since; memory as it is now."""
        return Usage(self.leader - before.leader, self.others - before.others, self.resident)


def usage(session: int) -> Usage:
    """Returns what a program has used. Memory that processes share counts in each."""
    leader = others = 0.0
    resident = 0
    for pid, fields in _stats():
        if int(fields[3]) != session:
            continue
        # Threads and processes that ended are in the times of those that waited for them.
        seconds = sum(int(value) for value in fields[11:15]) * _TICK
        if pid == session:
            leader += seconds
        else:
            others += seconds
        resident += int(fields[21]) * _PAGE
    return Usage(leader, others, resident)


def machine_cpu() -> float:
    """Returns the CPU seconds that the whole machine has been busy, or kept from us by its host."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) * _TICK


def _stats() -> Iterator[tuple[int, list[str]]]:
    """Yields each process's id and its stat, from the state on (field 3 of proc(5)): a name can hold anything."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            yield int(entry.name), text.rpartition(")")[2].split()
