"""A job that several processes do at once: one core of a client would be the limit of a server with several processes.

Each has its share of the connections, and of the calls: with N processes, every Nth one.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

from tuneserve.benchmarks.serving.workers.job import Job, Outcome

Do = Callable[[Job], Outcome]


def several(do: Do, number: int) -> Do:
    """Starts `number` processes, and returns what does a job in all of them. `do` is a function of a module."""
    # A forked process could not use gRPC.
    spawning = multiprocessing.get_context("spawn")
    # A process starts when it gets something to do, and waits for the others: none imports while others call.
    pool = ProcessPoolExecutor(number, spawning, spawning.Barrier(number).wait)
    list(pool.map(abs, range(number)))
    return lambda job: joined(list(pool.map(partial(_timed, do), shares(job, number))))


def shares(job: Job, number: int) -> list[Job]:
    """Returns the part of each process. There is at most one for each connection."""
    number, pieces = min(number, job.connections), job.pieces()
    return [
        replace(
            job,
            texts=[str(text) for piece in pieces[index::number] for text in piece] if job.texts else (),
            prompts=job.prompts[index::number],
            connections=len(range(index, job.connections, number)),
        )
        for index in range(number)
    ]


def joined(parts: Sequence[tuple[float, Outcome]]) -> Outcome:
    """Returns the outcome of a job from the begin and the outcome of each part. Processes have one clock."""
    begun = min(begin for begin, _ in parts)
    return Outcome(
        seconds=max(begin + one.seconds for begin, one in parts) - begun,
        texts=sum(one.texts for _, one in parts),
        prompt_tokens=sum(one.prompt_tokens for _, one in parts),
        output_tokens=sum(one.output_tokens for _, one in parts),
        answers=[answer for _, one in parts for answer in one.answers],
        first_tokens=[seconds for _, one in parts for seconds in one.first_tokens],
        gaps=[seconds for _, one in parts for seconds in one.gaps],
        client_cpu=sum(one.client_cpu for _, one in parts),
    )


def _timed(do: Do, job: Job) -> tuple[float, Outcome]:
    outcome = do(job)
    return time.perf_counter() - outcome.seconds, outcome
