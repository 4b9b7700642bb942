"""Brings a checkpoint to this machine, from an object store, by HTTPS or from the hub: whole or not at all.

From everywhere but the hub, `tuneserve.json` comes first; it lists the other files and their SHA-256. A repository on
the hub may be without: then its content is not verified, as in any plain checkpoint.
"""

import logging
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath

from tuneserve import checkpoint
from tuneserve.errors import CheckpointError, StepFailed, UserError
from tuneserve.machine import disk
from tuneserve.v1 import checkpoint_pb2 as pb

logger = logging.getLogger(__name__)

SCHEMES = ("https", "http", "s3", "gs", "az", "file")
_HUB = re.compile(r"(?P<repo_id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
# Files at a time, and bytes of each that are in memory.
_FILES, _BYTES = 4, 16 << 20
# Of a manifest: the largest models have some hundred files.
_MOST_BYTES = 16 << 20


def fetch(source: str, target: Path, overwrite: bool = False) -> pb.Checkpoint:
    """Copies the checkpoint at `source`, a URL or ORG/NAME[@REVISION] on the hub, to the directory `target`.

    Raises UserError, CheckpointError naming the file, and StepFailed if it can't be read.
    """
    scheme, separator, _ = source.partition("://")
    hub = _HUB.fullmatch(source)
    if not hub and scheme not in (SCHEMES if separator else ()):
        raise UserError(
            f"{source}: not a source", f"allowed: {', '.join(f'{one}://…' for one in SCHEMES)}, and ORG/NAME on the hub"
        )
    with checkpoint.writing(target, overwrite) as directory:
        if hub:
            _from_hub(source, directory, **hub.groupdict())
        else:
            _from_store(source, directory, target)
        manifest = checkpoint.load(directory, source)
    logger.info("%s: fetched to %s, version %s", source, target, checkpoint.version_of(manifest))
    return manifest


def _from_store(source: str, directory: Path, target: Path) -> None:
    import obstore
    from obstore.exceptions import BaseError, NotFoundError
    from obstore.store import from_url

    def read(path: str, most: int | None = None) -> None:
        try:
            got = obstore.get(store, path)
            if most is not None and got.meta["size"] > most:
                raise CheckpointError(f"{source}/{path}: has {got.meta['size']} bytes, which is too large")
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            with (directory / path).open("wb") as file:
                for piece in got.stream(min_chunk_size=_BYTES):
                    file.write(piece)
        except (NotFoundError, FileNotFoundError):
            raise CheckpointError(f"{source}: no {path} there", "give the URL of a checkpoint's directory") from None
        except BaseError as error:
            raise _unreadable(source, error) from None

    try:
        store = from_url(source, client_options={"allow_http": True}) if source[:5] == "http:" else from_url(source)
    except BaseError as error:
        raise _unreadable(source, error) from None
    read(checkpoint.MANIFEST, _MOST_BYTES)
    files = checkpoint.read_manifest(directory).files
    for file in files:
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts:
            raise CheckpointError(f"{source}: {checkpoint.MANIFEST} has {file.path!r}, outside of the checkpoint")
    disk.check(target, sum(file.size_bytes for file in files))
    with ThreadPoolExecutor(_FILES) as threads:
        list(threads.map(read, (file.path for file in files)))


def _from_hub(source: str, directory: Path, repo_id: str, revision: str | None) -> None:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    # What would be refused is left out: repositories have the same weights in several formats.
    refused = [f"*{suffix}" for suffix in (*checkpoint.PICKLE_SUFFIXES, *checkpoint.CODE_SUFFIXES)]
    get = partial(huggingface_hub.snapshot_download, repo_id, revision=revision, local_dir=directory)
    try:
        get(ignore_patterns=refused)
    except (HfHubHTTPError, OSError) as error:
        raise _unreadable(source, error) from None
    # The library's own notes.
    shutil.rmtree(directory / ".cache", ignore_errors=True)
    for note in directory.glob(".git*"):
        note.unlink()


def _unreadable(source: str, error: Exception) -> StepFailed:
    reason = str(error).strip().splitlines()
    return StepFailed(f"{source}: can't be read: {reason[0] if reason else type(error).__name__}")
