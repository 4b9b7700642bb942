"""Who calls, and what they may do: tenants with API keys, from a YAML file that is read again when it changes.

tenants:
  search:
    keys: [sha256:HEX, ...]     # `tuneserve key` makes one; several, so that a new key can replace an old one
    certificates: [a.example]   # or names of clients' certificates (SAN: DNS, URI, email), with `tls.client_ca`
    role: user                  # or admin
    priority: 0                 # lower goes first
    models: [sentiment, chat]   # models or aliases, all versions of them; every model when left out
    adapters: [legal]           # LoRA adapters; those that no other tenant lists when left out
    requests_per_second: 50     # with bursts of one second's worth; unlimited when left out
    tokens_per_minute: 100000   # prompts and completions; what is over is made up for; unlimited when left out

Keys are stored as SHA-256 alone: they are long and random, so that a slow hash would protect nothing more. A caller's
key is hashed, and its hash is looked up: how long that takes tells about the hash of a guess and nothing about a key.
Neither a caller's key nor what stands under `keys` is ever part of an error or a log line.
"""

import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tuneserve import yamls
from tuneserve.errors import UserError
from tuneserve.server import settings
from tuneserve.server.call.errors import Unauthenticated
from tuneserve.server.call.quota import Quota
from tuneserve.server.files import stamp

logger = logging.getLogger(__name__)

ROLES = ("user", "admin")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SAN = re.compile(r"[^\s*]{1,2048}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Tenant:
    """Who holds an API key."""

    name: str
    role: str = "user"  # or "admin"
    priority: int = 0  # lower goes first; a call can't ask for better
    models: Sequence[str] | None = None  # names and aliases it may use; None for all
    adapters: Sequence[str] | None = None  # LoRA adapters it may use; None for all but `others`
    others: Collection[str] = ()  # adapters that other tenants list as theirs

    def may_use(self, model: str) -> bool:
        """Whether it may use a model's name or an alias; with NAME@VERSION, whether it may use NAME."""
        return self.models is None or model.partition("@")[0] in self.models

    def may_use_adapter(self, name: str) -> bool:
        """Whether it may use, and know of, an adapter: its own, or nobody's. Administrators load all of them."""
        if self.adapters is not None:
            return name in self.adapters
        return self.role == "admin" or name not in self.others


# Every caller, where the server has no keys; and every caller of the admin port.
ANYBODY = Tenant("anonymous")
ADMINISTRATOR = Tenant("administrator", role="admin")
# Whose copies of calls are: behind every caller's own.
SHADOW = Tenant("shadow", role="admin", priority=1 << 30)
_RESERVED = (ANYBODY.name, ADMINISTRATOR.name, SHADOW.name)


def new_key() -> str:
    """Returns a random API key."""
    return f"tsk_{secrets.token_urlsafe(32)}"


def hashed(key: str) -> str:
    """Returns a key as the tenants file has it."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


class Tenants:
    """The tenants of a file, and how much of its quota each has left."""

    def __init__(self, path: Path, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Reads the file. Raises UserError naming the file and the key. `clock` gives nanoseconds."""
        self._path = path
        self._clock = clock
        self._seen = stamp(path)
        self._by_hash: Mapping[str, Tenant] = {}
        self._by_name: Mapping[str, Tenant] = {}  # names of certificates
        self._quotas: Mapping[str, Quota] = {}
        self._take(_read(path, str(path)))

    @property
    def by_certificate(self) -> bool:
        """Whether a certificate may name a tenant."""
        return bool(self._by_name)

    def authenticate(self, metadata: Mapping[str, str], names: Sequence[str] = ()) -> Tenant:
        """Returns whose key came with a call: `authorization: Bearer KEY`, or `x-api-key: KEY`, which goes first.
        Without a key, who is named by the certificate of its connection, which has these names.

        Raises Unauthenticated.
        """
        key = metadata.get("x-api-key", "")
        if not key:
            scheme, _, key = metadata.get("authorization", "").partition(" ")
            key = key.strip() if scheme.lower() == "bearer" else ""
        if not key:
            return self._named(names)
        tenant = self._by_hash.get(hashed(key))
        if tenant is None:
            raise Unauthenticated("the API key is not known")
        return tenant

    def _named(self, names: Sequence[str]) -> Tenant:
        found = {tenant.name: tenant for name in names if (tenant := self._by_name.get(name))}
        if len(found) > 1:
            raise Unauthenticated("the certificate names several tenants: send an API key")
        for tenant in found.values():
            return tenant
        certificate = ", or show a certificate that names a tenant" if self._by_name else ""
        raise Unauthenticated(f"an API key is needed: send it as metadata, `authorization: Bearer KEY`{certificate}")

    def admit(self, tenant: Tenant) -> None:
        """Counts one call against a tenant's quotas. Raises Overloaded, and then counts nothing."""
        if quota := self._quotas.get(tenant.name):
            quota.admit(self._clock())

    def charge(self, tenant: Tenant, tokens: int) -> None:
        """Takes tokens from a tenant's quota, as the engine reads or writes them."""
        if quota := self._quotas.get(tenant.name):
            quota.charge(tokens, self._clock())

    def reload_if_changed(self) -> bool:
        """Reads the file again if it changed; returns whether other tenants are in force now.

        A file that is missing or wrong changes nothing and is logged once. Calls that run go on as they began. It may
        run in a thread beside the other methods.
        """
        seen = stamp(self._path)
        if seen == self._seen:
            return False
        # Before the file is read: what is written meanwhile is seen next time.
        self._seen = seen
        try:
            entries = _read(self._path, self._path.name)
        except Exception as error:
            # Whatever is in the file, the next one is read. Only our own errors are known to quote no key.
            reason = str(error) if isinstance(error, UserError) else type(error).__name__
            logger.error("tenants not reloaded, the old ones stay: %s", reason)
            return False
        self._take(entries)
        logger.info("tenants reloaded: %d", len(entries))
        return True

    def _take(self, entries: "Mapping[str, _Entry]") -> None:
        """Puts new tenants in force. Each attribute is set at once, so that a call never sees half of it."""
        by_hash: dict[str, Tenant] = {}
        by_name: dict[str, Tenant] = {}
        quotas: dict[str, Quota] = {}
        owned = {adapter for entry in entries.values() for adapter in entry.adapters or ()}
        for name, entry in entries.items():
            tenant = Tenant(name, entry.role, entry.priority, entry.models, entry.adapters, owned)
            by_hash.update(dict.fromkeys(entry.keys, tenant))
            by_name.update(dict.fromkeys(entry.certificates, tenant))
            limits = entry.requests_per_second, entry.tokens_per_minute
            if any(limits):
                quotas[name] = Quota(*limits, self._quotas.get(name), self._clock())
        self._quotas = quotas
        self._by_hash = by_hash
        self._by_name = by_name


@dataclass(frozen=True)
class _Entry:
    """One tenant, as the file has it."""

    keys: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    role: str = "user"
    priority: int = 0
    models: tuple[str, ...] | None = None
    adapters: tuple[str, ...] | None = None
    requests_per_second: float | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True)
