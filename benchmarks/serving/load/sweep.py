"""Several runs after each other: closed loops with several numbers of connections, and open loops of several rates."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from tuneserve.benchmarks.serving.load.processes import run
from tuneserve.benchmarks.serving.load.result import Result
from tuneserve.benchmarks.serving.load.search import Highest, highest
from tuneserve.benchmarks.serving.load.settings import Settings
from tuneserve.errors import StepFailed

Show = Callable[[int, float | None], object]


def sweep(
    settings: Settings, connections: Sequence[int], rates: Sequence[float], max_rate: bool, show: Show
) -> tuple[list[Result], Highest | None]:
    """Returns the results of all runs, closed loops first, and the highest good rate; None if it was not to be found.

    Rates are run on the most connections. A closed loop on the only number of connections is left out if there are
    open loops. So are runs at which no call is answered. `show` is told of each run: of connections and rate.

    Raises what `processes.run` raises: StepFailed only if no run had an answer.
    """
    most = replace(settings, connections=max(connections))
    runs = [replace(most, rate=rate) for rate in rates] or [most] * settings.self_timed
    if len(connections) > 1 or not (runs or max_rate):
        runs = [replace(settings, connections=number, self_timed=False) for number in connections] + runs
    results, failed = list[Result](), None
    for one in runs:
        show(one.connections, one.rate)
        try:
            results.append(run(one))
        except StepFailed as error:
            failed = error
    if failed and not results:
        raise failed
    best = None
    if max_rate:
        best, found = highest(most, lambda rate, _: show(most.connections, rate))
        results += found
    return sorted(results, key=lambda one: (one.settings.is_open, one.offered, one.settings.connections)), best
