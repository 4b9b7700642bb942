"""Progress bars where nobody looks at a terminal: a plain line every ten seconds, of all the bars together.

tqdm draws its bars over and over, which a log file keeps. It is what the libraries here use, too, so that what it
draws is changed, and not each bar.
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
    """Makes every bar of the process print lines to what is standard error now, also where it is redirected inside."""
    stream, last, close = sys.stderr, time.monotonic(), tqdm.close

    def show(bar: Any) -> None:
        nonlocal last
        last = time.monotonic()
        print(bar.format_meter(**{**bar.format_dict, "ncols": 0}), file=stream, flush=True)

    def display(bar: Any, msg: str | None = None, pos: int | None = None) -> bool:
        # An empty message would clear the bar.
        if msg is None and time.monotonic() - last >= SECONDS:
            show(bar)
        return True

    def closed(bar: Any) -> None:
        if not bar.disable:
            if bar.format_dict["elapsed"] >= SECONDS:
                show(bar)
            # To tqdm, a bar that is drawn by somebody else: nothing to clear.
            bar.sp = None
        close(bar)

    with mock.patch.object(tqdm, "display", display), mock.patch.object(tqdm, "close", closed):
        yield
