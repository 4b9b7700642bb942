"""Who calls, and what they may do: tenants with API keys, from a YAML file that is read again when it changes.

tenants:
  search: {keys: [sha256:HEX], models: [sentiment, chat], requests_per_second: 50}

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
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tuneserve import settings, yamls
from tuneserve.errors import UserError
from tuneserve.server.call.errors import Unauthenticated
from tuneserve.server.call.quota import Quota
from tuneserve.server.files import stamp
from tuneserve.settings import Listed, Named, Refused, Settings, Texts, matching

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SAN = re.compile(r"[^\s*]{1,2048}")
_HASH = re.compile(r"[Ss][Hh][Aa]256:[0-9A-Fa-f]{64}")
_MAKE = "tuneserve key makes a key and its hash"
_NO_HASHES = "expected a list of sha256:HEX", _MAKE


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

    def _take(self, entries: "Mapping[str, TenantConfig]") -> None:
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


def _tenant_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name in _RESERVED:
        # Not quoted: a key may stand in a name's place.
        raise Refused(
            "a name is 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit, and none of "
            + ", ".join(_RESERVED)
        )
    return name


def _model_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise Refused(f"{name!r} is not the name of a model or an alias")
    return name


def _certificate(name: str) -> str:
    if not _SAN.fullmatch(name):
        raise Refused(
            f"{name!r} is not the name of a certificate",
            "allowed: a DNS name, a URI or an email address, as the certificate has it; no wildcards",
        )
    return name


# Before pydantic looks at them, so that a key that stands in place of its hash is in no error.
def _hash_list(hashes: object) -> object:
    if not isinstance(hashes, list):
        raise Refused(*_NO_HASHES)
    return tuple(hashes)


def _hash(key: object) -> str:
    if not isinstance(key, str) or not _HASH.fullmatch(key):
        raise Refused("expected sha256: and 64 hex digits", _MAKE)
    if key.lower() == hashed(""):
        raise Refused("this is the hash of an empty key", _MAKE)
    return key.lower()


_TenantName = Annotated[str, AfterValidator(_tenant_name), matching(_NAME)]
_ModelName = Annotated[str, AfterValidator(_model_name), matching(_NAME)]
_Certificate = Annotated[str, AfterValidator(_certificate), matching(_SAN)]
_Hash = Annotated[str, BeforeValidator(_hash), matching(_HASH)]


class TenantConfig(Settings):
    """One tenant: how it is known, and what it may do."""

    keys: Annotated[tuple[_Hash, ...], BeforeValidator(_hash_list)] = Field(
        default=(),
        description="hashes of its API keys, as `tuneserve key` prints them; several, so that a new key can replace an "
        "old one; may be left out beside `certificates`",
    )
    certificates: Annotated[tuple[_Certificate, ...], Listed] = Field(
        default=(),
        description="names of clients' certificates (SAN: DNS, URI, email), with the server's `tls.client_ca`",
    )
    role: Literal["user", "admin"] = Field(default="user", description="an admin may also change the server's models")
    priority: int = Field(
        default=0, ge=1 - 2**31, le=2**31 - 1, description="lower goes first; a call can't ask for better"
    )
    models: Annotated[tuple[_ModelName, ...], Listed] | None = Field(
        default=None, description="models or aliases that it may use, all versions of them; null: every model"
    )
    adapters: Texts | None = Field(
        default=None, description="LoRA adapters that it may use; null: those that no other tenant lists"
    )
    requests_per_second: float | None = Field(
        default=None, gt=0, le=10**9, description="quota, with bursts of one second's worth; null: unlimited"
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="quota of prompts and completions; what is over is made up for; null: unlimited",
    )

    @model_validator(mode="after")
    def _is_known_by_something(self) -> "TenantConfig":
        if not self.model_fields_set & {"keys", "certificates"}:
            raise Refused(*_NO_HASHES, key="keys")
        return self


class TenantsFile(Settings):
    """Who may call, and what: the file that the server's setting `tenants` names."""

    tenants: Annotated[Mapping[_TenantName, TenantConfig], Named] = Field(description="by their names")

    @model_validator(mode="after")
    def _share_nothing(self) -> "TenantsFile":
        owners: dict[str, str] = {}
        for name, tenant in self.tenants.items():
            for key in tenant.keys:
                if (owner := owners.setdefault(key, name)) != name:
                    raise Refused(f"one of them is a key of {owner}, too", key=f"tenants.{name}.keys")
            for certificate in tenant.certificates:
                if (owner := owners.setdefault(certificate, name)) != name:
                    raise Refused(f"{certificate} is one of {owner}'s, too", key=f"tenants.{name}.certificates")
        return self


def _read(path: Path, where: str) -> Mapping[str, TenantConfig]:
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
    return settings.build(TenantsFile, document, where).tenants


def _without_quotes(text: str | None) -> str:
    """What a YAML error says, without the parts that it quotes."""
    return re.sub(r"'.*'|\".*\"", "…", text or "")
