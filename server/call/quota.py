"""How much of its quotas a tenant has left, in requests and in tokens.

Both are token buckets, with a burst size and a refill rate. They know nothing of keys or models, and read no clock:
the time is an argument, in nanoseconds, and integers keep it exact.
"""

from tuneserve.server.call.errors import Overloaded

_MINUTE = 60


class Bucket:
    """Holds up to `size` units and refills at `per_second`. It may go below zero; the refill pays that back first.

    Its whole state is one number: the time at which it will be full again.
    """

    def __init__(self, per_second: float, size: float) -> None:
        self._cost = max(1, round(1e9 / per_second))  # of one unit, in time
        self._window = round(size * self._cost)  # from empty to full
        self._full_at = 0

    def wait(self, units: int, now: int) -> int:
        """Returns the nanoseconds until that many units are available; 0 if they are now."""
        return max(0, self._full_at + units * self._cost - now - self._window)

    def take(self, units: int, now: int) -> None:
        """Takes units, whether they are available or not."""
        self._full_at = max(self._full_at, now) + units * self._cost

    def carry_over(self, old: "Bucket", now: int) -> None:
        """Takes over the state of a bucket of another size: the same units are missing, or the same time until it is
        full, whichever is less.

        So a larger quota helps at once, and under a smaller one the units spent before do not become a long debt.
        """
        missing = max(0, old._full_at - now)
        self._full_at = now + min(missing, missing * self._cost // old._cost)


class Quota:
    """What one tenant has left. A limit of None means no limit; `old` is the tenant's quota before a change."""

    def __init__(
        self, requests_per_second: float | None, tokens_per_minute: int | None, old: "Quota | None", now: int
    ) -> None:
        self.requests = self.tokens = None
        if requests_per_second:
            self.requests = Bucket(requests_per_second, max(1.0, requests_per_second))
        if tokens_per_minute:
            self.tokens = Bucket(tokens_per_minute / _MINUTE, tokens_per_minute)
        if old and old.requests and self.requests:
            self.requests.carry_over(old.requests, now)
        if old and old.tokens and self.tokens:
            self.tokens.carry_over(old.tokens, now)

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
