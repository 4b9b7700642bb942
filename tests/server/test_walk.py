"""The walk of a Classify call from the servicer to the engine and back: so short that a reader can follow it.

Counted while a real call runs on the fake engine. A stay is a run of consecutive calls that begin in one module. What
any line may use belongs to the module that uses it: the floors up to `call` (turns, metrics, the current call, its
errors), properties, checks (`check_…`) and comprehensions. The end of a `with` block belongs to its beginning.
"""

import inspect
import sys
from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tuneserve import server
from tuneserve.server.api.classification import ClassificationService
from tuneserve.server.call import context
from tuneserve.server.call.tenants import Tenant
from tuneserve.server.metrics import Metrics
from tuneserve.v1 import classification_pb2 as pb

from ..test_imports import TOWERS
from .fake_engine import FakeEngine

FLOORS = TOWERS["tuneserve.server"].split()
GROUND = FLOORS.index("call")
MOST_STAYS = 12


def module(code: CodeType) -> str:
    """The module of a function, as `models.place`; that of the fake engine is `engine`; empty if it is none of ours."""
    if code is FakeEngine.pool.__code__:
        return "engine"
    path, folder = Path(code.co_filename), Path(server.__file__).parent
    return ".".join(path.relative_to(folder).with_suffix("").parts) if path.is_relative_to(folder) else ""


def floor(code: CodeType) -> int:
    return FLOORS.index(module(code).split(".")[0])


def attributes() -> Iterator[CodeType]:
    """The functions behind the attributes of our classes."""
    for name, one in list(sys.modules.items()):
        for _, kind in inspect.getmembers(one, inspect.isclass) if name.startswith("tuneserve.server") else ():
            for member in vars(kind).values():
                if isinstance(member, property):
                    yield member.fget.__code__
                elif isinstance(member, cached_property):
                    yield member.func.__code__


def callers(frame: FrameType | None) -> Iterator[CodeType]:
    while frame := frame.f_back:
        yield frame.f_code


class Walk:
    """The functions that are begun while it is the profiler, in order, with their callers. Those that go on after a
    wait were begun before.
    """

    def __init__(self) -> None:
        self.begun: list[tuple[CodeType, list[CodeType]]] = []
        self._frames: set[FrameType] = set()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and module(frame.f_code) and frame not in self._frames:
            self._frames.add(frame)
            self.begun.append((frame.f_code, list(callers(frame))))

    def stays(self) -> list[str]:
        """The modules where the call stays, in order."""
        looked_up = set(attributes())
        passed = [
            module(code)
            for code, callers in self.begun
            if floor(code) > GROUND or module(code) == "engine"
            if code not in looked_up and not code.co_name.startswith(("check_", "<"))
            if not {"__exit__", "__aexit__"} & {caller.co_name for caller in callers}
        ]
        return [name for name, _ in groupby(passed)]

    def climbs(self) -> list[str]:
        """Calls from a lower floor to a higher one. Generators are not called: somebody asks for their next item."""
        found = []
        for code, callers in self.begun:
            caller = next((one for one in callers if module(one)), code)
            if floor(caller) < floor(code) and not code.co_flags & inspect.CO_GENERATOR:
                found.append(f"{caller.co_qualname} calls {code.co_qualname}")
        return found


async def walked(served) -> Walk:
    context.begin(context.Call("req-1", "Classify", Tenant("acme"), {}, Metrics()))
    request = pb.ClassifyRequest(model="sentiment", inputs=[pb.ClassifyInput(text="the film was good")])
    service, walk = ClassificationService(served.app.models), Walk()
    sys.setprofile(walk)
    try:
        await service.Classify(request, None)
    finally:
        sys.setprofile(None)
    return walk


async def test_a_reader_can_follow_a_call(served):
    stays = (await walked(served)).stays()
    assert {"models.place", "models.admission", "text.tokenizer", "engine"} <= set(stays)
    assert len(stays) <= MOST_STAYS, " > ".join(stays)


async def test_nothing_calls_what_is_above_it(served):
    assert (await walked(served)).climbs() == []
