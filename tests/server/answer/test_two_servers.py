"""Two servers with one index, while a new version of its embedding model takes over in one after the other."""

import asyncio
import itertools

from tuneserve.v1 import model_admin_pb2, model_pb2

from ..conftest import Models
from .conftest import Answers

TEXTS = ("the film was good", "the movie was bad", "tokyo")


async def searches(server: Answers, ended: asyncio.Event) -> list[str]:
    """Searches until told to end; each search finds what is there. Returns the versions that read the queries."""
    versions = []
    while not ended.is_set():
        found = await server.search("film", limit=50)
        assert {"0", "1", "2"} <= {one.document_id for one in found.passages}
        versions.append(found.model_version)
    return versions


async def writes(server: Answers, id_: str, ended: asyncio.Event) -> int:
    """Writes a document again and again until told to end. Returns how often."""
    for number in itertools.count():
        if ended.is_set():
            return number
        assert (await server.upsert({"id": id_, "text": f"hamburg {'good ' * (number % 9 + 1)}"})).written == 1


async def test_no_search_fails_while_a_model_is_swapped(answering, make_bert, tmp_path):
    make_bert("Model", [], hidden_size=48).rename(tmp_path / "other")
    async with answering({"models_root": tmp_path}) as one, answering({"models_root": tmp_path}) as two:
        made_by = (
            await one.upsert(*({"id": str(place), "text": text} for place, text in enumerate(TEXTS)))
        ).model_version
        ended = asyncio.Event()
        searching = [asyncio.create_task(searches(server, ended)) for server in (one, two) for _ in range(4)]
        writing = [asyncio.create_task(writes(server, id_, ended)) for server, id_ in ((one, "a"), (two, "b"))]
        for server in (one, two):
            admin = Models(server.server.admin)
            other = await admin.load("vectors", "other")
            alias = model_pb2.Alias(name="vectors", targets=[model_pb2.AliasTarget(model=other.id, weight=1)])
            await admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=alias))
            await asyncio.sleep(0.3)
        ended.set()
        versions = await asyncio.gather(*searching)
        assert all(set(some) == {made_by} for some in versions), "vectors of two models are not compared"
        assert min(map(len, versions)) > 2
        assert min(await asyncio.gather(*writing)) > 0
