"""LoRA adapters: checked, copied to a place of the server's own that is named by their content, and named by callers.

vLLM knows an adapter by its name and path, in its prefix cache too, and may read it again at any time. A directory
that somebody changes under it would give answers from a mixture; a copy named by its hash can't change.
"""

import asyncio
import hashlib
import json
import shutil
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tuneserve import disk
from tuneserve.errors import CheckpointError
from tuneserve.server.engine.interface import Engine, EngineFailed

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_CHUNK = 1 << 20


class Store:
    """The server's copies, one a content, each for as long as somebody holds it. Its methods may run in any thread."""

    def __init__(self) -> None:
        self._directory: Path | None = None  # made for the first one
        self._holders: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, directory: Path, max_rank: int) -> "Copy":
        """Copies an adapter. Raises CheckpointError for what is no adapter, or not one that can be served, and
        StepFailed when the disk is full.
        """
        for file in (_CONFIG, _WEIGHTS):
            if not (directory / file).is_file() or (directory / file).is_symlink():
                raise CheckpointError(f"{directory.name}: no {file} here", "give the directory of a PEFT LoRA adapter")
        with disk.watched(Path(tempfile.gettempdir()), "free some, or let TMPDIR name a folder on another disk"):
            root = self._root()
            new = Path(tempfile.mkdtemp(dir=root))
            try:
                # The source is read once: it may be changed meanwhile.
                digest = hashlib.sha256(_copy(directory / _CONFIG, new / _CONFIG).encode())
                _check((new / _CONFIG).read_bytes(), directory.name, max_rank)
                digest.update(_copy(directory / _WEIGHTS, new / _WEIGHTS).encode())
                version = digest.hexdigest()[:12]
                with self._lock:
                    if not self._holders[version]:
                        new.rename(root / version)
                    self._holders[version] += 1
                return Copy(version, root / version, self)
            finally:
                shutil.rmtree(new, ignore_errors=True)

    def release(self, copy: "Copy") -> None:
        """Deletes a copy that nobody else holds."""
        with self._lock:
            self._holders[copy.version] -= 1
            if not self._holders[copy.version]:
                shutil.rmtree(copy.directory, ignore_errors=True)

    def close(self) -> None:
        """Deletes all of them."""
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _root(self) -> Path:
        with self._lock:
            if self._directory is None:
                self._directory = Path(tempfile.mkdtemp(prefix="tuneserve-adapters-"))
                # Also of a server that ends before it has started.
                weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
            return self._directory


@dataclass(frozen=True)
class Copy:
    """An adapter's content in the store; whoever took it releases it."""

    version: str  # 12 hex digits, equal for equal content
    directory: Path
    store: Store

    async def release(self) -> None:
        """See Store.release. Not cut short by a cancelled caller."""
        await asyncio.shield(asyncio.to_thread(self.store.release, self))


@dataclass(eq=False)
class Adapter:
    """An adapter that a model can answer with: one object a content, whatever its names and however often loaded."""

    copy: Copy
    unused: asyncio.Event = field(default_factory=asyncio.Event)
    _calls: int = 0

    def __post_init__(self) -> None:
        self.unused.set()

    @property
    def version(self) -> str:
        """12 hex digits, equal for equal content."""
        return self.copy.version

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


class Adapters:
    """The adapters of one model, by the callers' names. Its engine has those, and the ones that calls still use."""

    def __init__(self) -> None:
        self._names: dict[str, Adapter] = {}
        self._loaded: dict[str, Adapter] = {}  # by version
        self._engine: Engine | None = None
        self._one_at_a_time = asyncio.Lock()
        self._forgetting: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._names)

    @property
    def names(self) -> dict[str, Adapter]:
        """By name, sorted."""
        return dict(sorted(self._names.items()))

    def prepare(self, name: str, copy: Copy) -> None:
        """Names an adapter that `start` is to load."""
        self._names[name] = self._loaded.setdefault(copy.version, Adapter(copy))
        if self._names[name].copy is not copy:
            copy.store.release(copy)

    async def start(self, engine: Engine) -> None:
        """Loads them into a new engine."""
        async with self._one_at_a_time:
            for adapter in self._loaded.values():
                await engine.load_adapter(adapter.id, adapter.copy.directory)
            self._engine = engine

    async def add(self, name: str, copy: Copy) -> None:
        """Loads an adapter; other content of that name is replaced for later calls. The copy is ours from now on."""
        assert self._engine is not None
        adapter = None
        try:
            async with self._one_at_a_time:
                adapter = self._loaded.get(copy.version)
                if adapter is None:
                    await self._engine.load_adapter(f"adapter-{copy.version}", copy.directory)
                    adapter = self._loaded[copy.version] = Adapter(copy)
                replaced, self._names[name] = self._names.get(name), adapter
        finally:
            # Also where its caller gave up while it waited for others that are loaded.
            if adapter is None or adapter.copy is not copy:
                await copy.release()
        if replaced is not None and replaced is not adapter:
            await self._forget(replaced)

    async def remove(self, name: str) -> None:
        """Takes an adapter's name away, and the adapter once no call uses it."""
        await self._forget(self._names.pop(name))

    async def close(self) -> None:
        """Gives up every copy. The engine is gone already."""
        for task in self._forgetting:
            task.cancel()
        loaded, self._loaded, self._names = list(self._loaded.values()), {}, {}
        for adapter in loaded:
            await adapter.copy.release()

    async def _forget(self, adapter: Adapter) -> None:
        """Takes out what no name and no call has any longer; also when nobody waits for that any longer."""
        task = asyncio.create_task(self._take_out(adapter))
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)
        await asyncio.shield(task)

    async def _take_out(self, adapter: Adapter) -> None:
        await adapter.unused.wait()
        async with self._one_at_a_time:
            # Named again meanwhile, or taken out by somebody else.
            if adapter in self._names.values() or self._loaded.get(adapter.version) is not adapter:
                return
            del self._loaded[adapter.version]
            try:
                with suppress(EngineFailed):  # nor has a dead one it
                    if self._engine is not None:
                        await self._engine.unload_adapter(adapter.id)
            finally:
                await adapter.copy.release()


def _copy(source: Path, target: Path) -> str:
    """Copies a file; returns the SHA-256 of what was copied, in hex."""
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as written:
        while chunk := read.read(_CHUNK):
            digest.update(chunk)
            written.write(chunk)
    return digest.hexdigest()


def _check(content: bytes, name: str, max_rank: int) -> None:
    """Raises CheckpointError for settings of what can't be served."""
    try:
        settings = json.loads(content)
        kind, rank = settings["peft_type"], int(settings["r"])
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{name}/{_CONFIG}: not the settings of a PEFT LoRA adapter") from None
    if kind != "LORA":
        raise CheckpointError(f"{name}/{_CONFIG}: peft_type is {kind!r}", "only LORA is served; merge it")
    if rank > max_rank:
        raise CheckpointError(f"{name}/{_CONFIG}: rank {rank} is over the model's max_adapter_rank of {max_rank}")
