import asyncio
import subprocess
import sys
import time
from functools import partial

import pytest

from tuneserve.server.processes import history, journal
from tuneserve.server.processes.journal import Entry, Journal

NEEDED = partial(history.needed, count=2, names=())
# Moves an alias for ever, and says how often.
WRITER = """
import sys
from functools import partial
from pathlib import Path
from tuneserve.server.processes import history, journal
from tuneserve.server.processes.journal import Entry, Journal

journal._LONG = 1000
one, number = Journal(Path(sys.argv[1])), int(sys.argv[2])
while True:
    number += 1
    one.append(Entry("alias", 1, str(number), {"name": "m", "targets": [number]}))
    print(number, flush=True)
    one.shorten(partial(history.needed, count=2, names=()))
"""


def test_all_read_the_same_entries_once(tmp_path):
    first, second = Journal(tmp_path), Journal(tmp_path)
    entries = [Entry("joined", 1), Entry("alias", 2, "a", {"name": "ü"})]
    first.append(entries[0])
    second.append(entries[1])
    assert first.new() == second.new() == Journal(tmp_path).new() == entries
    assert first.new() == []
    second.append(Entry("left", 1))
    assert first.new() == [Entry("left", 1)]


def test_a_line_is_read_once_it_is_whole(tmp_path):
    journal = Journal(tmp_path)
    journal.append(Entry("joined", 1))
    whole = (tmp_path / "part.0").read_bytes()
    with (tmp_path / "part.0").open("ab") as file:
        file.write(whole[:9])
        file.flush()
        assert journal.new() == [Entry("joined", 1)]
        assert journal.new() == []
        file.write(whole[9:])
    assert journal.new() == [Entry("joined", 1)]


async def test_one_has_the_turn(tmp_path):
    order = []

    async def take(name: str) -> None:
        async with Journal(tmp_path).turn():
            order.append(name)
            await asyncio.sleep(0.1)
            order.append(name)

    await asyncio.gather(*map(take, "abc"))
    assert order[::2] == order[1::2]
    assert sorted(order[::2]) == ["a", "b", "c"]


def moved(number: int) -> Entry:
    return Entry("alias", 1, str(number), {"name": "m", "targets": [number]})


def test_it_does_not_grow_with_what_is_done(tmp_path):
    first, second = Journal(tmp_path), Journal(tmp_path)
    read: list[Entry] = []
    for process in (1, 2):
        first.append(Entry("joined", process))
    for number in range(3000):
        first.append(moved(number))
        second.append(Entry("done", 2, str(number)))
        if number % 10 == 0:
            read += second.new()
            second.shorten(NEEDED)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 3 * journal._LONG
    everything = read + second.new()
    assert [entry.operation for entry in everything if entry.kind == "alias"] == [*map(str, range(3000))]
    joining = Journal(tmp_path).new()
    assert len(joining) < 3000
    assert NEEDED(joining) == NEEDED(everything) == [Entry("joined", 1), Entry("joined", 2), moved(2999)]


def test_one_that_is_behind_reads_what_was_shortened_or_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_LONG", 0)
    writer, reader = Journal(tmp_path), Journal(tmp_path)
    writer.append(moved(0))
    assert reader.new() == [moved(0)]
    for number in (1, 2):
        writer.append(moved(number))
    writer.shorten(NEEDED)
    writer.append(moved(3))
    assert reader.new() == [moved(1), moved(2), moved(3)]
    assert Journal(tmp_path).new() == [moved(2), moved(3)]
    for number in (4, 5):
        writer.shorten(NEEDED)
        writer.append(moved(number))
    with pytest.raises(FileNotFoundError):
        reader.new()
    assert Journal(tmp_path).new() == [moved(4), moved(5)]


def test_one_that_can_not_be_shortened_stays_long(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_LONG", 0)
    one = Journal(tmp_path)
    (tmp_path / "summary.1").mkdir()
    for number in range(3):
        one.append(moved(number))
        one.shorten(NEEDED)
    assert one.new() == Journal(tmp_path).new() == [moved(0), moved(1), moved(2)]
    (tmp_path / "summary.1").rmdir()
    one.shorten(NEEDED)
    assert Journal(tmp_path).new() == [moved(2)]


def test_what_was_begun_when_a_process_was_killed_is_no_line(tmp_path):
    one = Journal(tmp_path)
    one.append(moved(0))
    with (tmp_path / "part.0").open("ab") as file:
        file.write(b'{"kind": "al')
    assert one.new() == [moved(0)]
    one.append(moved(1))
    assert one.new() == [moved(1)]


def test_it_is_whole_wherever_a_process_is_killed(tmp_path):
    number = 0
    for _ in range(10):
        command = [sys.executable, "-P", "-c", WRITER, str(tmp_path), str(number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            said = writer.stdout.readline()
            time.sleep(0.05)
            writer.kill()
            said += writer.stdout.read()
        [*_, last] = Journal(tmp_path).new()
        assert last == moved(int(last.operation))
        number = int(last.operation)
        assert number >= int(said.splitlines()[-1])
