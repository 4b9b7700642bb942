"""tuneserve serve and key: what is refused before anything starts."""

import time

from ..conftest import refused, tuneserve


def test_serve_needs_models(tmp_path):
    assert "either --model" in refused("serve")
    assert "expected NAME=PATH" in refused("serve", "--model", "sentiment")
    assert "is not a directory" in refused("serve", "--model", f"a={tmp_path / 'nope'}")
    assert "error: drain_seconds: -1.0 is not allowed" in refused(
        "serve", "--model", f"a={tmp_path}", "--drain-seconds", "-1"
    )
    assert "no such file" in refused("serve", "--config", tmp_path / "nope.yaml")


def test_serve_refuses_a_pickle_before_loading(make_bert):
    directory = make_bert(labels=["a", "b"])
    (directory / "pytorch_model.bin").write_bytes(b"\x80")
    assert "pytorch_model.bin: pickled" in refused("serve", "--model", f"a={directory}")


def test_serve_refuses_a_port_in_use(make_bert):
    import socket

    directory = make_bert(labels=["a", "b"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"can't bind {address}" in refused("serve", "--model", f"a={directory}", "--listen", address)


def test_a_key_and_its_hash_for_the_tenants_file(tmp_path):
    from tuneserve.server.call.tenants import Tenants

    result = tuneserve("key")
    assert result.returncode == 0
    made = dict(line.split() for line in result.stdout.splitlines())
    path = tmp_path / "tenants.yaml"
    path.write_text(f"tenants:\n  search:\n    keys:\n      - {made['hash']}\n")
    assert Tenants(path).authenticate({"authorization": f"Bearer {made['key']}"}).name == "search"
    assert made["key"] not in result.stderr
    assert tuneserve("key").stdout != result.stdout


def test_a_key_that_expires(tmp_path):
    from tuneserve.server.call.tenants import Tenants

    made = dict(line.split(maxsplit=1) for line in tuneserve("key", "--days", "2").stdout.splitlines())
    path = tmp_path / "tenants.yaml"
    path.write_text(f"tenants:\n  search:\n    keys:\n      - {made['hash']}\n")
    tenants = Tenants(path)
    assert tenants.authenticate({"authorization": f"Bearer {made['key']}"}).name == "search"
    assert 2 * 86400 < tenants.next_expiry() - time.time() <= 3 * 86400
