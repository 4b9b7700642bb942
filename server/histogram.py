"""prometheus_client's histogram, for values that come by the thousands a second.

vLLM observes a dozen values of each text, and one of each token. prometheus_client looks for the bucket of each, one
bound after the other, and takes two locks. Here values are kept as they come, and counted some hundreds at a time, or
when they are asked for.
"""

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

import prometheus_client
from prometheus_client.samples import Sample

_MOST = 1024


class Histogram(prometheus_client.Histogram):
    """See prometheus_client.Histogram."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._waiting = deque[float]()

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """See prometheus_client.Histogram."""
        if exemplar:
            super().observe(amount, exemplar)
            return
        self._waiting.append(amount)
        if len(self._waiting) >= _MOST:
            self._count_waiting()

    def _child_samples(self) -> Iterable[Sample]:
        self._count_waiting()
        return super()._child_samples()

    def _count_waiting(self) -> None:
        amounts = list[float]()
        # Taken one by one: other threads may observe, and ask, at the same time.
        with suppress(IndexError):
            while True:
                amounts.append(self._waiting.popleft())
        self._sum.inc(sum(amounts))
        for place, count in Counter(map(partial(bisect_left, self._upper_bounds), amounts)).items():
            self._buckets[place].inc(count)
