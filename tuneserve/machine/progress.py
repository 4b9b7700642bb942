"""Progress without a terminal: a plain line every ten seconds, for all progress bars together.

tqdm redraws its bars all the time, which would fill a log file. The libraries use tqdm, too, so its drawing is patched
in one place.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from tqdm import tqdm

SECONDS = 10.0


@contextmanager
def lines() -> Iterator[None]:
    """Makes every bar of the process print lines to the present standard error, even if the block redirects it."""
    stream, last, close = sys.stderr, time.monotonic(), tqdm.close

    def show(bar: Any) -> None:
        nonlocal last
        last = time.monotonic()
        print(bar.format_meter(**{**bar.format_dict, "ncols": 0}), file=stream, flush=True)

    def display(bar: Any, msg: str | None = None, pos: int | None = None) -> bool:
        # tqdm clears a bar with an empty message; that is ignored.
        if msg is None and time.monotonic() - last >= SECONDS:
            show(bar)
        return True

    def closed(bar: Any) -> None:
        if not bar.disable:
            if bar.format_dict["elapsed"] >= SECONDS:
                show(bar)
            # For tqdm, this means that the bar is drawn elsewhere and need not be cleared.
            bar.sp = None
        close(bar)

    with mock.patch.object(tqdm, "display", display), mock.patch.object(tqdm, "close", closed):
        yield
