"""What a tenants file may say, what is refused in it, and that no key of it is in an error."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tuneserve.errors import UserError
from tuneserve.server.call.tenants import hashed
from tuneserve.server.call.tenants_file import TenantConfig, read


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "tenants.yaml"


@pytest.fixture
def load(path) -> Callable[[str], Mapping[str, TenantConfig]]:
    """Writes the file and reads it."""

    def run(text: str) -> Mapping[str, TenantConfig]:
        path.write_text(text)
        return read(path, str(path))

    return run


def entry(name: str, *keys: str) -> str:
    return f"  {name}: {{keys: [{', '.join(map(hashed, keys))}]}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping"),
        ("tenants:", "tenants: expected a mapping"),
        ("tenants: {a: 5}", "tenants.a: expected a mapping"),
        ("tenants: [", ", line 1: "),
        ("tenant: {}", "unknown key 'tenant'"),
        ("tenants: {}\nx: 1", "unknown key 'x'"),
        ("tenants: {'a b': {keys: []}}", "tenants: a name is 1 to 63 letters"),
        ("tenants: {anonymous: {keys: []}}", "none of anonymous, administrator, shadow"),
        ("tenants: {administrator: {keys: []}}", "none of anonymous, administrator, shadow"),
        ("tenants: {a: {}}", "tenants.a.keys: expected a list"),
        ("tenants: {a: {keys: []}, a: {keys: []}}", ", line 1: … is a duplicate key"),
        ("tenants:\n  a: {keys: [], role: user,\n    role: admin}", ", line 3: … is a duplicate key"),
        ("tenants: {a: {keys: [], rol: user}}", "tenants.a: unknown key 'rol'"),
        ("tenants: {a: {keys: [], role: root}}", "tenants.a.role: 'root' is not allowed"),
        ("tenants: {a: {keys: [], priority: high}}", "tenants.a.priority: expected a whole number"),
        ("tenants: {a: {keys: [], priority: 2147483648}}", "tenants.a.priority: 2147483648 is not allowed"),
        ("tenants: {a: {keys: [], priority: 2025-13-45}}", "not YAML text"),
        ("tenants: {a: {keys: [], models: chat}}", "tenants.a.models: expected a list"),
        ("tenants: {a: {keys: [], models: [chat@1]}}", r"tenants.a.models\[0\]: 'chat@1' is not the name"),
        ("tenants: {a: {keys: [], requests_per_second: 0}}", "tenants.a.requests_per_second: 0 is not allowed"),
        ("tenants: {a: {keys: [], requests_per_second: .inf}}", "tenants.a.requests_per_second: inf is not allowed"),
        ("tenants: {a: {keys: [], requests_per_second: .nan}}", "tenants.a.requests_per_second: nan is not allowed"),
        ("tenants: {a: {keys: [], requests_per_second: fast}}", "requests_per_second: expected a number"),
        ("tenants: {a: {keys: [], tokens_per_minute: 1000000001}}", "tokens_per_minute: 1000000001 is not allowed"),
        ("tenants: {a: {keys: [], tokens_per_minute: -1}}", "tenants.a.tokens_per_minute: -1 is not allowed"),
        ("tenants: {a: {keys: [], tokens_per_minute: 1.5}}", "tokens_per_minute: expected a whole number"),
        (f"tenants: {{a: {{keys: [{hashed('')}]}}}}", r"tenants.a.keys\[0\]: this is the hash of an empty key"),
        (f"tenants: {{a: {{keys: [{hashed('x')} expires 2026-02-30]}}}}", r"keys\[0\]: its expiry is not a date"),
        (f"tenants: {{a: {{keys: [{hashed('x')} expires soon]}}}}", r"keys\[0\]: expected sha256: and 64 hex digits"),
    ],
)
def test_bad_files_name_the_key(load, path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load(text)
    assert str(caught.value).startswith(str(path))


def test_a_key_of_two_tenants(load):
    with pytest.raises(UserError, match=r"tenants.b.keys: one of them is a key of a, too"):
        load("tenants:\n" + entry("a", "x", "y") + entry("b", "z", "y"))
    with pytest.raises(UserError, match=r"tenants.b.keys: one of them is a key of a, too"):
        load(f"tenants: {{a: {{keys: [{hashed('x')}]}}, b: {{keys: [{hashed('x')} expires 2026-01-31]}}}}")


@pytest.mark.parametrize(
    "text",
    [
        "tenants: {a: {keys: tsk_SECRET}}",
        "tenants: {a: {keys: [tsk_SECRET]}}",
        "tenants: {a: {keys: {tsk_SECRET: 1}}}",
        "tenants: {a: {keys: [[tsk_SECRET]]}}",
        "tenants: {a: {keys: ['sha256:tsk_SECRET']}}",
        "tenants: {a: {keys: [tsk_SECRET], unknown: 1}}",
        "tenants: {a: tsk_SECRET}",
        "tenants: {a: {keys: [*tsk_SECRET]}}",
        "tenants: {a: {keys: [!tsk_SECRET x]}}",
        "tenants: {a: {keys: ['tsk_SECRET]}}",
        "tenants: {a: {keys: [tsk_SECRET}}",
        "tenants: {a: {keys:\n tsk_SECRET: [}}",
        "tenants: {a: {keys: ['tsk_SECRET \x07']}}",
        "%tsk_SECRET\ntenants: {}",
        "tenants: {a: {keys: [&tsk_SECRET x, &tsk_SECRET y]}}",
    ],
)
def test_a_key_in_place_of_its_hash_is_in_no_error(load, text):
    with pytest.raises(UserError) as caught:
        load(text)
    assert "SECRET" not in str(caught.value) + caught.value.hint


def test_bytes_that_are_no_text(path):
    path.write_bytes(b"tenants: \xff\xfe")
    with pytest.raises(UserError, match="not YAML text"):
        read(path, str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {certificates: [x.org]}, b: {certificates: [x.org]}", "tenants.b.certificates: x.org also belongs to a"),
        ("a: {certificates: ['*.x.org']}", r"tenants.a.certificates\[0\]: '\*.x.org' is not the name of a certificate"),
        ("a: {certificates: ['']}", "is not the name of a certificate"),
        ("a: {certificates: x.org}", "expected a list"),
        ("a: {role: user}", "tenants.a.keys: expected a list"),
    ],
)
def test_bad_names_of_certificates(load, text, message):
    with pytest.raises(UserError, match=message):
        load(f"tenants: {{{text}}}")


def test_what_is_left_out_is_the_least_role_and_no_limit(load):
    [(name, tenant)] = load("tenants:\n" + entry("a", "k")).items()
    assert (name, tenant.keys, tenant.certificates) == ("a", (hashed("k"),), ())
    assert (tenant.role, tenant.priority) == ("user", 0)
    assert (tenant.models, tenant.adapters) == (None, None)
    assert (tenant.requests_per_second, tenant.tokens_per_minute) == (None, None)


def test_a_hash_may_be_in_large_letters(load):
    tenants = load(f"tenants: {{a: {{keys: [{hashed('k').upper()}]}}}}")
    assert tenants["a"].keys == (hashed("k"),)


def test_a_file_that_is_absent_is_named(path):
    with pytest.raises(UserError, match=r"^tenants: can't be read: No such file or directory$"):
        read(path, "tenants")
