"""The worker of the Open Inference Protocol, against the server on fake engines."""

import asyncio
import os
from pathlib import Path
from typing import Any

from tuneserve.benchmarks.serving.workers import job, worker

from ....server.conftest import served, shared_server  # noqa: F401


async def test_a_job_is_answered_with_the_labels_of_our_own_api(served: Any, tmp_path: Path) -> None:  # noqa: F811
    texts, found = ["good film", "bad", "good", "a very bad film", "film"] * 4, {}
    for client in ("grpc_client", "oip_client"):
        with worker.started(client, [], tmp_path / client, os.environ) as running:
            work = job.Job(texts=texts, batch=3, answers=True, target=served.app.address, model="sentiment")
            found[client] = await asyncio.to_thread(running.do, work)
    ours, oip = found.values()
    assert oip.counts == ours.counts
    assert oip.answers == ours.answers
    assert len(set(oip.answers)) == 2
