"""Tenants: who a key belongs to, what they may do, and what a new file changes. No server."""

import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tuneserve.server import ledger
from tuneserve.server.call.errors import Overloaded, Unauthenticated
from tuneserve.server.call.tenants import ADMINISTRATOR, ANYBODY, Tenants, hashed, new_key
from tuneserve.server.ledger import Ledger

SECOND = 1_000_000_000


class Clock:
    """A clock that the test sets, in nanoseconds."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", "x-request-id": "1"}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "tenants.yaml"


@pytest.fixture
def load(path):
    """Writes the file and reads it."""

    def run(text: str) -> Tenants:
        path.write_text(text)
        return Tenants(path)

    return run


def entry(name: str, *keys: str, more: str = "") -> str:
    return f"  {name}: {{keys: [{', '.join(map(hashed, keys))}]{more}}}\n"


def test_a_whole_tenant(load):
    tenants = load(
        "tenants:\n"
        "  search:\n"
        f"    keys: [{hashed('one')}, {hashed('two').upper().replace('SHA', 'sha')}]\n"
        "    role: admin\n    priority: 3\n    models: [sentiment, chat]\n"
        "    requests_per_second: 50\n    tokens_per_minute: 100000\n"
    )
    tenant = tenants.authenticate(bearer("one"))
    assert (tenant.name, tenant.role, tenant.priority) == ("search", "admin", 3)
    assert tenants.authenticate(bearer("two")) == tenant


def test_what_is_left_out_is_the_least_role_and_every_model(load):
    tenant = load("tenants:\n" + entry("a", "k")).authenticate(bearer("k"))
    assert (tenant.role, tenant.priority) == ("user", 0)
    assert tenant.may_use("anything")


@pytest.mark.parametrize(
    "metadata",
    [
        {"authorization": "Bearer secret"},
        {"authorization": "bearer  secret "},
        {"x-api-key": "secret"},
        {"authorization": "Basic somebody-else", "x-api-key": "secret"},
    ],
)
def test_a_good_key(load, metadata):
    assert load("tenants:\n" + entry("a", "secret")).authenticate(metadata).name == "a"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "an API key is needed"),
        ({"authorization": ""}, "an API key is needed"),
        ({"authorization": "Bearer "}, "an API key is needed"),
        ({"authorization": "secret"}, "an API key is needed"),
        ({"authorization": "Basic secret"}, "an API key is needed"),
        ({"authorization": "Bearer Secret"}, "not known"),
        ({"authorization": "Bearer secret2"}, "not known"),
        ({"authorization": "Bearer ä€🙂"}, "not known"),
        ({"x-api-key": "other", "authorization": "Bearer secret"}, "not known"),
    ],
)
def test_strangers_learn_nothing(load, metadata, message):
    with pytest.raises(Unauthenticated, match=message) as caught:
        load("tenants:\n" + entry("a", "secret")).authenticate(metadata)
    sent = {word for value in metadata.values() for word in value.split()} - {"Bearer"}
    assert not [word for word in sent if word in str(caught.value)]


def test_the_hash_in_the_file_is_no_key(load):
    tenants = load("tenants:\n" + entry("a", "secret"))
    for stolen in (hashed("secret"), hashed("secret").removeprefix("sha256:")):
        with pytest.raises(Unauthenticated):
            tenants.authenticate(bearer(stolen))


def test_new_keys_are_long_and_differ():
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    # Metadata takes no other characters, and a shell and YAML take these unquoted.
    assert all(len(key) > 40 and key.isascii() and key.replace("-", "").replace("_", "").isalnum() for key in keys)


def test_models_by_name_alias_and_version(load):
    tenant = load("tenants:\n" + entry("a", "k", more=", models: [sentiment, prod]")).authenticate(bearer("k"))
    assert all(map(tenant.may_use, ("sentiment", "prod", "sentiment@0123456789ab")))
    assert not any(map(tenant.may_use, ("chat", "", "Sentiment", "sentimen", "chat@sentiment", "@sentiment")))
    nothing = load("tenants:\n" + entry("a", "k", more=", models: []")).authenticate(bearer("k"))
    assert not nothing.may_use("sentiment")


def test_adapters_are_those_listed_or_those_that_nobody_else_lists(load):
    tenants = load(
        "tenants:\n"
        + entry("a", "a", more=", adapters: [legal, both]")
        + entry("b", "b", more=", adapters: [both], role: admin")
        + entry("c", "c", more=", adapters: []")
        + entry("d", "d")
        + entry("e", "e", more=", role: admin")
    )
    names = "legal", "both", "free"
    known = {key: [*filter(tenants.authenticate(bearer(key)).may_use_adapter, names)] for key in "abcde"}
    assert known == {"a": ["legal", "both"], "b": ["both"], "c": [], "d": ["free"], "e": [*names]}
    assert all(map(ADMINISTRATOR.may_use_adapter, names))
    assert all(map(ANYBODY.may_use_adapter, names))


def test_without_a_file_everybody_may_use_everything_but_not_administer():
    assert ANYBODY.may_use("x")
    assert (ANYBODY.role, ADMINISTRATOR.role) == ("user", "admin")


def test_quotas_are_each_tenant_s_own(path):
    path.write_text(
        "tenants:\n"
        + entry("slow", "s", more=", requests_per_second: 1")
        + entry("small", "t", more=", tokens_per_minute: 60")
        + entry("free", "f")
    )
    clock = Clock()
    tenants = Tenants(path, clock)
    slow, small, free = (tenants.authenticate(bearer(key)) for key in "stf")
    tenants.admit(slow)
    with pytest.raises(Overloaded) as caught:
        tenants.admit(slow)
    assert (caught.value.reason, caught.value.retry_ms) == ("REQUEST_QUOTA", 1000)
    tenants.admit(small)
    tenants.charge(small, 61)
    with pytest.raises(Overloaded) as caught:
        tenants.admit(small)
    assert (caught.value.reason, caught.value.retry_ms) == ("TOKEN_QUOTA", 2000)
    for tenant in (free, ANYBODY, ADMINISTRATOR):
        tenants.charge(tenant, 10**9)
        tenants.admit(tenant)
    clock.now = 2 * SECOND
    tenants.admit(slow)
    tenants.admit(small)


def rewrite(path: Path, text: str) -> None:
    """Replaces a file as careful programs do: a new one, renamed over it."""
    new = path.with_name("new")
    new.write_text(text)
    new.replace(path)


def test_a_key_expires(load, monkeypatch):
    tenants = load(
        "tenants:\n  a:\n    keys:\n"
        f"    - {hashed('old')} expires 2026-01-31\n    - {hashed('new').upper().replace('SHA', 'sha')} expires "
        f"2026-02-01T12:00:00Z\n    - {hashed('kept')}\n"
    )
    january, noon = (datetime(*date, tzinfo=UTC).timestamp() for date in ((2026, 1, 31), (2026, 2, 1, 12)))

    def at(now: float, valid: list[str], expired: list[str], next_one: float) -> None:
        monkeypatch.setattr(time, "time", lambda: now)
        for key in valid:
            assert tenants.authenticate(bearer(key)).name == "a"
        for key in expired:
            with pytest.raises(Unauthenticated, match="the API key has expired"):
                tenants.authenticate(bearer(key))
        assert tenants.next_expiry() == next_one

    at(january - 1, ["old", "new", "kept"], [], january)
    at(january, ["new", "kept"], ["old"], noon)
    at(noon, ["kept"], ["old", "new"], 0)


def test_a_new_file_is_in_force_and_read_once(path, load, caplog):
    caplog.set_level(logging.INFO)
    tenants = load("tenants:\n" + entry("a", "old"))
    assert not tenants.reload_if_changed()
    rewrite(path, "tenants:\n" + entry("a", "new") + entry("b", "other"))
    assert tenants.authenticate(bearer("old")).name == "a", "not before it is read"
    assert tenants.reload_if_changed()
    assert not tenants.reload_if_changed()
    assert tenants.authenticate(bearer("new")).name == "a"
    assert tenants.authenticate(bearer("other")).name == "b"
    with pytest.raises(Unauthenticated):
        tenants.authenticate(bearer("old"))
    assert [record.message for record in caplog.records] == ["tenants reloaded: 2"]


def test_everybody_can_be_shut_out(path, load):
    tenants = load("tenants:\n" + entry("a", "k"))
    rewrite(path, "tenants: {}\n")
    assert tenants.reload_if_changed()
    with pytest.raises(Unauthenticated):
        tenants.authenticate(bearer("k"))


def test_an_edit_in_place_of_the_same_length(path, load):
    tenants = load("tenants:\n" + entry("a", "old"))
    before = path.stat()
    path.write_text("tenants:\n" + entry("a", "new"))
    # As a later edit has it; a test is quicker than the clock of some file systems.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert tenants.reload_if_changed()
    assert tenants.authenticate(bearer("new")).name == "a"


def test_kubernetes_swaps_a_link_to_a_directory(tmp_path):
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "tenants.yaml").write_text("tenants:\n" + entry("a", version))
        os.utime(tmp_path / version / "tenants.yaml", ns=(0, 0))
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "tenants.yaml").symlink_to("..data/tenants.yaml")
    tenants = Tenants(tmp_path / "tenants.yaml")
    (tmp_path / "..data_tmp").symlink_to("two")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    assert tenants.reload_if_changed(), "same size and time, another file"
    assert tenants.authenticate(bearer("two")).name == "a"


@pytest.mark.parametrize("bad", ["tenants: {a: {keys: [tsk_SECRET]}}", "", "tenants: [", None])
def test_a_bad_file_keeps_the_old_tenants_and_is_logged_once(path, load, caplog, bad):
    tenants = load("tenants:\n" + entry("a", "k"))
    path.unlink() if bad is None else rewrite(path, bad)
    assert not any([tenants.reload_if_changed() for _ in range(3)])
    assert tenants.authenticate(bearer("k")).name == "a"
    assert not tenants.is_current
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.message.startswith("tenants not reloaded, the old ones stay: tenants.yaml")
    assert "SECRET" not in caplog.text
    assert str(path.parent) not in caplog.text, "a log has no paths of the server"
    rewrite(path, "tenants:\n" + entry("a", "mended"))
    assert tenants.reload_if_changed()
    assert tenants.is_current
    assert tenants.authenticate(bearer("mended")).name == "a"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("pipe", "not a regular file"),
        ("device", "not a regular file"),
        ("directory", "Is a directory"),
        ("large", "larger than the 4194304 bytes that are allowed"),
    ],
)
def test_what_can_not_be_read_to_its_end_holds_nothing_up(path, load, caplog, kind, reason):
    tenants = load("tenants:\n" + entry("a", "k"))
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_text("#" * (5 << 20))
    assert not tenants.reload_if_changed()
    assert tenants.authenticate(bearer("k")).name == "a"
    assert caplog.messages == [f"tenants not reloaded, the old ones stay: tenants.yaml: can't be read: {reason}"]
    path.rmdir() if kind == "directory" else path.unlink()
    path.write_text("tenants:\n" + entry("a", "mended"))
    assert tenants.reload_if_changed()


def test_a_file_that_the_reader_itself_fails_on(path, load, caplog):
    tenants = load("tenants:\n" + entry("a", "k"))
    rewrite(path, "[" * 5000)
    assert not tenants.reload_if_changed()
    assert tenants.authenticate(bearer("k")).name == "a"
    assert caplog.messages == ["tenants not reloaded, the old ones stay: tenants.yaml: not YAML text"]


def test_a_reload_gives_no_new_quota(path):
    text = "tenants:\n" + entry("a", "k", more=", requests_per_second: 1, tokens_per_minute: 60")
    path.write_text(text)
    clock = Clock()
    tenants = Tenants(path, clock)
    tenant = tenants.authenticate(bearer("k"))
    tenants.admit(tenant)
    tenants.charge(tenant, 90)
    rewrite(path, text + entry("b", "other"))
    assert tenants.reload_if_changed()
    with pytest.raises(Overloaded) as caught:
        tenants.admit(tenants.authenticate(bearer("k")))
    assert caught.value.retry_ms == 31_000
    # A call that began before the reload is charged to the same account.
    tenants.charge(tenant, 10)
    with pytest.raises(Overloaded) as caught:
        tenants.admit(tenant)
    assert caught.value.retry_ms == 41_000


def test_a_limit_taken_away_is_gone(path):
    path.write_text("tenants:\n" + entry("a", "k", more=", tokens_per_minute: 60"))
    tenants = Tenants(path, Clock())
    tenant = tenants.authenticate(bearer("k"))
    tenants.charge(tenant, 600)
    rewrite(path, "tenants:\n" + entry("a", "k"))
    tenants.reload_if_changed()
    tenants.admit(tenant)


def test_a_certificate_names_a_tenant(load):
    tenants = load(
        "tenants:\n"
        "  web: {certificates: [web.example.org, 'spiffe://example.org/web']}\n"
        f"  both: {{keys: [{hashed('k')}], certificates: [both.example.org]}}\n" + entry("key", "one")
    )
    assert tenants.by_certificate
    assert tenants.authenticate({}, ["other", "web.example.org"]).name == "web"
    assert tenants.authenticate({}, ["web.example.org", "spiffe://example.org/web"]).name == "web"
    assert tenants.authenticate({}, ["both.example.org"]).name == tenants.authenticate(bearer("k")).name == "both"
    assert tenants.authenticate(bearer("one"), ["web.example.org"]).name == "key", "a key goes first"
    for metadata, names, text in [
        ({}, [], "or show a certificate that names a tenant"),
        ({}, ["example.org", "a.web.example.org", "WEB.example.org"], "an API key is needed"),
        ({}, ["web.example.org", "both.example.org"], "the certificate names several tenants"),
        (bearer("wrong"), ["web.example.org"], "not known"),
    ]:
        with pytest.raises(Unauthenticated, match=text):
            tenants.authenticate(metadata, names)


def test_the_tenants_of_several_processes_have_one_quota_each(path, tmp_path, monkeypatch, caplog):
    text = "tenants:\n" + entry("a", "k", more=", requests_per_second: 1") + entry("free", "f")
    path.write_text(text)
    clock = Clock()
    first, second = (Tenants(path, clock, Ledger(tmp_path)) for _ in range(2))
    first.admit(first.authenticate(bearer("k")))
    with pytest.raises(Overloaded):
        second.admit(second.authenticate(bearer("k")))
    for _ in range(2):
        second.admit(second.authenticate(bearer("f")))
    # One that is added by a change of the file.
    rewrite(path, text + entry("b", "other", more=", requests_per_second: 1"))
    for tenants in (second, first):
        assert tenants.reload_if_changed()
    second.admit(second.authenticate(bearer("other")))
    with pytest.raises(Overloaded):
        first.admit(first.authenticate(bearer("other")))
    monkeypatch.setattr(ledger, "_MOST", 3)
    rewrite(path, text + entry("c", "third"))
    assert not first.reload_if_changed()
    assert "the old ones stay: 4 tenants since the start" in caplog.text
