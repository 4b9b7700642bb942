"""What both clients share: opening a channel, and making a method of the function that builds a call."""

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

from tuneserve.client.call import STUBS, Call, Requests
from tuneserve.client.endpoint import MOST_ATTEMPTS, Endpoint

Channel = TypeVar("Channel")
Method = TypeVar("Method", bound=Callable[..., Any])


class Base(ABC, Generic[Channel]):
    """A channel to a server, and the stubs on it."""

    channel: Channel  # for calls that have no method here, e.g. health

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        key: str | None = None,
        timeout: float = 60.0,
        attempts: int = MOST_ATTEMPTS,
        tls: bool = False,
        ca: str | Path | None = None,
        certificate: str | Path | None = None,
        certificate_key: str | Path | None = None,
        server_name: str = "",
    ) -> None:
        """Connects with the first call.

        `address`: host:port; calls are spread over all IP addresses of the name, or over several host:port of a list.
        `key`: the API key; the variable TUNESERVE_KEY when None. `timeout`: seconds for a call that has none of its
        own. `attempts`: how often a call is sent at most, if the server refuses it or can't be reached; 1 for no
        retries, at most 5. `tls`: use TLS, and trust the machine's authorities, or the authority in the PEM file `ca`.
        `certificate`, `certificate_key`: PEM files, if the server requires a client certificate. `server_name`: the
        name in the server's certificate, if the address has another.

        Raises ValueError for arguments that can't be valid, OSError for files that can't be read and, with several
        addresses, for unknown names.
        """
        self._endpoint = Endpoint(
            target=address,
            timeout=timeout,
            key=os.environ.get("TUNESERVE_KEY", "") if key is None else key,
            tls=tls,
            ca=ca,
            certificate=certificate,
            certificate_key=certificate_key,
            server_name=server_name,
            attempts=attempts,
        )
        self.channel = self._open(self._endpoint)
        self._stubs = {stub: stub(self.channel) for stub in STUBS}

    @abstractmethod
    def _open(self, endpoint: Endpoint) -> Channel: ...

    @abstractmethod
    def _iterator(self, requests: Requests) -> Any: ...

    def _send(self, call: Call[Any]) -> Any:
        """Begins a call; returns the call object of gRPC's stub."""
        options = self._endpoint.options
        if call.timeout is not None or call.is_endless:
            options["timeout"] = call.timeout
        request = self._iterator(call.request) if isinstance(call.request, Requests) else call.request
        return getattr(self._stubs[call.stub], call.method)(request, **options)


def like(build: Callable[..., Call[Any]], returns: object = None) -> Callable[[Method], Method]:
    """Gives a method the name, the documentation and the arguments of the function that builds its call.

    `returns`: the type that it returns, if that is not the call's result.
    """

    def decorate(method: Method) -> Method:
        wraps(build)(method)
        signature = inspect.signature(build)
        arguments = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *signature.parameters.values()]
        [result] = get_args(signature.return_annotation)
        shown = signature.replace(parameters=arguments, return_annotation=returns or result)
        method.__signature__ = shown  # type: ignore[attr-defined]  # read by `inspect`, and so by `help`
        return method

    return decorate
