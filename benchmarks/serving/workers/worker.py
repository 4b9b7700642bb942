"""A process that does jobs: the measuring client, or vLLM without a server. Jobs and outcomes are lines of JSON.

The comparing process does not affect the measurement: it sends a job to one worker at a time and sleeps.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from tuneserve.benchmarks.serving.workers.job import Job, Outcome
from tuneserve.errors import StepFailed

Connection = TypeVar("Connection")
# Sends one piece of a job over one connection, and adds the answer to the outcome.
Send = Callable[[Connection, Job, Sequence[str] | Sequence[int], Outcome], Awaitable[None]]


@dataclass(frozen=True)
class Worker:
    """A running worker."""

    process: subprocess.Popen[str]
    log: Path

    def do(self, job: Job) -> Outcome:
        """Runs a job on the worker. Raises StepFailed, with the end of the worker's log, if it fails."""
        assert self.process.stdin is not None
        try:
            print(json.dumps(asdict(job)), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise self.failure() from None
        answer = self.read()
        if failed := answer.get("failed"):
            raise StepFailed(f"{self.log.stem}: {failed}", "the system that it calls may have ended")
        return Outcome(**answer)

    def read(self) -> dict[str, Any]:
        """Waits for the worker's next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self.failure()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def failure(self) -> StepFailed:
        """Returns the error for a worker that ended."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return StepFailed(f"{self.log.stem}: ended without an answer", "\n".join(lines[-15:]))


@contextmanager
def started(module: str, arguments: Sequence[str], log: Path, env: Mapping[str, str]) -> Iterator[Worker]:
    """Runs a module of this package as a worker while the block runs; yields when it is ready for jobs."""
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", f"tuneserve.benchmarks.serving.workers.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            env=env,
        )
    worker = Worker(process, log)
    try:
        worker.read()
        yield worker
    finally:
        process.communicate()  # The worker ends at the end of its input.


def clients(stack: ExitStack, scratch: Path, processes: int = 1) -> tuple[Worker, Worker]:
    """Starts the clients of gRPC, which may be several `processes`, and of HTTP. They end with `stack`."""
    grpc, http = (
        stack.enter_context(started(module, arguments, scratch / f"{module}.log", os.environ))
        for module, arguments in (("grpc_client", [str(processes)] if processes > 1 else []), ("http_client", []))
    )
    return grpc, http


def work(prepare: Callable[[], Callable[[Job], Outcome]]) -> None:
    """The worker's side: prepares, and answers jobs from standard input until that ends."""
    # Libraries may print to stdout; only answers may reach the process that waits for them.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    do = prepare()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = asdict(do(Job(**json.loads(line))))
        except Exception as error:
            # A system that ends must not end this worker, which calls the others, too.
            cause: BaseException = error
            while isinstance(cause, BaseExceptionGroup):
                cause = cause.exceptions[0]
            answer = {"failed": f"{type(cause).__name__}: {cause}"}
        print(json.dumps(answer), file=answers, flush=True)


async def drive(
    job: Job, connected: Callable[[Job], AbstractAsyncContextManager[Sequence[Connection]]], send: Send[Connection]
) -> Outcome:
    """Sends a job's pieces over all connections; each takes the next piece when its last one is answered.

    The clock runs from the first send to the last answer; connections are opened before.
    """
    outcome = Outcome()
    pieces = iter(job.pieces())

    async def use(connection: Connection) -> None:
        for piece in pieces:
            await send(connection, job, piece, outcome)

    async with connected(job) as connections:
        cpu, started_at = time.process_time(), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(use(connection))
        outcome.seconds = time.perf_counter() - started_at
        outcome.client_cpu = time.process_time() - cpu
    return outcome


async def watch(messages: AsyncIterator[int], outcome: Outcome) -> None:
    """Reads a stream to its end, and records when each message with a token came."""
    last, times = time.perf_counter(), outcome.first_tokens
    async for content in messages:
        if content:
            now = time.perf_counter()
            times.append(now - last)
            last, times = now, outcome.gaps
