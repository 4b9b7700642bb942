"""What callers and the log are told of an exception: never its own text."""

import asyncio
import logging

import pytest
from google.rpc import code_pb2, error_details_pb2

from tuneserve.server.call import failures
from tuneserve.server.call.context import Call
from tuneserve.server.call.errors import InvalidInput, NotFound, Unavailable
from tuneserve.server.call.request_log import Sample
from tuneserve.server.call.tenants import Tenant
from tuneserve.server.engine.interface import EngineFailed, RequestRefused
from tuneserve.server.metrics import Metrics

CANARY = "canary-of-a-prompt"


def call() -> Call:
    return Call("req-1", "Generate", Tenant("acme"), {}, Metrics())


def raised() -> Exception:
    """An exception with a cause, both of which repeat a prompt."""
    try:
        try:
            raise KeyError(CANARY)
        except KeyError as error:
            raise ValueError(CANARY) from error
    except ValueError as error:
        return error


def test_what_the_engine_refuses_names_the_field():
    refused = failures.for_caller(RequestRefused("top_k"))
    assert isinstance(refused, InvalidInput)
    assert (refused.field, CANARY in str(refused)) == ("sampling.top_k", False)
    whole = failures.for_caller(RequestRefused(""))
    assert isinstance(whole, InvalidInput)
    assert whole.field == "sampling"


def test_a_dead_engine_is_what_callers_are_told_of_it():
    error = EngineFailed(CANARY)
    error.told = "the engine is started again"
    shown = failures.for_caller(error)
    assert isinstance(shown, Unavailable)
    assert str(shown) == "the engine is started again"


def test_our_own_errors_stay_and_are_not_logged(caplog):
    error = NotFound("model", "m", ["other"])
    assert failures.for_caller(error) is error
    status = failures.status(error, call())
    assert status.code == code_pb2.NOT_FOUND
    assert "other" in status.message
    assert not caplog.records


def test_any_other_is_internal_and_logged_by_its_place(caplog):
    status = failures.status(raised(), call())
    info = error_details_pb2.RequestInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert (status.code, info.request_id) == (code_pb2.INTERNAL, "req-1")
    assert CANARY not in str(status)
    assert CANARY not in caplog.text
    assert "request req-1: Generate failed: ValueError at test_failures.py:" in caplog.text


def test_the_place_has_the_causes_and_the_last_lines():
    def deeper(levels: int) -> None:
        if not levels:
            raise ValueError(CANARY)
        deeper(levels - 1)

    with pytest.raises(ValueError, match=CANARY) as caught:
        deeper(20)
    assert failures.where(caught.value).count("deeper") == 6
    first, second = failures.where(raised()).split("; from ")
    assert first.startswith("ValueError at test_failures.py:")
    assert second.startswith("KeyError at test_failures.py:")
    assert failures.where(ValueError(CANARY)) == "ValueError at "


@pytest.mark.parametrize("name", ["grpc._cython.cygrpc", "asyncio"])
def test_libraries_log_no_headers_and_no_texts(name, caplog, monkeypatch):
    monkeypatch.setattr(failures._FILTERS["grpc._cython.cygrpc"], "sample", Sample())
    failures.redact_libraries()
    logger = logging.getLogger(name)
    logger.error("header [%s] of %s\nand more " + CANARY, CANARY, CANARY)
    logger.error("Task exception was never retrieved", exc_info=raised())
    assert CANARY not in caplog.text
    assert [record.getMessage().split(" at ")[0] for record in caplog.records] == [
        "header … of …",
        "Task exception was never retrieved: ValueError",
    ]


def test_callers_can_not_flood_the_log_through_a_library(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(failures._FILTERS["grpc._cython.cygrpc"], "sample", Sample(clock=lambda: now[0]))
    failures.redact_libraries()
    logger = logging.getLogger("grpc._cython.cygrpc")
    for _ in range(50):
        logger.error("call failed")
    now[0] += 1
    logger.error("call failed")
    assert [record.getMessage() for record in caplog.records] == ["call failed"] * 10 + [
        "call failed (40 lines left out)"
    ]


async def test_an_exception_that_nobody_waits_for(caplog):
    failures.redact_libraries()
    loop = asyncio.get_running_loop()
    loop.call_exception_handler({"message": "never retrieved", "exception": raised()})
    assert CANARY not in caplog.text
    assert "ValueError at test_failures.py" in caplog.text
