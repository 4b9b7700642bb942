"""Errors of a server and on the way to it, as one line with a hint; keys and TLS."""

from concurrent import futures
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import grpc
import pytest

from tuneserve.call.channel import failure
from tuneserve.client.endpoint import Endpoint
from tuneserve.server.call.errors import Full, NotFound, to_status
from tuneserve.v1 import (
    model_admin_pb2_grpc,
    model_pb2_grpc,
)

from .conftest import Server, call


def test_a_key_goes_with_every_call_and_not_into_any_output(server: Server, target: str) -> None:
    assert "authorization" not in (call(target, "classify", "--model", "a", "x") and server.metadata)
    for arguments in (
        ("classify", "x"),
        ("chat", "x"),
        ("generate", "x"),
        ("rank", "x", "y"),
        ("admin", "load", "a", "b"),
    ):
        model = () if arguments[0] == "admin" else ("--model", "a")
        call(target, *arguments, *model, "--key", "SECRET")
        assert server.metadata["authorization"] == "Bearer SECRET"
    for arguments in (["--model", "locked", "x", "--key", "SECRET"], ["--model", "a", "x", "--key", "SECRÉT"]):
        result = call(target, "classify", *arguments)
        assert result.exit_code == 2
        assert "SECR" not in result.stdout + result.stderr
    result = call(target, "classify", "--model", "locked", "x")
    assert result.stderr.endswith("hint:  set TUNESERVE_KEY, or pass --key\n")


def test_tls(certified: tuple[Path, Path]) -> None:
    key, certificate = certified
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())], certificate.read_bytes(), True
    )
    servicer, server = Server(), grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    model_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
    model_admin_pb2_grpc.add_ModelAdminServiceServicer_to_server(servicer, server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        ca, own = ("--ca", str(certificate)), ("--cert", str(certificate), "--cert-key", str(key))
        target = f"127.0.0.1:{port}"
        assert call(target, "models", *ca, *own).exit_code == 0
        # Without TLS, without trust, and without a certificate of one's own, which this server wants.
        for options in ((), ("--tls", *own), ca):
            result = call(target, "models", "--timeout", "5", *options)
            assert (result.exit_code, f"no server answers at {target}" in result.stderr) == (1, True)
        assert "--cert and --cert-key belong together" in call(target, "models", *ca, *own[:2]).stderr
    finally:
        server.stop(None).wait()


def test_bad_input_names_every_field_once_and_exits_2(target: str) -> None:
    result = call(target, "classify", "--model", "picky", "x")
    assert result.exit_code == 2
    assert result.stderr == "error: inputs[0].text: must not be empty; top_k: at least 1 (INVALID_ARGUMENT)\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("model", "status", "message"),
    [
        (
            "other",
            2,
            "error: model 'other' is not served here; served: sentiment (request abc) (NOT_FOUND)\n"
            "hint:  tuneserve call models",
        ),
        ("busy", 1, "error: queue full: 512 calls (RESOURCE_EXHAUSTED)\nhint:  "),
        ("loading", 1, "error: model loading is not ready (UNAVAILABLE)\n"),
    ],
)
def test_errors_of_the_server(target: str, model: str, status: int, message: str) -> None:
    for arguments in (("classify", "x"), ("tokens", "x"), ("chat", "x"), ("generate", "x")):
        result = call(target, arguments[0], "--model", model, *arguments[1:])
        assert result.exit_code == status
        assert result.stderr.startswith(message)
        assert result.stdout == ""


def _error(cause: Exception, code: grpc.StatusCode) -> grpc.RpcError:
    """What a client gets, with a message that says less than its details."""
    status = to_status(cause, "abc").SerializeToString()
    error = SimpleNamespace(
        code=lambda: code,
        details=lambda: "in other words",
        trailing_metadata=lambda: (("grpc-status-details-bin", status),),
    )
    return cast(grpc.RpcError, error)


@pytest.mark.parametrize("kind", ["model", "version", "alias", "adapter", "index", "monitor"])
def test_what_is_missing_is_known_without_the_message(kind: str) -> None:
    failed = failure(_error(NotFound(kind, "other", []), grpc.StatusCode.NOT_FOUND), Endpoint("localhost:1"))
    assert failed.message == "in other words (NOT_FOUND)"
    assert bool(failed.hint) == (kind not in ("index", "monitor"))


def test_full_feedback_is_not_tried_again() -> None:
    failed = failure(
        _error(Full("the tenant's feedback is full"), grpc.StatusCode.RESOURCE_EXHAUSTED), Endpoint("localhost:1")
    )
    assert failed.hint == "its operator can train on the rows, and move them away"


def test_a_server_that_hangs(server: Server, target: str) -> None:
    server.may_go_on.clear()
    try:
        result = call(target, "classify", "--model", "hangs", "--timeout", "0.2", "x")
    finally:
        server.may_go_on.set()
    assert result.exit_code == 1
    assert result.stderr.startswith(
        f"error: no answer from {target} within 0.2 s (DEADLINE_EXCEEDED)\nhint:  wait longer"
    )


@pytest.mark.parametrize("target", ["127.0.0.1:1", "no.such.host.invalid:8033"])
def test_no_server(target: str) -> None:
    result = call(target, "models", "--timeout", "5")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: no server answers at {target}: ")
    assert "hint:  start one: tuneserve serve" in result.stderr
