"""How much of its quotas a tenant has left, in requests and in tokens.

Both are token buckets, with a burst size and a refill rate. They know nothing of keys or models, and read no clock:
the time is an argument, in nanoseconds, and integers keep it exact.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from tuneserve.server.call.errors import Overloaded
from tuneserve.server.ledger import Account

_MINUTE = 60
_LARGEST = (1 << 63) - 1  # number in an account


class Bucket:
    """Holds up to `size` units and refills at `per_second`. It may go below zero; the refill pays that back first.

    Its whole state is one number: the time at which it will be full again.
    """

    def __init__(self, per_second: float, size: float) -> None:
        self.cost = max(1, round(1e9 / per_second))  # of one unit, in time
        self.full_at = 0
        self._window = round(size * self.cost)  # from empty to full

    def wait(self, units: int, now: int) -> int:
        """Returns the nanoseconds until that many units are available; 0 if they are now."""
        return max(0, self.full_at + units * self.cost - now - self._window)

    def take(self, units: int, now: int) -> None:
        """Takes units, whether they are available or not."""
        self.full_at = max(self.full_at, now) + units * self.cost

    def carry_over(self, full_at: int, cost: int, now: int) -> None:
        """Takes over the state of a bucket of another size: the same units are missing, or the same time until it is
        full, whichever is less.

        So a larger quota helps at once, and under a smaller one the units spent before do not become a long debt.
        """
        missing = max(0, full_at - now)
        self.full_at = now + min(missing, missing * self.cost // cost)


class Quota:
    """What one tenant has left. A limit of None means no limit; `old` is the tenant's quota before a change."""

    def __init__(
        self, requests_per_second: float | None, tokens_per_minute: int | None, old: "Quota | None", now: int
    ) -> None:
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        if requests_per_second:
            self.requests = Bucket(requests_per_second, max(1.0, requests_per_second))
        if tokens_per_minute:
            self.tokens = Bucket(tokens_per_minute / _MINUTE, tokens_per_minute)
        if old and old.requests and self.requests:
            self.requests.carry_over(old.requests.full_at, old.requests.cost, now)
        if old and old.tokens and self.tokens:
            self.tokens.carry_over(old.tokens.full_at, old.tokens.cost, now)

    def admit(self, now: int) -> None:
        """Counts one request. Raises Overloaded, and then counts nothing."""
        requests = self.requests.wait(1, now) if self.requests else 0
        # How many tokens a call takes is known only later: one token left is enough to admit it.
        tokens = self.tokens.wait(1, now) if self.tokens else 0
        if requests or tokens:
            what, reason = ("tokens", "TOKEN_QUOTA") if tokens > requests else ("requests", "REQUEST_QUOTA")
            milliseconds = -(-max(requests, tokens) // 1_000_000)
            raise Overloaded(f"this API key's quota of {what} is spent for now", reason, milliseconds)
        if self.requests:
            self.requests.take(1, now)

    def charge(self, tokens: int, now: int) -> None:
        """Takes tokens, whether any are left or not."""
        if self.tokens:
            self.tokens.take(tokens, now)


class SharedQuota(Quota):
    """What one tenant has left in all processes of a server. They share an account with the state of its buckets."""

    def __init__(
        self, requests_per_second: float | None, tokens_per_minute: int | None, account: Account, now: int
    ) -> None:
        """The account has the state before a change, if there was one. Of the processes, the first one changes it."""
        super().__init__(requests_per_second, tokens_per_minute, None, now)
        self._account = account
        with account.ledger.locked():
            for place, bucket in self._buckets():
                full_at, cost = account.numbers[place : place + 2]
                if cost:
                    bucket.carry_over(full_at, cost, now)
                account.numbers[place] = min(bucket.full_at, _LARGEST)
                account.numbers[place + 1] = min(bucket.cost, _LARGEST)

    def admit(self, now: int) -> None:
        """See Quota."""
        with self._state():
            super().admit(now)

    def charge(self, tokens: int, now: int) -> None:
        """See Quota."""
        with self._state():
            super().charge(tokens, now)

    @contextmanager
    def _state(self) -> Iterator[None]:
        with self._account.ledger.locked():
            for place, bucket in self._buckets():
                bucket.full_at = self._account.numbers[place]
            try:
                yield
            finally:
                for place, bucket in self._buckets():
                    self._account.numbers[place] = min(bucket.full_at, _LARGEST)

    def _buckets(self) -> Iterator[tuple[int, Bucket]]:
        return ((place, bucket) for place, bucket in ((0, self.requests), (2, self.tokens)) if bucket)
