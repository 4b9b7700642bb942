"""Rows on disk: whole lines of several processes, bounds, and what a killed process leaves."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tuneserve.errors import UserError
from tuneserve.server.call.errors import Full
from tuneserve.server.config import FeedbackConfig
from tuneserve.server.feedback import files
from tuneserve.server.feedback.files import Files

ROW = {"text": "good ü", "label": "pos"}
SIZE = len(json.dumps(ROW, ensure_ascii=False).encode()) + 1


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def kept(root: Path, **bounds: int) -> Files:
    return Files(FeedbackConfig(path=root / "kept", **bounds))


async def test_each_tenant_and_model_has_its_own(tmp_path):
    found = kept(tmp_path)
    await found.append("ann", "sentiment", {"labels": ROW})
    await found.append("ann", "chat", {"thumbs": {"n": 1}, "corrections": {"n": 2}})
    await found.append("bob", "sentiment", {"labels": {"n": 3}})
    await found.append("ann", "sentiment", {"labels": ROW})
    written = {str(path.relative_to(tmp_path / "kept")): rows(path) for path in tmp_path.rglob("*.jsonl")}
    assert written == {
        "ann/sentiment/labels.jsonl": [ROW, ROW],
        "ann/chat/thumbs.jsonl": [{"n": 1}],
        "ann/chat/corrections.jsonl": [{"n": 2}],
        "bob/sentiment/labels.jsonl": [{"n": 3}],
    }


@pytest.mark.parametrize(
    ("bounds", "unit"), [({"max_rows": 3}, "3 rows"), ({"max_bytes": 3 * SIZE}, f"{3 * SIZE} bytes")]
)
async def test_a_tenant_has_its_share_of_all_models_and_processes(tmp_path, bounds, unit):
    one, other = kept(tmp_path, **bounds), kept(tmp_path, **bounds)
    await one.append("ann", "sentiment", {"labels": ROW})
    await other.append("ann", "sentiment", {"labels": ROW})
    await one.append("ann", "topics", {"labels": ROW})
    for each in (one, other):
        with pytest.raises(Full, match=f"full: allowed are {unit}"):
            await each.append("ann", "topics", {"labels": ROW})
    # Both rows of a feedback, or none.
    with pytest.raises(Full):
        await one.append("bob", "chat", {"a": ROW, "b": ROW, "c": ROW, "d": ROW})
    assert not list((tmp_path / "kept" / "bob").glob("*/*.jsonl"))
    await one.append("bob", "topics", {"labels": ROW})
    # Somebody has made room.
    (tmp_path / "kept" / "ann" / "sentiment" / "labels.jsonl").unlink()
    await other.append("ann", "sentiment", {"labels": {"n": 1}})
    await one.append("ann", "sentiment", {"labels": {"n": 2}})
    assert rows(tmp_path / "kept" / "ann" / "sentiment" / "labels.jsonl") == [{"n": 1}, {"n": 2}]


async def test_half_a_line_is_removed_by_the_next_row(tmp_path):
    await kept(tmp_path).append("ann", "sentiment", {"labels": ROW})
    path = tmp_path / "kept" / "ann" / "sentiment" / "labels.jsonl"
    with path.open("ab") as file:
        file.write(b'{"text": "go')
    found = kept(tmp_path)
    for number in (1, 2):
        await found.append("ann", "sentiment", {"labels": {"n": number}})
    assert rows(path) == [ROW, {"n": 1}, {"n": 2}]


async def test_a_full_disk_is_told_and_leaves_whole_lines(tmp_path, monkeypatch):
    found = kept(tmp_path)
    await found.append("ann", "sentiment", {"labels": ROW})

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(Full, match="the disk for feedback is full"):
            await found.append("ann", "sentiment", {"labels": ROW})
    await found.append("ann", "sentiment", {"labels": {"n": 1}})
    assert rows(tmp_path / "kept" / "ann" / "sentiment" / "labels.jsonl") == [ROW, {"n": 1}]


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "kept").write_text("")
    with pytest.raises(UserError, match=r"feedback.path: .*kept: File exists"):
        kept(tmp_path)


WRITER = """
import asyncio, sys
from pathlib import Path
from tuneserve.server.config import FeedbackConfig
from tuneserve.server.feedback.files import Files

async def main(root, name):
    files = Files(FeedbackConfig(path=Path(root)))
    for number in range(10**9):
        await files.append("ann", "sentiment", {"labels": {"by": name, "n": number, "text": "ü" * 3000}})
        print(number, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def test_processes_write_whole_lines_and_a_kill_loses_nothing_acknowledged(tmp_path):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path / "kept"), name],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    told = {}
    for name, writer in zip("ab", writers, strict=True):
        lines = [writer.stdout.readline() for _ in range(30)]
        os.kill(writer.pid, signal.SIGKILL)
        told[name] = int((lines + writer.stdout.readlines())[-1])
        writer.wait()
        writer.stdout.close()
    asyncio.run(kept(tmp_path).append("ann", "sentiment", {"labels": {"by": "c", "n": 0}}))
    found = rows(tmp_path / "kept" / "ann" / "sentiment" / "labels.jsonl")
    for name in "ab":
        numbers = [row["n"] for row in found if row["by"] == name]
        assert numbers[: told[name] + 1] == list(range(told[name] + 1))
        # At most the row that was written when it was killed.
        assert len(numbers) <= told[name] + 2
    assert found[-1] == {"by": "c", "n": 0}
