"""Callers' constraints, checked before a call is admitted to the engine, and each only once.

Reading one may take minutes, in libraries that nothing ends but the end of their process: so they have a process of
their own, one a model, that is started when it is first needed. A caller that keeps it busy keeps itself waiting: each
tenant has one constraint checked at a time.
"""

import asyncio
import json
import sys
from collections import OrderedDict
from hashlib import sha256
from weakref import WeakValueDictionary

from tuneserve.server.call.context import current
from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.engine.interface import StructuredOutput
from tuneserve.server.text.structured_output import FIELD, structured
from tuneserve.v1 import generation_pb2 as pb

# What is known of so many of them is kept.
_KEPT = 1024
# The process limits its own CPU time. This is for one that gets none.
_MOST_SECONDS = 60.0


class Constraints:
    """Checks the constraints of one model."""

    def __init__(self, tokenizer: str, vocab_size: int, end_token: int | None) -> None:
        """`tokenizer` is the text of a tokenizer.json."""
        self._given = tokenizer, str(vocab_size), str(-1 if end_token is None else end_token)
        self._process: asyncio.subprocess.Process | None = None
        self._asking = asyncio.Lock()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._known: OrderedDict[bytes, InvalidInput | None] = OrderedDict()

    async def checked(self, params: pb.StructuredOutput) -> StructuredOutput:
        """Returns a constraint that the engine can follow, token by token, in little time. Raises InvalidInput."""
        form, content = structured(params), params.SerializeToString(deterministic=True)
        key = sha256(content).digest()
        if key not in self._known:
            tenant = current().tenant.name
            turn = self._turns.setdefault(tenant, asyncio.Lock())
            async with turn, self._asking:
                if key not in self._known:
                    self._known[key] = await self._ask(params, content)
        self._known.move_to_end(key)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        if wrong := self._known[key]:
            raise InvalidInput(wrong.field, wrong.description)
        return form

    async def close(self) -> None:
        """Ends the process. Another is started if there is more to check."""
        if self._process:
            # Not where it has ended: this would take its status away from asyncio.
            if self._process.returncode is None:
                self._process.kill()
            await self._ended()

    async def _ask(self, params: pb.StructuredOutput, content: bytes) -> InvalidInput | None:
        if self._process and self._process.returncode is not None:
            # By somebody else.
            await self._ended()
        try:
            process = self._process or await self._start()
            _send(process, content)
            async with asyncio.timeout(_MOST_SECONDS):
                line = await _line(process)
        except BaseException as error:
            # Also when nobody waits for it any more.
            await self.close()
            if not isinstance(error, TimeoutError):
                raise
            line = b""
        if not line:
            await self._ended()
            field = f"{FIELD}.{params.WhichOneof('constraint')}"
            return InvalidInput(field, "takes too much time or memory to check; make it smaller or simpler")
        wrong = json.loads(line)
        return InvalidInput(*wrong) if wrong else None

    async def _ended(self) -> None:
        """Forgets a process that ends."""
        if self._process:
            process, self._process = self._process, None
            # Not `wait`, which leaves its pipes to the garbage collector.
            await process.communicate()

    async def _start(self) -> asyncio.subprocess.Process:
        # -P: what lies in the working directory is not imported. Its errors may hold what a caller sent.
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "tuneserve.server.text.constraint_process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        for text in self._given:
            _send(process, text.encode())
        if not await _line(process):
            raise RuntimeError("the process that checks constraints did not start")
        return process


def _send(process: asyncio.subprocess.Process, message: bytes) -> None:
    assert process.stdin
    process.stdin.write(len(message).to_bytes(4, "big") + message)


async def _line(process: asyncio.subprocess.Process) -> bytes:
    """Returns a line; an empty one when there is none, as the process has ended."""
    assert process.stdout
    return await process.stdout.readline()
