"""The rows that FeedbackService kept: which of them count."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tuneserve.errors import UserError
from tuneserve.retrain import feedback
from tuneserve.server.call.errors import Full
from tuneserve.server.config import FeedbackConfig
from tuneserve.server.feedback.files import Files


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_of_one_request_the_last_row_counts_and_each_row_once(tmp_path: Path) -> None:
    write(
        tmp_path / "ann" / "labels.jsonl",
        '{"text": "a", "label": "x", "request_id": "1"}\n'
        '{"text": "a", "label": "y", "request_id": "1"}\n'
        '{"label": "z", "text": "b", "request_id": "2"}\n'
        '{"text": "c", "label": "z"}\n',
    )
    # Another tenant's request of the same id, and a line that is just being written.
    write(
        tmp_path / "bob" / "labels.jsonl",
        '{"text": "d", "label": "x", "request_id": "1"}\n{"text": "b", "label": "z", "request_id": "9"}\n{"text": "e',
    )
    found = feedback.read(tmp_path / "*" / "labels.jsonl")
    assert [(row["text"], row["label"]) for row in found] == [("a", "y"), ("b", "z"), ("c", "z"), ("d", "x")]
    assert feedback.read(tmp_path / "nobody" / "labels.jsonl") == []
    assert feedback.without(found, found[1:]) == [{"text": "a", "label": "y"}]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    write(tmp_path / "labels.jsonl", '{"text": "a"}\n[]\n')
    with pytest.raises(UserError, match=r"labels\.jsonl:2: not a JSON object"):
        feedback.read(tmp_path / "labels.jsonl")


def told(request: int, label: str) -> dict[str, str]:
    return {"text": f"ü {request}", "label": label, "request_id": f"r-{request}"}


def test_what_was_learned_makes_room_and_the_rest_stays(tmp_path: Path) -> None:
    async def append(*rows: dict[str, str]) -> None:
        for row in rows:
            await server.append("ann", "sentiment", {"labels": row})

    server, other = (Files(FeedbackConfig(path=tmp_path, max_rows=4)) for _ in range(2))
    pattern, file = tmp_path / "*" / "sentiment" / "labels.jsonl", tmp_path / "ann" / "sentiment" / "labels.jsonl"
    asyncio.run(append(told(1, "neg"), told(1, "pos"), told(2, "neg"), told(3, "pos")))
    file.chmod(0o660)
    with pytest.raises(Full):
        asyncio.run(append(told(4, "pos")))
    learned = feedback.read(pattern)[:2]
    assert feedback.remove(pattern, learned) == 2
    # Not the first one of request 1, though it was never learned.
    assert file.read_text() == json.dumps(told(3, "pos"), ensure_ascii=False, sort_keys=True) + "\n"
    assert file.stat().st_mode & 0o777 == 0o660
    assert feedback.remove(pattern, learned) == 0
    # Longer than it was before, and written by another server: each row counts once.
    asyncio.run(other.append("ann", "sentiment", {"labels": told(5, "pos" * 200)}))
    asyncio.run(append(told(6, "neg"), told(7, "neg")))
    with pytest.raises(Full):
        asyncio.run(append(told(8, "pos")))
    assert [row["text"] for row in feedback.read(pattern)] == ["ü 3", "ü 5", "ü 6", "ü 7"]


WRITER = """
import asyncio, sys
from pathlib import Path
from tuneserve.server.config import FeedbackConfig
from tuneserve.server.feedback.files import Files

async def main(root):
    files = Files(FeedbackConfig(path=Path(root)))
    for number in range(400):
        await files.append("ann", "sentiment", {"labels": {"text": str(number), "request_id": str(number)}})

asyncio.run(main(sys.argv[1]))
"""


def test_nothing_is_lost_while_a_server_writes(tmp_path: Path) -> None:
    pattern, learned = tmp_path / "ann" / "sentiment" / "labels.jsonl", list[dict[str, str]]()
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) as writer:
        while writer.poll() is None:
            new = feedback.read(pattern)
            assert feedback.remove(pattern, new) == len(new)
            learned += new
    assert writer.returncode == 0
    assert [int(row["text"]) for row in [*learned, *feedback.read(pattern)]] == list(range(400))
    assert len(learned) > 0


def test_files_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    write(tmp_path / "ann" / "a" / "labels.jsonl", '{"text": "a"}\n')
    (tmp_path / "ann" / ".lock").mkdir()
    with pytest.raises(UserError, match=r"labels\.jsonl: Is a directory; remove_learned is true"):
        feedback.remove(tmp_path / "*" / "*" / "labels.jsonl", [])
