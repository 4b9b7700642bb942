"""The process that checks one model's constraints: `python -m tuneserve.server.text.constraint_process`.

A constraint is compiled as the engine will compile it, for the model's own tokenizer, and then followed along some
random texts, to measure the time of each token's mask: the engine computes masks between two steps, while all its
requests wait. Each constraint is checked in a forked copy of the process, which has the tokenizer already and shares
its memory. If the check takes too much time or memory, only the copy ends.

Protocol: standard input is a Unix socket. It receives, each with its length before it, the tokenizer's JSON, the size
of the vocabulary, and the id of the end token. Then the process sends one byte back. Each byte that it receives after
that carries a socket for one constraint. On that socket come the allowed CPU time in seconds, the allowed memory in
bytes, and a tuneserve.v1.StructuredOutput. The reply is JSON, null or [field, error], and the end of the stream; if the
constraint took too much, only the end of the stream. The copy also ends when the other end of its socket is closed.
"""

import gc
import json
import os
import random
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import llguidance
import numpy as np
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from tuneserve.machine import lifetime
from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.engine.limits import limits
from tuneserve.server.engine.tokenizer_files import put_right
from tuneserve.server.text.structured_output import FIELD, check, structured
from tuneserve.v1 import generation_pb2 as pb

# Number of random texts, and their length in tokens. Half of the texts use only the first allowed tokens of the
# vocabulary: mostly single letters, with which an ambiguous grammar takes the most steps.
_TEXTS = 4
_LENGTH = 128
_FIRST = 256
# CPU seconds allowed for a token's mask: for each one, and on average in the second half of a text. Real constraints
# take 1 ms or less; those whose time grows with the text, such as ambiguous grammars, are far above this at its end.
_MOST_MASK = 0.05
_MEAN_MASK = 0.01


def main() -> None:
    """Answers until standard input is closed, as it is when the server ends."""
    given = _messages(sys.stdin.buffer)
    vocabulary, size, end = next(given).decode(), int(next(given)), int(next(given))
    tokenizer = llguidance.LLTokenizer(put_right(vocabulary), n_vocab=size, eos_token=end if end >= 0 else None)
    # No core dumps of copies that the system ends, and no zombies.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # Keeps the memory shared with the copies: garbage collection would write to it.
    gc.freeze()
    asking = socket.socket(fileno=sys.stdin.fileno())
    asking.send(b"\n")
    while sockets := socket.recv_fds(asking, 1, 1)[1]:
        [one] = sockets
        if not os.fork():
            try:
                asking.close()
                _answer(tokenizer, socket.socket(fileno=one))
            finally:
                os._exit(0)
        os.close(one)


def _messages(stream: BinaryIO) -> Iterator[bytes]:
    while length := stream.read(4):
        yield stream.read(int.from_bytes(length, "big"))


def _answer(tokenizer: Any, asked: socket.socket) -> None:
    given = _messages(asked.makefile("rb"))
    seconds, size, constraint = next(given), next(given), next(given)
    lifetime.end_with(asked.fileno())
    # The system enforces the limits: by a signal, or by refusing memory.
    signal.setitimer(signal.ITIMER_PROF, float(seconds))
    memory = Path("/proc/self/statm")
    if memory.exists():
        has = int(memory.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (has + int(size), resource.getrlimit(resource.RLIMIT_AS)[1]))
    asked.sendall(json.dumps(_wrong(tokenizer, pb.StructuredOutput.FromString(constraint))).encode())


def _wrong(tokenizer: Any, params: pb.StructuredOutput) -> tuple[str, str] | None:
    """Returns the field and its error, or None."""
    field = f"{FIELD}.{params.WhichOneof('constraint')}"
    try:
        check(params)
        grammar = _grammar(params)
    except InvalidInput as error:
        return error.field, error.description
    except ValueError:
        return field, "can't be read"
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    if matcher.is_error():
        return field, "can't be read, or is too large"
    if what := _slow(tokenizer, matcher):
        return field, what
    return None


def _grammar(params: pb.StructuredOutput) -> str:
    """Returns the grammar as vLLM's guidance backend makes it."""
    form = structured(params)
    if form.kind == "json":
        grammar: str = llguidance.LLMatcher.grammar_from_json_schema(
            '{"type": "object"}' if form.value == "{}" else str(form.value), defaults={"whitespace_flexible": True}
        )
        return grammar
    value = form.value if isinstance(form.value, str) else json.dumps(form.value)
    return str(llguidance.grammar_from(form.kind, value))


def _slow(tokenizer: Any, matcher: Any) -> str:
    """Returns why a constraint can't be followed fast enough; "" if it can."""
    mask, chance = allocate_token_bitmask(1, tokenizer.vocab_size), random.Random(0)
    for text in range(_TEXTS):
        matcher.reset()
        seconds: list[float] = []
        while len(seconds) < _LENGTH and not matcher.is_stopped():
            start = time.thread_time()
            fill_next_token_bitmask(matcher, mask, 0)
            seconds.append(time.thread_time() - start)
            late = seconds[_LENGTH // 2 :]
            if seconds[-1] > _MOST_MASK or (len(late) == _LENGTH // 2 and sum(late) > _MEAN_MASK * len(late)):
                return "takes too long to follow for each token; make it less ambiguous"
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            allowed = allowed[allowed != tokenizer.eos_token]
            if not matcher.is_error() and len(allowed):
                allowed = allowed[:_FIRST] if text % 2 else allowed
                matcher.consume_token(int(chance.choice(allowed)))
            elif not matcher.is_error():
                break
        if matcher.is_error():
            return "can't be followed: no text fits it, or it has too many alternatives"
    return ""


if __name__ == "__main__":
    main()
