import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pytest

from tuneserve.server.answer import store
from tuneserve.server.answer.rows import Row
from tuneserve.server.answer.store import Documents, OtherVectors, Snapshot, Store

from . import writer

ONE = np.array([1, 0], np.float32)
# What has a meaning in SQL, in patterns and in C.
ODD = ["it's", "\\'", 'qu"ote', "%_", "nul\0x", "new\nline", "東 🙂\u2028", "'] OR TRUE --"]


@pytest.fixture
async def documents(tmp_path) -> Documents:
    kept = Store(tmp_path)
    yield await kept.documents("anonymous")
    await kept.close()


def row(document: str, number: int = 0, text: str = "film", **fields) -> Row:
    given = {"title": "", "start": 0, "start_utf8": 0, "start_utf16": 0, "tags": [], "readers": [""], "reply": None}
    given |= {"digest": text, "passage": text, "vector": ONE}
    return Row(document=document, number=number, **given | fields)


async def found(documents: Documents, words: str = "film", readers=(), filters=(), most: int = 50) -> list[str]:
    seen = await documents.snapshot()
    return sorted(one.row.document for one in await seen.search(ONE, words, readers, filters, most))


async def test_names_of_any_signs_are_names(documents):
    assert await documents.snapshot() is None
    rows = [row(one, number, readers=[f"for {one}"], tags=[f"k={one}"]) for one in ODD for number in range(2)]
    version = await documents.replace("m@1", ODD, rows)
    seen = await documents.snapshot()
    assert (seen.version, seen.made_by, await seen.digests(ODD)) == (version, "m@1", dict.fromkeys(ODD, "film"))
    for one in ODD:
        assert await found(documents, readers=["x", f"for {one}"]) == [one, one]
        assert await found(documents, readers=[f"for {one}"], filters=[("k", ["x", one])]) == [one, one]
        assert await found(documents, readers=[f"for {one}"], filters=[("k", ["x"])]) == []
    assert await found(documents) == []
    assert (await documents.delete([*ODD[1:], "nobody"]))[0] == len(ODD) - 1
    assert await found(documents, readers=[f"for {one}" for one in ODD]) == [ODD[0]] * 2


async def test_a_snapshot_stays_as_it_is(documents):
    await documents.replace("m@1", ["a"], [row("a", number) for number in range(3)])
    before = await documents.snapshot()
    await documents.replace("m@1", ["a"], [row("a", text="tokyo")])
    assert len(await before.search(ONE, "film", [], [], 9)) == 3
    assert await before.digests(["a"]) == {"a": "film"}
    assert [one.row.passage for one in await (await documents.snapshot()).search(ONE, "film", [], [], 9)] == ["tokyo"]


async def test_as_many_by_vector_as_by_words(documents):
    vectors = [np.array([1, angle], np.float32) for angle in range(6)]
    texts = ["tokyo"] * 3 + ["film"] * 3
    rows = [row(str(place), text=text, vector=vectors[place]) for place, text in enumerate(texts)]
    await documents.replace("m@1", [one.document for one in rows], rows)
    seen = await documents.snapshot()
    both = await seen.search(ONE, "film", [], [], 2)
    assert {one.row.document for one in both if not one.keyword} == {"0", "1"}
    assert len({one.row.document for one in both if one.keyword}) == 2
    [nearest] = await seen.search(ONE, "nobody", [], [], 1)
    assert list(nearest.row.vector) == list(vectors[0])
    [last] = await seen.search(ONE, "film", [], [("none", ["x"])], 1) or [None]
    assert last is None


async def test_vectors_of_two_models_are_not_mixed(documents):
    await documents.replace("m@1", ["a"], [row("a")])
    with pytest.raises(OtherVectors):
        await documents.replace("m@2", ["b"], [row("b")])
    assert await found(documents) == ["a"]


async def test_a_table_that_was_never_finished_is_made_again(documents, tmp_path):
    connection = await lancedb.connect_async(tmp_path)
    await connection.create_table("anonymous", schema=store._schema(2, "m@1"))
    assert await documents.snapshot() is None
    assert await documents.delete(["a"]) == (0, 0)
    await documents.replace("m@1", ["a"], [row("a")])
    assert await found(documents) == ["a"]


async def test_old_versions_are_deleted(documents, tmp_path, monkeypatch, until):
    monkeypatch.setattr(store, "_TIDY_SECONDS", 0.01)
    monkeypatch.setattr(store, "_KEPT", timedelta(milliseconds=1))
    for number in range(20):
        await documents.replace("m@1", ["a"], [row("a", text=f"film {number}")])
    versions = tmp_path / "anonymous.lance" / "_versions"
    await until(lambda: len(list(versions.glob("*.manifest"))) < 5)
    assert await found(documents, "19") == ["a"]


async def test_a_write_that_waits_can_be_given_up(documents):
    async with documents._writing():
        waiting = asyncio.create_task(documents.replace("m@1", ["a"], [row("a")]))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await documents.replace("m@1", ["b"], [row("b")])
    assert await found(documents) == ["b"]


@contextmanager
def writing(directory: Path, name: str, first: int, last: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(writer.__file__)), str(directory), name, str(first), str(last)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def whole(seen: Snapshot) -> str:
    """Returns the digest of the documents, if they are all of one round, with all passages and no others."""
    passages = [one.row for one in await seen.search(writer.rows("", 0)[0].vector, "film", [], [], 1000)]
    [digest] = {one.digest for one in passages}
    name, number = digest.rsplit(" ", 1)
    wanted = [(one.document, one.number, one.passage) for one in writer.rows(name, int(number))]
    assert sorted((one.document, one.number, one.passage) for one in passages) == wanted
    return digest


async def test_a_process_that_is_killed_loses_nothing_that_it_acknowledged(tmp_path):
    next_ = 0
    for _ in range(4):
        with writing(tmp_path, "w", next_, 10**6) as process:
            for _ in range(random.randint(1, 12)):
                acknowledged = int(process.stdout.readline())
            await asyncio.sleep(random.random() / 20)
            process.kill()
            acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
        kept = Store(tmp_path)
        digest = await whole(await (await kept.documents("anonymous")).snapshot())
        assert int(digest.removeprefix("w ")) in (acknowledged, acknowledged + 1)
        next_ = acknowledged + 2
        await kept.close()


async def test_two_processes_write_and_search_one_index(documents, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_TIDY_SECONDS", 0.02)
    rounds, versions, seen_of = 30, [], set()
    with writing(tmp_path, "other", 0, rounds) as process:
        process.stdout.readline()

        async def search() -> None:
            while len(versions) < 10 or process.poll() is None:
                seen = await documents.snapshot()
                versions.append(seen.version)
                seen_of.add((await whole(seen)).split()[0])

        async def write() -> None:
            for number in range(rounds):
                await documents.replace("m@1", writer.DOCUMENTS, writer.rows("own", number))

        await asyncio.gather(search(), write())
        assert process.wait(60) == 0
    assert versions == sorted(versions)
    assert seen_of == {"own", "other"}
    assert await whole(await documents.snapshot()) in (f"own {rounds - 1}", f"other {rounds - 1}")