class _File:
    """The whole file."""

    tenants: Mapping[str, Any]


def _read(path: Path, where: str) -> dict[str, _Entry]:
    """Returns the tenants by name. Raises UserError naming the key under `where`."""
    try:
        document = yamls.parse(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        # Not the error's own text, which quotes the file.
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: {_without_quotes(error.problem)}") from None
    except (yaml.YAMLError, ValueError):
        raise UserError(f"{where}: not YAML text") from None
    except OSError as error:
        raise UserError(f"{where}: can't be read: {error.strerror}") from None
    entries: dict[str, _Entry] = {}
    owners: dict[str, str] = {}
    named: dict[str, str] = {}
    for name, values in settings.build(_File, document, where).tenants.items():
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise UserError(
                f"{where}: tenants: a name is 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit, "
                f"and none of {', '.join(_RESERVED)}"
            )
        entry = entries[name] = _entry(values, f"{where}: tenants.{name}")
        for certificate in entry.certificates:
            if (owner := named.setdefault(certificate, name)) != name:
                raise UserError(f"{where}: tenants.{name}.certificates: {certificate} is one of {owner}'s, too")
        for key in entry.keys:
            if (owner := owners.setdefault(key, name)) != name:
                raise UserError(f"{where}: tenants.{name}.keys: one of them is a key of {owner}, too")
    return entries


def _entry(values: Any, where: str) -> _Entry:
    given = settings.mapping(values, where)
    # First of all, so that a key that stands there in place of its hash is in no error.
    _check_keys(given.get("keys", [] if "certificates" in given else None), f"{where}.keys")
    entry = settings.build(_Entry, given, where)
    for name in entry.certificates:
        if not _SAN.fullmatch(name):
            raise UserError(
                f"{where}.certificates: {name!r} is not the name of a certificate",
                "allowed: a DNS name, a URI or an email address, as the certificate has it; no wildcards",
            )
    if entry.role not in ROLES:
        raise UserError(f"{where}.role: {entry.role!r} is not allowed", f"allowed: {', '.join(ROLES)}")
    for model in entry.models or ():
        if not _NAME.fullmatch(model):
            raise UserError(f"{where}.models: {model!r} is not the name of a model or an alias")
    for key in ("requests_per_second", "tokens_per_minute"):
        value = getattr(entry, key)
        if value is not None and not 0 < value <= 1e9:
            hint = "allowed: over 0, at most a billion; leave it out for no limit"
            raise UserError(f"{where}.{key}: {value!r} is not allowed", hint)
    if abs(entry.priority) >= 2**31:
        raise UserError(f"{where}.priority: {entry.priority} is not allowed", "allowed: 32-bit numbers")
    return replace(entry, keys=tuple(key.lower() for key in entry.keys))


def _check_keys(keys: object, where: str) -> None:
    hint = "tuneserve key makes a key and its hash"
    if not isinstance(keys, list):
        raise UserError(f"{where}: expected a list of sha256:HEX", hint)
    for index, key in enumerate(keys):
        if not isinstance(key, str) or not _HASH.fullmatch(key.lower()):
            raise UserError(f"{where}[{index}]: expected sha256: and 64 hex digits", hint)
        if key.lower() == hashed(""):
            raise UserError(f"{where}[{index}]: this is the hash of an empty key", hint)


def _without_quotes(text: str | None) -> str:
    """What a YAML error says, without the parts that it quotes."""
    return re.sub(r"'.*'|\".*\"", "…", text or "")
