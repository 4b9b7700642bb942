import asyncio

from tuneserve.server.processes.journal import Entry, Journal


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
    whole = (tmp_path / "journal").read_bytes()
    with (tmp_path / "journal").open("ab") as file:
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
