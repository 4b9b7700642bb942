"""A machine's clock that is set while the server runs: no call is late or early for it, and no time is wrong."""

import itertools
import re
import time
from pathlib import Path

from tuneserve import server
from tuneserve.v1 import classification_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

CLASSIFY = classification_pb2.ClassifyRequest(
    model="sentiment", inputs=[classification_pb2.ClassifyInput(text="the film was good")]
)
SERVER = Path(server.__file__).parent
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


def test_the_clock_of_the_day_tells_when_a_call_began_was_logged_or_kept_or_a_key_expires_and_nothing_else():
    uses = [
        f"{path.relative_to(SERVER)}: {line.strip()}"
        for path in sorted(SERVER.glob("**/*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\btime\.time(_ns)?\b|\bfrom time import\b|\b(now|utcnow|today)\(", line)
    ]
    assert uses == [
        "call/context.py: started_ns: int = field(init=False, default_factory=time.time_ns)",
        'call/request_log.py: "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),',
        "call/tenants.py: if expiry <= time.time():",
        "call/tenants.py: now = time.time()",
        "monitor/examples.py: texts.append(new := Example(text[:LONGEST], time.time_ns()))",
    ]
