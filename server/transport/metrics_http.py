"""`/metrics` over HTTP, on the event loop: one request a connection, few connections, each with a short time limit.

Knows nothing of metrics: a WSGI application makes the page, in a thread of its own.
"""

import asyncio
import logging
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from wsgiref.types import WSGIApplication

from tuneserve.server.call import failures

logger = logging.getLogger(__name__)

# Connections at once. One more closes the oldest, so that idle connections never keep a scrape out.
_MOST = 32
# The longest life of a connection.
_SECONDS = 10.0
_HEAD_BYTES = 8192
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class MetricsServer:
    """An HTTP server for one page, on bound sockets."""

    def __init__(self, page: WSGIApplication, sockets: Sequence[socket.socket]) -> None:
        self._page = page
        self._sockets = sockets
        self._servers: list[asyncio.Server] = []
        self._serving: dict[asyncio.Task[None], None] = {}
        self._pages = ThreadPoolExecutor(1, thread_name_prefix="metrics")

    async def start(self) -> None:
        """Starts to listen."""
        self._servers = [await asyncio.start_server(self._serve, sock=one, limit=_HEAD_BYTES) for one in self._sockets]

    def close(self) -> None:
        """Closes all connections."""
        for server in self._servers:
            server.close()
        for one in self._sockets:
            one.close()
        for task in self._serving:
            task.cancel()
        self._pages.shutdown(wait=False, cancel_futures=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._serving[task] = None
        if len(self._serving) > _MOST:
            oldest = next(iter(self._serving))
            del self._serving[oldest]  # at once: many may come before it has ended
            oldest.cancel()
        try:
            async with asyncio.timeout(_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                answer = await asyncio.get_running_loop().run_in_executor(self._pages, self._answer, head)
                if not writer.is_closing():
                    writer.write(answer)
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client was too slow, sent too much or is gone
        except asyncio.CancelledError:
            pass  # closed by us: asyncio would log the cancellation as an error
        finally:
            self._serving.pop(task, None)
            writer.transport.abort()

    def _answer(self, head: bytes) -> bytes:
        """Returns the whole answer to a request."""
        request, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = request.partition(" ")
        target, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1."):
            return _BAD_REQUEST
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        path, _, query = target.partition("?")
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "HTTP_ACCEPT_ENCODING": headers.get("accept-encoding", ""),
        }
        answered: list[str] = []

        def start(status: str, fields: list[tuple[str, str]], _: object = None) -> None:
            answered[:] = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields)]

        try:
            body = b"".join(self._page(environ, start))  # type: ignore[arg-type]  # nothing is written by its result
        except Exception as error:
            logger.error("the metrics' page failed: %s", failures.where(error))
            body, answered = b"", ["HTTP/1.1 500 Internal Server Error"]
        lines = [*answered, f"Content-Length: {len(body)}", "Connection: close", "", ""]
        return "\r\n".join(lines).encode("latin-1") + body
