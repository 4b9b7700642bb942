"""A server that is killed leaves no engine behind."""

import psutil
import pytest

from tuneserve import samples
from tuneserve.server.engine import processes as engine_processes
from tuneserve.serving import launched

pytestmark = pytest.mark.engine


def test_kill_takes_the_engine_along():
    with launched("--model", f"vectors={samples.embedding_model()}") as server:
        started = psutil.Process(server.process.pid).children(recursive=True)
        assert any("EngineCore" in " ".join(one.cmdline()) for one in started)
        server.process.kill()
        server.process.wait()
        engine_processes.wait_for_end(started, 30)
        assert not any(map(engine_processes.runs, started))
