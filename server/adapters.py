"""LoRA adapters on disk: checked, and copied to a place of the server's own that is named by their content.

vLLM knows an adapter by its name and path, in its prefix cache too, and may read it again at any time. A directory
that somebody changes under it would give answers from a mixture; a copy named by its hash can't change.
"""

import asyncio
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tuneserve import checkpoint
from tuneserve.errors import CheckpointError

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"


@dataclass
class Adapter:
    """An adapter that a model can answer with."""

    name: str  # the callers' name
    version: str  # 12 hex digits, equal for equal content
    directory: Path
    unused: asyncio.Event = field(default_factory=asyncio.Event)
    _calls: int = 0

    def __post_init__(self) -> None:
        self.unused.set()

    @property
    def id(self) -> str:
        """The engine's name for it, never used for other content."""
        return f"adapter-{self.version}"

    @contextmanager
    def in_use(self) -> Iterator[str]:
        """Keeps the adapter loaded while the block runs; gives the engine's name for it."""
        self._calls += 1
        self.unused.clear()
        try:
            yield self.id
        finally:
            self._calls -= 1
            if not self._calls:
                self.unused.set()


def take(name: str, directory: Path, store: Path, max_rank: int) -> Adapter:
    """Copies an adapter into `store`. Raises CheckpointError for what is no adapter, or not one that can be served."""
    for file in (_CONFIG, _WEIGHTS):
        if not (directory / file).is_file() or (directory / file).is_symlink():
            raise CheckpointError(f"{directory.name}: no {file} here", "give the directory of a PEFT LoRA adapter")
    try:
        settings = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
        kind, rank = settings["peft_type"], int(settings["r"])
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{directory.name}/{_CONFIG}: not the settings of a PEFT LoRA adapter") from None
    if kind != "LORA":
        raise CheckpointError(f"{directory.name}/{_CONFIG}: peft_type is {kind!r}", "only LORA is served; merge it")
    if rank > max_rank:
        raise CheckpointError(
            f"{directory.name}/{_CONFIG}: rank {rank} is over the model's max_adapter_rank of {max_rank}"
        )
    digest = hashlib.sha256()
    for file in (_CONFIG, _WEIGHTS):
        digest.update(checkpoint.sha256_file(directory / file).encode())
    version = digest.hexdigest()[:12]
    target = store / version
    if not target.is_dir():
        temporary = store / f"{version}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for file in (_CONFIG, _WEIGHTS):
            shutil.copyfile(directory / file, temporary / file)
        temporary.replace(target)
    return Adapter(name, version, target)
