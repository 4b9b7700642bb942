"""The process that checks one model's constraints: `python -m tuneserve.server.text.constraint_process`.

A constraint is compiled as the engine will compile it, for the model's own tokenizer, and followed for some random
texts, to see how long each token's mask takes: it is computed between two steps of the engine, while everybody waits.
Each is checked in a copy of the process (fork), which has the tokenizer already, and shares its memory. What takes too
much time or memory ends the copy, and nothing else.

On standard input, a Unix socket, each with its length before it: the tokenizer's JSON, the size of the vocabulary, and
the id of the end token. Once they are read, a byte goes back, and each byte that then comes has a socket of its own,
for one constraint: on this come the CPU time in seconds and the memory in bytes that it may take, and a
tuneserve.v1.StructuredOutput. Back go JSON, null or [field, what is wrong with it], and the end of the stream; nothing
but its end where the constraint took too much. The copy also ends with the other end of its socket.
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

from tuneserve import lifetime
from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.engine.limits import limits
from tuneserve.server.engine.tokenizer_files import put_right
from tuneserve.server.text.structured_output import FIELD, check, structured
from tuneserve.v1 import generation_pb2 as pb

# The texts that are written, and their length in tokens. Half of them of the first tokens in the vocabulary that are
# allowed, mostly single letters, which take an ambiguous grammar the most steps.
_TEXTS = 4
_LENGTH = 128
_FIRST = 256
# CPU time for a token's mask, in seconds: for each, and on average in the second half of a text. What callers use takes
# 1 ms or less; what grows with the text, as ambiguous grammars do, is far above this at its end.
_MOST_MASK = 0.05
_MEAN_MASK = 0.01


def main() -> None:
    """Answers until its standard input ends, as it does with the server."""
    given = _messages(sys.stdin.buffer)
    vocabulary, size, end = next(given).decode(), int(next(given)), int(next(given))
    tokenizer = llguidance.LLTokenizer(put_right(vocabulary), n_vocab=size, eos_token=end if end >= 0 else None)
    # The system keeps nothing of a copy that it ends, and needs nobody to ask what became of it.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # What there is stays shared: collecting garbage writes to it.
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
    # The system ends what uses more: a signal, or no memory.
    signal.setitimer(signal.ITIMER_PROF, float(seconds))
    memory = Path("/proc/self/statm")
    if memory.exists():
        has = int(memory.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (has + int(size), resource.getrlimit(resource.RLIMIT_AS)[1]))
    asked.sendall(json.dumps(_wrong(tokenizer, pb.StructuredOutput.FromString(constraint))).encode())


def _wrong(tokenizer: Any, params: pb.StructuredOutput) -> tuple[str, str] | None:
    """Returns a field and what is wrong with it, if anything is."""
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
    """As vLLM's backend for guidance makes it."""
    form = structured(params)
    if form.kind == "json":
        grammar: str = llguidance.LLMatcher.grammar_from_json_schema(
            '{"type": "object"}' if form.value == "{}" else str(form.value), defaults={"whitespace_flexible": True}
        )
        return grammar
    value = form.value if isinstance(form.value, str) else json.dumps(form.value)
    return str(llguidance.grammar_from(form.kind, value))


def _slow(tokenizer: Any, matcher: Any) -> str:
    """Returns why a constraint can't be followed as fast as is needed; nothing if it can."""
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
