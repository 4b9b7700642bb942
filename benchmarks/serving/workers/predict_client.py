"""Worker: does jobs as `tuneserve predict` does, from a file to a file, with a server that is up.

Runs only as a process of its own: `python -m tuneserve.benchmarks.serving.workers.predict_client CHECKPOINT`.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tuneserve import checkpoint
from tuneserve.benchmarks.serving.workers.job import Job, Outcome
from tuneserve.benchmarks.serving.workers.worker import work
from tuneserve.checkpoint import rows
from tuneserve.client import AsyncClient
from tuneserve.predict.asking import Asking
from tuneserve.predict.parts import Parts
from tuneserve.predict.source import Shard, Source
from tuneserve.predict.tasks import ERROR, PREFIX, Options, task_of


def prepare() -> Callable[[Job], Outcome]:
    """Reads the checkpoint's manifest and its tokenizer, which counts the tokens."""
    from transformers import AutoTokenizer

    directory = Path(sys.argv[1])
    manifest, tokenizer = checkpoint.load(directory), AutoTokenizer.from_pretrained(directory)

    def do(job: Job) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="tuneserve-bench-") as folder:
            given, output = Path(folder, "rows.jsonl"), Path(folder, "out.jsonl")
            column = "prompt" if job.max_tokens else "text"
            rows.write(given, ({column: text} for text in job.texts))
            cpu, started = time.process_time(), time.perf_counter()
            asyncio.run(_predict(job, given, output))
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
            answered = rows.read(output)
        assert not any(ERROR in row for row in answered)
        assert not job.max_tokens or {row[f"{PREFIX}finish_reason"] for row in answered} == {"length"}
        return Outcome(
            seconds=seconds,
            texts=0 if job.max_tokens else len(answered),
            prompt_tokens=sum(map(len, tokenizer([row[column] for row in answered]).input_ids)),
            output_tokens=job.max_tokens * len(answered),
            client_cpu=cpu,
        )

    async def _predict(job: Job, given: Path, output: Path) -> None:
        task, parts = task_of(manifest, {}, Options(max_tokens=job.max_tokens)), Parts(output, {})
        if job.max_tokens:
            # As many tokens as of the others: predict itself ends with the model's end token.
            task = replace(task, read=lambda row: {"prompt": row["prompt"], "ignore_eos": True})
        async with AsyncClient(job.target, key="") as client:
            asking = Asking(client, job.model, task, {}, parts.write)
            await asking.answer(enumerate(Source.at(given, Shard()).windows()))
        parts.finish()

    return do


if __name__ == "__main__":
    work(prepare)
