"""Systems that start at the same time: one after the other, their starts would take most of the time that there is."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass

from tuneserve.benchmarks import processes
from tuneserve.benchmarks.serving.systems import System

_END_SECONDS = 5.0

Start = Callable[[], AbstractContextManager[System]]


@dataclass(frozen=True)
class Started:
    """A system that is up after some seconds, or the reason why it is not."""

    system: System | None
    seconds: float
    why: str = ""


@contextmanager
def together(starts: Mapping[str, Start], seconds: float) -> Iterator[dict[str, Started]]:
    """Starts systems, and yields those that are up or have failed within `seconds`.

    At the end all processes of this one are killed: nobody needs what they do, and ending them gracefully would
    take long.
    """
    begun, over = time.monotonic(), threading.Event()
    found: queue.Queue[tuple[str, Started]] = queue.Queue()

    def hold(name: str, start: Start) -> None:
        try:
            with start() as system:
                found.put((name, Started(system, time.monotonic() - begun)))
                over.wait()
        except Exception as error:
            found.put((name, Started(None, time.monotonic() - begun, f"{error}\n{getattr(error, 'hint', '')}".strip())))

    threads = [threading.Thread(target=hold, args=one, daemon=True) for one in starts.items()]
    for thread in threads:
        thread.start()
    up: dict[str, Started] = {}
    with suppress(queue.Empty):
        while len(up) < len(starts):
            name, started = found.get(timeout=max(0.0, begun + seconds - time.monotonic()))
            up[name] = started
    late = {name: Started(None, seconds, f"not up within {seconds:.0f} s") for name in starts if name not in up}
    try:
        # In the order that they were given in.
        yield {name: (up | late)[name] for name in starts}
    finally:
        processes.end_children()
        over.set()
        for thread in threads:
            thread.join(_END_SECONDS)
