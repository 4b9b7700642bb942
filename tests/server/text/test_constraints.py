"""Constraints are checked in a process of their model's: what comes back, what is remembered, and what is left."""

import asyncio

import psutil
import pytest

from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.engine.interface import StructuredOutput
from tuneserve.server.text import constraints as constraints_module
from tuneserve.server.text.constraints import Constraints
from tuneserve.v1 import generation_pb2 as pb

GOOD, BAD = pb.StructuredOutput(regex="[ab]+"), pb.StructuredOutput(regex="(secret")


@pytest.fixture(scope="module")
def tokenizer(make_llama) -> str:
    return (make_llama() / "tokenizer.json").read_text()


@pytest.fixture
async def constraints(tokenizer):
    own = Constraints(tokenizer, 300, 3)
    yield own
    await own.close()


def checkers() -> set[psutil.Process]:
    """The processes of this one that check constraints."""
    started = psutil.Process().children()
    return {one for one in started if "tuneserve.server.text.constraint_process" in one.cmdline()}


@pytest.fixture
def ours():
    """The processes that this test started: servers of other tests have theirs."""
    before = checkers()
    return lambda: checkers() - before


async def test_what_can_be_followed_goes_to_the_engine(constraints):
    assert await constraints.checked(GOOD) == StructuredOutput("regex", "[ab]+")
    choice = pb.StructuredOutput(choice=pb.Choice(options=["a", "b"]))
    assert await constraints.checked(choice) == StructuredOutput("choice", ["a", "b"])


async def test_what_cannot_is_named_and_not_repeated(constraints):
    for _ in range(2):
        with pytest.raises(InvalidInput, match="is not a regular expression") as caught:
            await constraints.checked(BAD)
        assert caught.value.field == "sampling.structured_output.regex"
        assert "secret" not in str(caught.value)


async def test_what_is_known_needs_no_process(constraints, ours):
    with pytest.raises(InvalidInput, match="is unset"):
        await constraints.checked(pb.StructuredOutput())
    assert not ours(), "none is started before there is something to check"
    await constraints.checked(GOOD)
    with pytest.raises(InvalidInput):
        await constraints.checked(BAD)
    assert len(ours()) == 1
    await constraints.close()
    assert not ours()
    assert await constraints.checked(GOOD)
    with pytest.raises(InvalidInput):
        await constraints.checked(BAD)
    assert not ours()
    await constraints.checked(pb.StructuredOutput(regex="c"))
    assert len(ours()) == 1


async def test_what_is_remembered_is_bounded_for_all_tenants_together(constraints, monkeypatch):
    monkeypatch.setattr(constraints_module, "_KEPT", 4)
    for tenant in ("one", "other", "third"):
        for number in range(3):
            assert await constraints.checked(pb.StructuredOutput(regex=f"{number}"), tenant)
            assert len(constraints._known) <= 4
    with pytest.raises(InvalidInput):
        await constraints.checked(BAD, "one")
    assert len(constraints._known) == 4


async def test_the_same_text_of_another_kind_is_another_constraint(constraints):
    for kind in ("regex", "json_schema"):
        form = pb.StructuredOutput(**{kind: "[]"})
        with pytest.raises(InvalidInput) as caught:
            await constraints.checked(form)
        assert caught.value.field == f"sampling.structured_output.{kind}"


async def test_one_process_checks_for_all(constraints, ours):
    forms = [pb.StructuredOutput(regex=f"{number}") for number in range(8)]
    await asyncio.gather(*map(constraints.checked, forms))
    assert len(ours()) == 1


async def test_a_process_that_does_not_start_is_a_fault_of_ours_and_leaves_nothing(ours):
    broken = Constraints("no tokenizer", 300, None)
    for _ in range(2):
        with pytest.raises((RuntimeError, ConnectionError)):
            await broken.checked(GOOD)
        assert not ours()


async def test_a_start_that_nobody_waits_for_any_more_leaves_nothing(constraints, ours, until):
    asking = asyncio.create_task(constraints.checked(GOOD))
    await until(ours)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await constraints.checked(GOOD)
    assert len(ours()) == 1
