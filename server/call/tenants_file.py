"""The settings of a tenants file. Entries under `keys` never appear in an error, whatever they are."""

import hashlib
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tuneserve import settings, yamls
from tuneserve.errors import UserError
from tuneserve.machine import regular
from tuneserve.settings import Listed, Named, Refused, Settings, Texts, matching

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SAN = re.compile(r"[^\s*]{1,2048}")
_KEY = re.compile(r"([Ss][Hh][Aa]256:[0-9A-Fa-f]{64})(?: expires (\d{4}-\d{2}-\d{2}(?:T\d{2}:\d{2}:\d{2}Z)?))?")
_EMPTY = f"sha256:{hashlib.sha256(b'').hexdigest()}"
_MAKE = "tuneserve key makes a key and its hash"
_NO_HASHES = "expected a list of sha256:HEX", _MAKE
# Enough for some ten thousand tenants. Reading that many takes seconds.
_MOST_BYTES = 4 << 20
# Tenant names in metrics and log lines for calls without a tenant's key.
ANONYMOUS, ADMINISTRATOR, SHADOW = RESERVED = ("anonymous", "administrator", "shadow")


def _tenant_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name in RESERVED:
        # Not quoted: somebody may have put a key in a name's place.
        raise Refused(
            "a name is 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit, and none of "
            + ", ".join(RESERVED)
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


# Runs before pydantic validates, so that a key in the place of its hash does not appear in an error.
def _hash_list(hashes: object) -> object:
    if not isinstance(hashes, list):
        raise Refused(*_NO_HASHES)
    return tuple(hashes)


def _key(key: object) -> str:
    match = _KEY.fullmatch(key) if isinstance(key, str) else None
    if not match:
        raise Refused("expected sha256: and 64 hex digits, and `expires YYYY-MM-DD` behind it if it expires", _MAKE)
    if match[1].lower() == _EMPTY:
        raise Refused("this is the hash of an empty key", _MAKE)
    try:
        hash_and_expiry(match[0])
    except ValueError:
        raise Refused("its expiry is not a date") from None
    return match[1].lower() + match[0].removeprefix(match[1])


def hash_and_expiry(key: str) -> tuple[str, float]:
    """Returns the hash of an entry under `keys`, and when the key expires, in seconds since 1970."""
    hashed, _, date = key.partition(" expires ")
    when = datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp() if date else math.inf
    return hashed, when


_TenantName = Annotated[str, AfterValidator(_tenant_name), matching(_NAME)]
_ModelName = Annotated[str, AfterValidator(_model_name), matching(_NAME)]
_Certificate = Annotated[str, AfterValidator(_certificate), matching(_SAN)]
_Key = Annotated[str, BeforeValidator(_key), matching(_KEY)]


class TenantConfig(Settings):
    """One tenant: how it authenticates, and what it may do."""

    keys: Annotated[tuple[_Key, ...], BeforeValidator(_hash_list)] = Field(
        default=(),
        description="hashes of its API keys, as `tuneserve key` prints them; several, so that a new key can replace an "
        "old one; each may have ` expires YYYY-MM-DD` behind it (UTC); may be left out if there are `certificates`",
    )
    certificates: Annotated[tuple[_Certificate, ...], Listed] = Field(
        default=(),
        description="names of clients' certificates (SAN: DNS, URI, email); needs the server's `tls.client_ca`",
    )
    role: Literal["user", "admin"] = Field(default="user", description="an admin may also change the server's models")
    priority: int = Field(
        default=0,
        ge=1 - 2**31,
        le=2**31 - 1,
        description="lower goes first; a call can't raise its priority above this",
    )
    models: Annotated[tuple[_ModelName, ...], Listed] | None = Field(
        default=None, description="models or aliases that it may use, in all versions; null: every model"
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
        description="quota of prompt and completion tokens; use beyond it delays later calls; null: unlimited",
    )

    @model_validator(mode="after")
    def _is_known_by_something(self) -> "TenantConfig":
        if not self.model_fields_set & {"keys", "certificates"}:
            raise Refused(*_NO_HASHES, key="keys")
        return self


class TenantsFile(Settings):
    """Who may call, and which models: the file that the server's setting `tenants` names."""

    tenants: Annotated[Mapping[_TenantName, TenantConfig], Named] = Field(description="tenants by name")

    @model_validator(mode="after")
    def _share_nothing(self) -> "TenantsFile":
        owners: dict[str, str] = {}
        for name, tenant in self.tenants.items():
            for key in tenant.keys:
                if (owner := owners.setdefault(hash_and_expiry(key)[0], name)) != name:
                    raise Refused(f"one of them is a key of {owner}, too", key=f"tenants.{name}.keys")
            for certificate in tenant.certificates:
                if (owner := owners.setdefault(certificate, name)) != name:
                    raise Refused(f"{certificate} also belongs to {owner}", key=f"tenants.{name}.certificates")
        return self


def read(path: Path, where: str) -> Mapping[str, TenantConfig]:
    """Returns the tenants by name. Raises UserError naming the key under `where`."""
    try:
        document = yamls.parse(regular.read(path, _MOST_BYTES).decode())
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
    """The text of a YAML error, without the parts that it quotes."""
    return re.sub(r"'.*'|\".*\"", "…", text or "")
