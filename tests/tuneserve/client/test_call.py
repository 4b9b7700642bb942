"""The requests of a stream, made from texts that the caller's own code yields."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tuneserve.client import AsyncClient, Client


async def test_what_the_texts_of_a_stream_raise_comes_after_the_answers(served: Any) -> None:
    def texts() -> Iterator[str]:
        yield from ["good", "bad"]
        raise OSError("the file is gone")

    async def later() -> AsyncIterator[str]:
        for text in texts():
            await asyncio.sleep(0)
            yield text

    seen: list[int] = []

    def gather(client: Client) -> None:
        for one in client.classify_stream("sentiment", texts()):
            seen.append(one.id)

    async def gather_too(client: AsyncClient, given: Any) -> None:
        async for one in client.classify_stream("sentiment", given):
            seen.append(one.id)

    with Client(served.app.address) as client, pytest.raises(OSError, match="the file is gone"):
        await asyncio.to_thread(gather, client)
    async with AsyncClient(served.app.address) as client_:
        for given in (texts(), later()):
            with pytest.raises(OSError, match="the file is gone"):
                await gather_too(client_, given)
    assert sorted(seen) == [0, 0, 0, 1, 1, 1]


async def test_a_client_without_an_event_loop_takes_no_async_texts(served: Any) -> None:
    async def texts() -> AsyncIterator[str]:
        yield "good"

    with Client(served.app.address) as client, pytest.raises(TypeError, match="is for AsyncClient"):
        await asyncio.to_thread(lambda: list(client.classify_stream("sentiment", texts())))
