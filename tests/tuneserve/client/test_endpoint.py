"""Retries, deadlines, keys, TLS and several addresses, over a real wire."""

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest

from tuneserve.client import CallError, Client, DeadlineExceeded, InvalidInput, Overloaded, Unavailable
from tuneserve.client.endpoint import Endpoint

BUSY, GONE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE


async def test_a_pause_that_the_server_asks_for_is_kept(failing: Any, asking: Any) -> None:
    with failing((BUSY, 400), (GONE, 200)) as server:
        await asking(server.address)("classify", "m", "a")
        first, second = (later - earlier for earlier, later in pairwise(server.times))
        assert 0.39 <= first < 5
        assert 0.19 <= second < 5
        assert server.metadata["grpc-previous-rpc-attempts"] == "2"


@pytest.mark.parametrize(
    ("failures", "attempts", "calls", "error"),
    [
        ([(BUSY, 1)], 1, 1, Overloaded),  # no retries wanted
        ([(GONE, 1)] * 9, 5, 5, Unavailable),
        ([(BUSY, -1)], 5, 1, Overloaded),  # the server asks for none
        ([(grpc.StatusCode.INVALID_ARGUMENT, 1)], 5, 1, InvalidInput),
        ([(grpc.StatusCode.INTERNAL, 1)], 5, 1, CallError),
    ],
)
async def test_attempts(
    failing: Any, asking: Any, failures: Any, attempts: int, calls: int, error: type[CallError]
) -> None:
    with failing(*failures) as server:
        with pytest.raises(error, match="not now") as caught:
            await asking(server.address, attempts=attempts)("classify", "m", "a")
        assert type(caught.value) is error
        assert caught.value.code == failures[0][0]
        assert len(server.times) == calls


async def test_a_change_is_sent_once(failing: Any, asking: Any) -> None:
    with failing((GONE, 1)) as server:
        ask = asking(server.address)
        with pytest.raises(Unavailable, match="not now"):
            await ask("delete_alias", "chat")
        assert len(server.times) == 1
        await ask("delete_alias", "chat")


async def test_without_a_pause_named_attempts_come_later_and_later(failing: Any, asking: Any) -> None:
    with failing((GONE, None), (BUSY, None)) as server:
        await asking(server.address)("classify", "m", "a")
        assert len(server.times) == 3


async def test_no_attempt_is_made_past_the_deadline(failing: Any, asking: Any) -> None:
    with failing((BUSY, 20_000)) as server:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await asking(server.address, timeout=60)("classify", "m", "a", timeout=0.4)
        assert 0.39 <= time.monotonic() - started < 10
        assert len(server.times) == 1


async def test_a_stream_is_tried_again_before_its_first_part_only(failing: Any, asking: Any) -> None:
    with failing((BUSY, 1)) as server:
        assert await asking(server.address)("stream", "m", "a")
        assert len(server.times) == 2
    with failing((GONE, 1), parts=["one", "two"]) as server:
        with pytest.raises(Unavailable):
            await asking(server.address)("stream", "m", "a")
        assert len(server.times) == 1


async def test_calls_are_spread_over_several_addresses(failing: Any, asking: Any) -> None:
    with failing() as one:
        with failing() as other:
            port = other.address.rpartition(":")[2]
            ask = asking([one.address, f"localhost:{port}"])
            for _ in range(50):
                await ask("classify", "m", "a")
                if one.times and other.times:
                    break
            await ask("classify", "m", "a")
            await ask("classify", "m", "a")
            assert one.times
            assert other.times
        # One of them is gone: the other has all calls.
        for _ in range(4):
            [result] = await ask("classify", "m", "a")
            assert result.best.label == one.address


async def test_nobody_answers(asking: Any) -> None:
    with pytest.raises(Unavailable) as caught:
        await asking("127.0.0.1:1", attempts=2)("classify", "m", "a")
    assert (caught.value.request_id, caught.value.reason) == ("", "")


async def test_keys(failing: Any, asking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESERVE_KEY", "FROM-THE-VARIABLE")
    with failing() as server:
        for options, sent in (
            ({}, "Bearer FROM-THE-VARIABLE"),
            ({"key": "GIVEN"}, "Bearer GIVEN"),
            ({"key": ""}, None),
        ):
            await asking(server.address, **options)("classify", "m", "a")
            assert server.metadata.get("authorization") == sent
    assert "SECRET" not in repr(Endpoint("a:1", key="SECRET"))
    with pytest.raises(ValueError, match="key: ") as caught:
        Client("127.0.0.1:1", key="SECRÉT")
    assert "SECR" not in str(caught.value)


async def test_tls(failing: Any, asking: Any, certified: tuple[Path, Path]) -> None:
    key, certificate = certified
    pair = [(key.read_bytes(), certificate.read_bytes())]
    mutual = grpc.ssl_server_credentials(pair, certificate.read_bytes(), True)
    own = {"certificate": certificate, "certificate_key": str(key)}
    with failing(credentials=mutual) as one, failing(credentials=mutual) as other:
        await asking(one.address, ca=certificate, **own)("classify", "m", "a")
        # Of several, the name is to be told.
        both = [one.address, other.address]
        await asking(both, ca=certificate, server_name="127.0.0.1", **own)("classify", "m", "a")
        with pytest.raises(ValueError, match="need server_name"):
            asking(both, ca=certificate, **own)
        # Without TLS, without trust, without a certificate, and with another name than the certificate's.
        for options in ({}, {"tls": True, **own}, {"ca": certificate}, {"ca": certificate, "server_name": "b", **own}):
            with pytest.raises(Unavailable):
                await asking(one.address, attempts=1, **options)("classify", "m", "a", timeout=10)
    assert len(one.times) + len(other.times) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": ""}, "no address"),
        ({"address": []}, "no address"),
        ({"timeout": 0}, "timeout is 0"),
        ({"attempts": 0}, "allowed are 1 to 5"),
        ({"attempts": 6}, "allowed are 1 to 5"),
        ({"certificate": "a.pem"}, "belong together"),
        ({"address": ["127.0.0.1:1", "a"]}, "a: expected host:port"),
        ({"address": ["127.0.0.1:1", "[::1]:1"]}, "give either IPv4 or IPv6"),
    ],
)
def test_what_cant_be_right_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Client(**{"address": "127.0.0.1:1"} | options)


def test_unknown_names_and_missing_files(tmp_path: Path) -> None:
    opened: Callable[..., Any] = Client
    with pytest.raises(OSError):  # noqa: PT011  # whose text is the system's
        opened(["127.0.0.1:1", "no.such.host.invalid:1"])
    with pytest.raises(FileNotFoundError):
        opened("127.0.0.1:1", ca=tmp_path / "ca.pem")
