"""Labelled rows in the schema of their task, as JSON Lines: so a checkpoint keeps its held-out rows.

    sequence-classification  {"text": str, "text_pair": str (optional), "label": str}
                             {"text": str, "labels": [str, ...]}             multi-label
                             {"text": str, "label": float}                   regression
    token-classification     {"text": str, "entities": [{"start": int, "end": int, "label": str}, ...]}
                             code points, in order, without overlap
    generation               {"messages": [{"role": str, "content": str}, ...]}   the last one is the answer
                             {"messages": ..., "tools": [{...}, ...]}             JSON schemas, for the template
                             {"messages": ..., "documents": [{...}, ...]}         to answer from, for the template
                             {"prompt": str, "completion": str}
                             ..., "rejected": str, or a message in a conversation: a worse answer to the same prompt
                             ..., "label": bool                                   whether the answer is a good one
    embedding, ranking       {"query": str, "positive": str, "negatives": [str, ...] (optional)}

finetune reads users' own files, in all formats; this module only writes and reads this schema.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tuneserve.checkpoint import entities, spacing
from tuneserve.errors import UserError

Row = dict[str, Any]

DIGEST = 16  # bytes


def dumps(row: Row) -> str:
    """Returns a row as one line, the same for equal rows whatever their key order."""
    return json.dumps(row, ensure_ascii=False, sort_keys=True)


def input_key(row: Row) -> str:
    """Returns a row's input without the answer, as a key: equal keys in train and test would be a leak."""
    if "messages" in row:
        more = {key: row[key] for key in ("tools", "documents") if row.get(key)}
        return dumps({"messages": row["messages"][:-1]} | more)
    return dumps({key: row[key] for key in ("text", "text_pair", "prompt", "query") if key in row})


def digest(key: str) -> bytes:
    """Returns 16 bytes that stand for a row's input (see `input_key`), or for its group."""
    return hashlib.blake2b(key.encode(), digest_size=DIGEST).digest()


def earlier_inputs(row: Row) -> Iterator[str]:
    """Yields the input keys of a conversation's earlier answers, the first answer first."""
    messages = row.get("messages", ())
    for count, turn in enumerate(messages[:-1], start=1):
        # An assistant's message that opens a conversation answers nothing.
        if count > 1 and turn["role"] == "assistant":
            yield input_key({**row, "messages": messages[:count]})


def write(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows as JSON Lines; creates the parent directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(dumps(row) + "\n" for row in rows)


def read(path: Path, join: Callable[[Sequence[str]], spacing.Joined] = spacing.joined) -> list[Row]:
    """Reads what `write` wrote. Raises UserError naming the file and line.

    Rows of words and tags, which older checkpoints have, are returned as text with entities; `join` joins the words.
    """
    rows: list[Row] = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: not a JSON object")
        rows.append(_of_words(row, join) if "tags" in row else row)
    return rows


def sha256(rows: Iterable[Row]) -> str:
    """Returns the SHA-256 of the rows in their order, in hex."""
    found = hashlib.sha256()
    for row in rows:
        found.update(dumps(row).encode())
        found.update(b"\n")
    return found.hexdigest()


def _of_words(row: Row, join: Callable[[Sequence[str]], spacing.Joined]) -> Row:
    words, tags = (list(value) if isinstance(value, list) else [] for value in (row.get("tokens"), row["tags"]))
    good = words and len(words) == len(tags) and all(isinstance(text, str) and text for text in (*words, *tags))
    # Invalid rows are refused later, where rows are checked.
    return entities.from_words(words, tags, join) if good else row
