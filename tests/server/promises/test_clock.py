"""A machine's clock that is set while the server runs: no call is late or early for it, and no time is wrong."""

import itertools
import re
import time

from tuneserve.v1 import classification_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

CLASSIFY = classification_pb2.ClassifyRequest(
    model="sentiment", inputs=[classification_pb2.ClassifyInput(text="the film was good")]
)
HOUR_NS = 3600 * 10**9


async def test_times_are_those_that_passed(served, monkeypatch):
    set_by, clock = itertools.cycle((-HOUR_NS, HOUR_NS, -3 * HOUR_NS)), time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: clock() + next(set_by))
    served.engines["sentiment"].delay = 0.02
    for _ in range(3):
        call = ClassificationServiceStub(served.channel).Classify(CLASSIFY, timeout=60)
        assert (await call).results
        timing = dict(await call.trailing_metadata())["server-timing"]
        stages = {name: float(ms) for name, ms in re.findall(r"(\w+);dur=(-?[\d.]+)", timing)}
        assert stages.keys() == {"queue", "tokenize", "engine"}, timing
        assert all(0 <= ms < 60_000 for ms in stages.values()), timing
        assert stages["engine"] >= 20
