"""Checks callers' constraints before a call goes to the engine; each constraint of a tenant only once.

A check may take minutes, in libraries that can't be interrupted except by ending their process. So each check runs in a
process of its own, forked from one process per model, which is started when it is first needed. Each caller has one
check at a time. A check that takes too long is stopped and repeated later, in a lane for slow checks: quick checks
never wait for slow ones.
"""

import asyncio
import contextlib
import json
import socket
import sys
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from hashlib import sha256
from weakref import WeakValueDictionary

from tuneserve.server import turns
from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.engine.interface import StructuredOutput
from tuneserve.server.text.structured_output import FIELD, structured
from tuneserve.v1 import generation_pb2 as pb

# How many results are kept.
_KEPT = 1024
# The system limits CPU time. This limits a check that gets no CPU time.
_MOST_SECONDS = 60.0
_ANSWER = 1 << 16


@dataclass
class _Lane:
    """Checks with the same limits, a few of them at a time."""

    seconds: float  # of CPU time
    bytes: int  # of memory, in addition to what the process has
    at_once: int
    room: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.room = asyncio.Semaphore(self.at_once)


class Constraints:
    """Checks the constraints of one model."""

    def __init__(self, tokenizer: str, vocab_size: int, end_token: int | None) -> None:
        """`tokenizer` is the text of a tokenizer.json."""
        self._given = tokenizer, str(vocab_size), str(-1 if end_token is None else end_token)
        self._process: asyncio.subprocess.Process | None = None
        self._asking: socket.socket | None = None  # while there is a process
        self._starting = asyncio.Lock()
        # Real constraints take a few times 10 ms, with a large vocabulary ten times as much.
        self._lanes = _Lane(0.5, 256 << 20, at_once=2), _Lane(3.0, 1 << 30, at_once=1)
        self._turns: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()
        self._known: OrderedDict[tuple[str, bytes], InvalidInput | None] = OrderedDict()  # by tenant and content

    async def checked(self, params: pb.StructuredOutput, tenant: str = "") -> StructuredOutput:
        """Returns a constraint that the engine can follow quickly, token by token. Raises InvalidInput.

        Results are kept by tenant: response times must not reveal what others have sent.
        """
        form, content = structured(params), params.SerializeToString(deterministic=True)
        key = tenant, sha256(content).digest()
        if key not in self._known:
            turn = self._turns.setdefault(turns.caller(), asyncio.Lock())
            async with turn:
                if key not in self._known:
                    self._known[key] = await self._check(params, content)
        self._known.move_to_end(key)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        if wrong := self._known[key]:
            raise InvalidInput(wrong.field, wrong.description)
        return form

    async def close(self) -> None:
        """Ends the process. A new one is started if there is more to check."""
        if self._process and self._asking:
            process, self._process = self._process, None
            self._asking.close()
            # Not if it has ended: that would take its exit status away from asyncio.
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _check(self, params: pb.StructuredOutput, content: bytes) -> InvalidInput | None:
        for lane in self._lanes:
            async with lane.room:
                if answer := await self._ask(lane, content):
                    wrong = json.loads(answer)
                    return InvalidInput(*wrong) if wrong else None
        what = f"{FIELD}.{params.WhichOneof('constraint')}"
        return InvalidInput(what, "takes too much time or memory to check; make it smaller or simpler")

    async def _ask(self, lane: _Lane, content: bytes) -> bytes:
        """Returns the answer; empty if the constraint took too much. Closing the socket ends the check, so it ends with
        its caller.
        """
        loop, answer = asyncio.get_running_loop(), b""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                await self._hand_over(theirs)
            ours.setblocking(False)
            try:
                # The copy may end, or be ended, at any time.
                async with asyncio.timeout(_MOST_SECONDS):
                    with contextlib.suppress(ConnectionError):
                        await loop.sock_sendall(ours, _framed(str(lane.seconds), str(lane.bytes), content))
                        while part := await loop.sock_recv(ours, _ANSWER):
                            answer += part
            except TimeoutError:
                await self.close()
        return answer

    async def _hand_over(self, theirs: socket.socket) -> None:
        """Passes a socket to the process; starts the process if it does not run."""
        async with self._starting:
            if self._process and self._asking:
                with contextlib.suppress(OSError):
                    socket.send_fds(self._asking, [b"?"], [theirs.fileno()])
                    return
                # Something else ended the process.
                await self.close()
            socket.send_fds(await self._start(), [b"?"], [theirs.fileno()])

    async def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                # -P: nothing is imported from the working directory. Its errors may contain what a caller sent, so they
                # are discarded.
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "tuneserve.server.text.constraint_process"),
                    stdin=theirs.fileno(),
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                )
        except BaseException:
            ours.close()
            raise
        self._process, self._asking = process, ours
        try:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(ours, _framed(*self._given))
            if not await loop.sock_recv(ours, 1):
                raise RuntimeError("the process that checks constraints did not start")
        except BaseException:
            # Also if the caller was cancelled.
            await self.close()
            raise
        return ours


def _framed(*messages: str | bytes) -> bytes:
    given = [message.encode() if isinstance(message, str) else message for message in messages]
    return b"".join(len(message).to_bytes(4, "big") + message for message in given)
