"""Checkpoints from elsewhere: whole and verified, or not at all.

One server of static files stands for the web, S3 and Google's storage: all three are asked for an object by GET. And
for the hub, which also lists a repository.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tuneserve import checkpoint
from tuneserve.errors import CheckpointError, StepFailed, UserError
from tuneserve.fetch import fetch

from .conftest import refused, tuneserve


class Handler(SimpleHTTPRequestHandler):
    """Static files, and what the hub says of a repository: the files below ORG/NAME/resolve/main."""

    def send_head(self) -> Any:
        self.server.asked.append((self.path, dict(self.headers)))
        if self.path.startswith("/api/models/"):
            name = "/".join(self.path.split("/")[3:5])
            root = Path(self.directory, name, "resolve", "main")
            files = {path.relative_to(root).as_posix(): path.stat().st_size for path in root.rglob("*.*")}
            tree = [{"type": "file", "path": path, "size": size, "oid": "0" * 40} for path, size in files.items()]
            siblings = [{"rfilename": path} for path in files]
            found = tree if "/tree/" in self.path else {"id": name, "sha": "main", "siblings": siblings}
            body = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            return io.BytesIO(body)
        return super().send_head()

    def end_headers(self) -> None:
        self.send_header("ETag", '"0"')
        self.send_header("X-Repo-Commit", "main")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    (tmp_path / "web").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "web")) as server:
        server.root = tmp_path / "web"
        server.asked = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def put(web: Any, make_bert: Callable[..., Path]) -> Callable[[str], Path]:
    """Puts a sealed checkpoint on the server, with a file in a folder of its own."""

    def run(path: str) -> Path:
        there = web.root / path
        there.parent.mkdir(parents=True, exist_ok=True)
        make_bert().rename(there)
        (there / "notes").mkdir()
        (there / "notes" / "of.txt").write_text("trained")
        checkpoint.seal(there, checkpoint.describe(there))
        return there

    return run


def is_clean(folder: Path) -> bool:
    """Whether there is nothing but the server's files."""
    return [path.name for path in folder.iterdir()] == ["web"]


def same(one: Path, other: Path) -> bool:
    return checkpoint.list_files(one) == checkpoint.list_files(other)


def test_by_http_and_from_a_folder(web, put, tmp_path):
    there = put("models/a")
    fetch(f"{web.url}/models/a", tmp_path / "a")
    fetch(f"file://{there}", tmp_path / "b")
    assert same(there, tmp_path / "a")
    assert same(there, tmp_path / "b")


def test_from_s3(web, put, tmp_path, monkeypatch):
    there = put("bucket/models/a")
    for key, value in {"ENDPOINT_URL": web.url, "ALLOW_HTTP": "true", "ACCESS_KEY_ID": "me"}.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    fetch("s3://bucket/models/a", tmp_path / "a")
    assert same(there, tmp_path / "a")
    assert all("Credential=me/" in headers["authorization"] for _, headers in web.asked)


def test_from_google(web, put, tmp_path, monkeypatch):
    there = put("bucket/models/a")
    account = {
        "gcs_base_url": web.url,
        "disable_oauth": True,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    (tmp_path / "web" / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "web" / "account.json"))
    fetch("gs://bucket/models/a", tmp_path / "a")
    assert same(there, tmp_path / "a")


@pytest.mark.parametrize("name", ["org/model", "org/model@main"])
def test_from_the_hub(web, put, tmp_path, name):
    """In a process of its own: the library reads its address when it is imported."""
    there = put("org/model/resolve/main")
    (there / "pytorch_model.bin").write_bytes(b"pickled")
    code = f"from tuneserve.cli import cli; cli(['fetch', {name!r}, {str(tmp_path / 'a')!r}])"
    environment = {**os.environ, "HF_ENDPOINT": web.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    run = [sys.executable, "-c", code]
    result = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    (there / "pytorch_model.bin").unlink()
    assert same(there, tmp_path / "a")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda there: (there / "notes" / "of.txt").write_text("changed"), r"of\.txt: content differs"),
        (lambda there: (there / "notes" / "of.txt").unlink(), r"no notes/of\.txt there"),
        (lambda there: (there / "tuneserve.json").unlink(), r"no tuneserve\.json there"),
        (lambda there: (there / "tuneserve.json").write_text("<html>"), "not a checkpoint manifest"),
    ],
)
def test_what_is_damaged_leaves_nothing(web, put, tmp_path, damage, message):
    damage(put("a"))
    with pytest.raises(CheckpointError, match=message):
        fetch(f"{web.url}/a", tmp_path / "a")
    assert is_clean(tmp_path)


@pytest.mark.parametrize("path", ["../evil", "/tmp/evil", "notes/../../evil"])
def test_no_file_lands_outside(web, put, tmp_path, path):
    there = put("a")
    text = (there / "tuneserve.json").read_text()
    assert "notes/of.txt" in text
    (there / "tuneserve.json").write_text(text.replace("notes/of.txt", path))
    with pytest.raises(CheckpointError, match="outside of the checkpoint"):
        fetch(f"{web.url}/a", tmp_path / "a")
    assert is_clean(tmp_path)


def test_a_disk_that_is_too_small(web, put, tmp_path):
    there = put("a")
    manifest = json.loads((there / "tuneserve.json").read_text())
    manifest["files"][0]["sizeBytes" if "sizeBytes" in manifest["files"][0] else "size_bytes"] = str(1 << 60)
    (there / "tuneserve.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="are needed"):
        fetch(f"{web.url}/a", tmp_path / "a")
    assert is_clean(tmp_path)
    assert [path for path, _ in web.asked] == ["/a/tuneserve.json"]


def test_what_can_not_be_read(web, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
    with pytest.raises(StepFailed, match="can't be read"):
        fetch("s3://bucket/a", tmp_path / "a")
    assert is_clean(tmp_path)


@pytest.mark.parametrize("source", ["model", "ftp://host/a", "./a/b", "a/b/c"])
def test_other_sources_are_refused(tmp_path, source):
    with pytest.raises(UserError, match="not a source") as caught:
        fetch(source, tmp_path / "a")
    assert "s3://" in caught.value.hint


def test_what_is_there_stays(web, put, tmp_path):
    source = f"{web.url}/a"
    put("a")
    assert tuneserve("fetch", source, tmp_path / "b").returncode == 0
    assert "already exists" in refused("fetch", source, tmp_path / "b")
    web.asked.clear()
    assert tuneserve("fetch", "--if-missing", source, tmp_path / "b").returncode == 0
    assert not web.asked
    (tmp_path / "b" / "notes" / "of.txt").write_text("changed")
    assert "content differs" in refused("fetch", "--if-missing", source, tmp_path / "b")
    assert tuneserve("fetch", "--overwrite", source, tmp_path / "b").returncode == 0
    assert (tmp_path / "b" / "notes" / "of.txt").read_text() == "trained"
