"""Tenants, their API keys and what they may do, from a YAML file that is read again when it changes.

tenants:
  search: {keys: [sha256:HEX], models: [sentiment, chat], requests_per_second: 50}

Keys are stored as plain SHA-256: they are long and random, so a slow hash would protect nothing more. A caller's key
is hashed, and the hash is looked up: the time that takes depends on the hash of a guess and reveals nothing about a
key. Neither a caller's key nor an entry under `keys` ever appears in an error or a log line.
"""

import hashlib
import logging
import math
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneserve.errors import UserError
from tuneserve.server.call import tenants_file
from tuneserve.server.call.errors import Unauthenticated
from tuneserve.server.call.quota import Quota, SharedQuota
from tuneserve.server.call.tenants_file import TenantConfig
from tuneserve.server.files import stamp
from tuneserve.server.ledger import Ledger

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tenant:
    """The holder of an API key."""

    name: str
    role: str = "user"  # or "admin"
    priority: int = 0  # lower goes first; a call can't raise its priority above this
    models: Sequence[str] | None = None  # names and aliases it may use; None for all
    adapters: Sequence[str] | None = None  # LoRA adapters it may use; None for all but `others`
    others: Collection[str] = ()  # adapters that other tenants list as theirs

    def may_use(self, model: str) -> bool:
        """Whether the tenant may use a model's name or an alias; with NAME@VERSION, whether it may use NAME."""
        return self.models is None or model.partition("@")[0] in self.models

    def may_use_adapter(self, name: str) -> bool:
        """Whether the tenant may use and see an adapter: one of its own, or one that no tenant lists.

        Administrators load adapters, so they may use all of them.
        """
        if self.adapters is not None:
            return name in self.adapters
        return self.role == "admin" or name not in self.others


# All callers of a server without keys, and all callers of the admin port. A tenants file can't use these names.
ANYBODY = Tenant(tenants_file.ANONYMOUS)
ADMINISTRATOR = Tenant(tenants_file.ADMINISTRATOR, role="admin")
# The tenant of shadow calls, which go behind all callers' own.
SHADOW = Tenant(tenants_file.SHADOW, role="admin", priority=1 << 30)


def new_key() -> str:
    """Returns a random API key."""
    return f"tsk_{secrets.token_urlsafe(32)}"


def hashed(key: str) -> str:
    """Returns a key's hash as the tenants file has it."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


class Tenants:
    """The tenants of a file, and how much of its quota each has left."""

    def __init__(self, path: Path, clock: Callable[[], int] = time.monotonic_ns, ledger: Ledger | None = None) -> None:
        """Reads the file. Raises UserError naming the file and the key. `clock` gives nanoseconds, the same in all
        processes that share the `ledger`.
        """
        self._path = path
        self._ledger = ledger
        self._clock = clock
        self._seen = stamp(path)
        self._by_hash: Mapping[str, tuple[Tenant, float]] = {}  # with the key's expiry, in seconds since 1970
        self._by_name: Mapping[str, Tenant] = {}  # names of certificates
        self._quotas: Mapping[str, Quota] = {}
        self.is_current = True  # whether the last version of the file is in force
        self._take(tenants_file.read(path, str(path)))

    @property
    def by_certificate(self) -> bool:
        """Whether a certificate may name a tenant."""
        return bool(self._by_name)

    def authenticate(self, metadata: Mapping[str, str], names: Sequence[str] = ()) -> Tenant:
        """Returns the tenant of a call's API key: `authorization: Bearer KEY`, or `x-api-key: KEY`, which takes
        precedence. Without a key, returns the tenant that `names`, those of the client certificate, belong to.

        Raises Unauthenticated.
        """
        key = metadata.get("x-api-key", "")
        if not key:
            scheme, _, key = metadata.get("authorization", "").partition(" ")
            key = key.strip() if scheme.lower() == "bearer" else ""
        if not key:
            return self._named(names)
        tenant, expiry = self._by_hash.get(hashed(key), (None, 0.0))
        if tenant is None:
            raise Unauthenticated("the API key is not known")
        if expiry <= time.time():
            raise Unauthenticated("the API key has expired")
        return tenant

    def next_expiry(self) -> float:
        """Returns when the next key expires, in seconds since 1970; 0 if none will."""
        now = time.time()
        return min((expiry for _, expiry in self._by_hash.values() if now < expiry < math.inf), default=0.0)

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
        """Reads the file again if it has changed; returns whether new tenants are in force.

        A missing or invalid file changes nothing and is logged once. Running calls are not affected. This may run in a
        thread, concurrently with the other methods.
        """
        seen = stamp(self._path)
        if seen == self._seen:
            return False
        # Set before the file is read, so that a change made meanwhile is seen next time.
        self._seen = seen
        try:
            entries = tenants_file.read(self._path, self._path.name)
            self._take(entries)
        except Exception as error:
            # Any error: the next version of the file must still be read. Only our own errors are known to quote no key.
            reason = str(error) if isinstance(error, UserError) else type(error).__name__
            logger.error("tenants not reloaded, the old ones stay: %s", reason)
            self.is_current = False
            return False
        self.is_current = True
        logger.info("tenants reloaded: %d", len(entries))
        return True

    def _take(self, entries: Mapping[str, TenantConfig]) -> None:
        """Puts new tenants in force. Each attribute is set at once, so that a call never sees half of it."""
        by_hash: dict[str, tuple[Tenant, float]] = {}
        by_name: dict[str, Tenant] = {}
        quotas: dict[str, Quota] = {}
        owned = {adapter for entry in entries.values() for adapter in entry.adapters or ()}
        accounts = self._ledger.accounts(entries) if self._ledger else {}
        for name, entry in entries.items():
            tenant = Tenant(name, entry.role, entry.priority, entry.models, entry.adapters, owned)
            for hash_, expiry in map(tenants_file.hash_and_expiry, entry.keys):
                by_hash[hash_] = tenant, expiry
            by_name.update(dict.fromkeys(entry.certificates, tenant))
            limits = entry.requests_per_second, entry.tokens_per_minute
            if any(limits) and self._ledger:
                quotas[name] = SharedQuota(*limits, accounts[name], self._clock())
            elif any(limits):
                quotas[name] = Quota(*limits, self._quotas.get(name), self._clock())
        self._quotas = quotas
        self._by_hash = by_hash
        self._by_name = by_name
