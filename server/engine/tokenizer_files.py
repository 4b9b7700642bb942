"""Makes a checkpoint's tokenizer readable for llguidance, the library behind structured outputs.

llguidance finds in tokenizer.json how the vocabulary represents bytes: ByteFallback or ByteLevel. If a file names both,
as those converted from GGUF files do, it picks the wrong one: then no space and no letter beyond ASCII is ever allowed.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SETTINGS = (".json", ".jinja", ".model", ".txt")
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


@contextmanager
def readable(directory: Path) -> Iterator[Path]:
    """Yields the directory, or a temporary one with a corrected tokenizer, which is deleted when the block ends."""
    file = directory / "tokenizer.json"
    text = file.read_text(encoding="utf-8") if file.is_file() else "{}"
    corrected = put_right(text)
    if corrected == text:
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="tuneserve-tokenizer-") as scratch:
        for path in directory.iterdir():
            if path.suffix in _SETTINGS and path.is_file():
                shutil.copyfile(path, Path(scratch, path.name))
        Path(scratch, file.name).write_text(corrected, encoding="utf-8")
        yield Path(scratch)


def put_right(tokenizer: str) -> str:
    """Returns the text of a tokenizer.json, corrected if llguidance would misread it."""
    content = json.loads(tokenizer)
    decoder = content.get("decoder") or {}
    kinds = {one.get("type") for one in decoder.get("decoders", [decoder])}
    if not kinds >= {"ByteFallback", "ByteLevel"}:
        return tokenizer
    # The other decoders never apply in a byte-level vocabulary: every token is written in its letters for bytes.
    content["decoder"] = _BYTE_LEVEL
    return json.dumps(content)
