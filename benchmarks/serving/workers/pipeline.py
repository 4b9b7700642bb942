"""Worker: transformers without a server: its pipeline gets a whole job in one call.

Runs only as a process of its own: `python -m tuneserve.benchmarks.serving.workers.pipeline CHECKPOINT DTYPE`.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from tuneserve.benchmarks.serving.workers.job import Job, Outcome
from tuneserve.benchmarks.serving.workers.worker import work


def prepare() -> Callable[[Job], Outcome]:
    """Loads the model."""
    from transformers import pipeline

    path, dtype = sys.argv[1:]
    classify: Any = pipeline("text-classification", model=path, dtype=dtype, truncation=True)

    def do(job: Job) -> Outcome:
        texts = list(job.texts)
        cpu, started = time.process_time(), time.perf_counter()
        answers = classify(texts, batch_size=job.batch)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        return Outcome(
            seconds=seconds,
            texts=len(answers),
            prompt_tokens=sum(map(len, classify.tokenizer(texts, truncation=True).input_ids)),
            answers=[one["label"] for one in answers] if job.answers else [],
            client_cpu=cpu,
        )

    return do


if __name__ == "__main__":
    work(prepare)
