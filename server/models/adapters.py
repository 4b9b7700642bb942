"""LoRA adapters: each is checked and copied to a directory of the server's own, named by the hash of its content.

vLLM identifies an adapter by its name and path, in its prefix cache too, and may read it again at any time. If somebody
changed the directory meanwhile, answers would come from a mixture of both contents; a copy named by its hash can't
change.
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

from tuneserve.checkpoint.adapters import CONFIG as _CONFIG
from tuneserve.checkpoint.adapters import VIRTUAL_TOKENS
from tuneserve.errors import CheckpointError
from tuneserve.machine import disk
from tuneserve.server import concurrency
from tuneserve.server.call.context import current
from tuneserve.server.call.errors import NotFound
from tuneserve.server.engine.interface import Engine, EngineFailed

_WEIGHTS = "adapter_model.safetensors"
# Settings of LoRA for which vLLM has no computation beside a base model.
_UNSERVED = ("use_dora", "lora_bias", "modules_to_save")
_CHUNK = 1 << 20


class Store:
    """The server's copies of adapters: one for each content, kept while anybody holds it. Thread-safe."""

    def __init__(self) -> None:
        self._directory: Path | None = None  # made for the first one
        self._holders: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, directory: Path, max_rank: int) -> "Copy":
        """Copies an adapter. Raises CheckpointError if the directory is not an adapter, or not one that can be served,
        and StepFailed if the disk is full.
        """
        for file in (_CONFIG, _WEIGHTS):
            if not (directory / file).is_file() or (directory / file).is_symlink():
                raise CheckpointError(f"{directory.name}: no {file} here", "give the directory of a PEFT LoRA adapter")
        with disk.watched(Path(tempfile.gettempdir()), "free some, or let TMPDIR name a folder on another disk"):
            root = self._root()
            new = Path(tempfile.mkdtemp(dir=root))
            try:
                # The source is read only once: it may change meanwhile.
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
        """Releases a copy; deletes it if nobody else holds it."""
        with self._lock:
            self._holders[copy.version] -= 1
            if not self._holders[copy.version]:
                shutil.rmtree(copy.directory, ignore_errors=True)

    def close(self) -> None:
        """Deletes all copies."""
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _root(self) -> Path:
        with self._lock:
            if self._directory is None:
                self._directory = Path(tempfile.mkdtemp(prefix="tuneserve-adapters-"))
                # Deletes the copies even if the server ends before it has started.
                weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
            return self._directory


@dataclass(frozen=True)
class Copy:
    """An adapter's content in the store. The code that took it must release it."""

    version: str  # 12 hex digits, equal for equal content
    directory: Path
    store: Store

    async def release(self) -> None:
        """See Store.release. Completes even if its caller is cancelled."""
        await asyncio.shield(concurrency.apart(self.store.release, self))


@dataclass(eq=False)
class Adapter:
    """An adapter that a model can use: one object for each content, however many names it has."""

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
        """The adapter's name in the engine; never reused for other content."""
        return f"adapter-{self.version}"

    @contextmanager
    def in_use(self) -> Iterator[str]:
        """Keeps the adapter loaded while the block runs; yields its name in the engine."""
        self._calls += 1
        self.unused.clear()
        try:
            yield self.id
        finally:
            self._calls -= 1
            if not self._calls:
                self.unused.set()


class Adapters:
    """The adapters of one model, by the names that callers use. The engine also keeps removed ones that calls still
    use.
    """

    def __init__(self) -> None:
        self._names: dict[str, Adapter] = {}
        self._loaded: dict[str, Adapter] = {}  # by version
        self._engine: Engine | None = None
        self._one_at_a_time = asyncio.Lock()
        self._forgetting: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def known(self) -> dict[str, Adapter]:
        """The adapters that the current caller may use, by name, sorted."""
        tenant = current().tenant
        return {name: adapter for name, adapter in sorted(self._names.items()) if tenant.may_use_adapter(name)}

    def get(self, name: str) -> Adapter:
        """Returns an adapter that the current caller may use. Raises NotFound, also for one of another tenant."""
        known = self.known()
        if name not in known:
            raise NotFound("adapter", name, list(known))
        return known[name]

    def prepare(self, name: str, copy: Copy) -> None:
        """Adds an adapter that `start` will load."""
        self._names[name] = self._loaded.setdefault(copy.version, Adapter(copy))
        if self._names[name].copy is not copy:
            copy.store.release(copy)

    async def start(self, engine: Engine) -> None:
        """Loads all adapters into a new engine."""
        async with self._one_at_a_time:
            for adapter in self._loaded.values():
                await engine.load_adapter(adapter.id, adapter.copy.directory)
            self._engine = engine

    async def add(self, name: str, copy: Copy) -> None:
        """Loads an adapter; it replaces other content of that name for later calls. Takes ownership of the copy."""
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
            # Also if the caller was cancelled while it waited for other adapters to load.
            if adapter is None or adapter.copy is not copy:
                await copy.release()
        if replaced is not None and replaced is not adapter:
            await self._forget(replaced)

    async def remove(self, name: str) -> None:
        """Removes an adapter's name at once, and unloads the adapter when no call uses it. Raises NotFound."""
        self.get(name)
        await self._forget(self._names.pop(name))

    async def close(self) -> None:
        """Releases every copy. The engine has ended before."""
        for task in self._forgetting:
            task.cancel()
        loaded, self._loaded, self._names = list(self._loaded.values()), {}, {}
        for adapter in loaded:
            await adapter.copy.release()

    async def _forget(self, adapter: Adapter) -> None:
        """Unloads an adapter once it has no name and no call uses it; goes on if its caller is cancelled."""
        task = asyncio.create_task(self._take_out(adapter))
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)
        await asyncio.shield(task)

    async def _take_out(self, adapter: Adapter) -> None:
        await adapter.unused.wait()
        async with self._one_at_a_time:
            # The adapter got a name again meanwhile, or another task has unloaded it.
            if adapter in self._names.values() or self._loaded.get(adapter.version) is not adapter:
                return
            del self._loaded[adapter.version]
            try:
                with suppress(EngineFailed):  # a dead engine has no adapter to unload
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
    """Raises CheckpointError for an adapter_config.json of an adapter that can't be served."""
    try:
        settings = json.loads(content)
        kind = settings["peft_type"]
        rank = int(settings["r"]) if kind == "LORA" else 0
        also = [key for key in _UNSERVED if settings.get(key)]
        if not isinstance(kind, str):
            raise TypeError
    except (AttributeError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{name}/{_CONFIG}: not the settings of a PEFT LoRA adapter") from None
    if kind != "LORA":
        what = "has no weights to merge: train LoRA" if kind in VIRTUAL_TOKENS else "merge it"
        raise CheckpointError(f"{name}/{_CONFIG}: peft_type is {kind!r}", f"only LORA is served; {what}")
    if also:
        raise CheckpointError(f"{name}/{_CONFIG}: {also[0]} is set, which vLLM does not serve", "merge the adapter")
    if rank > max_rank:
        raise CheckpointError(f"{name}/{_CONFIG}: rank {rank} is over the model's max_adapter_rank of {max_rank}")
