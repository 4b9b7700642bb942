"""The worker of predict, against the server on fake engines: it answers files, and counts what it read."""

import asyncio
import os
from pathlib import Path
from typing import Any

from tuneserve.benchmarks.serving.workers import job, worker

from ....server.conftest import served, shared_server  # noqa: F401


async def test_a_job_is_a_file_that_is_answered(served: Any, tmp_path: Path) -> None:  # noqa: F811
    [path] = [model.config.path for model in served.app.models if model.name == "sentiment"]
    texts = ["good film", "bad"] * 3
    with worker.started("predict_client", [str(path)], tmp_path / "log", os.environ) as client:
        work = job.Job(texts=texts, target=served.app.address, model="sentiment")
        outcome = await asyncio.to_thread(client.do, work)
    # With the two special tokens around each text.
    assert outcome.counts == (6, 3 * 4 + 3 * 3, 0)
    assert len(served.engines["sentiment"].pooled) == 6


async def test_prompts_are_continued_by_as_many_tokens_as_asked_for(served: Any, tmp_path: Path) -> None:  # noqa: F811
    [path] = [model.config.path for model in served.app.models if model.name == "chat"]
    with worker.started("predict_client", [str(path)], tmp_path / "log", os.environ) as client:
        work = job.Job(texts=["good film", "bad"], max_tokens=3, target=served.app.address, model="chat")
        outcome = await asyncio.to_thread(client.do, work)
    assert (outcome.texts, outcome.output_tokens) == (0, 6)
    assert outcome.prompt_tokens > 2
