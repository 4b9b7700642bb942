"""A checkpoint's tokenizer as the library behind structured outputs can read it.

llguidance learns from tokenizer.json how a vocabulary writes bytes. Of one that names both ways, as those made of GGUF
files do, it believes the wrong one: then no space and no letter beyond ASCII ever fits a form.
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
    """Yields the directory, or a temporary one with its tokenizer put right; for as long as an engine starts."""
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
    """Returns the text of a tokenizer.json as the library can read it: the same where it can."""
    content = json.loads(tokenizer)
    decoder = content.get("decoder") or {}
    kinds = {one.get("type") for one in decoder.get("decoders", [decoder])}
    if not kinds >= {"ByteFallback", "ByteLevel"}:
        return tokenizer
    # What is left out never happens in a byte-level vocabulary: every token is written in its letters for bytes.
    content["decoder"] = _BYTE_LEVEL
    return json.dumps(content)
