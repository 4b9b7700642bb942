"""The documents of one index, on disk. The only module that knows LanceDB.

A table for each tenant, a row for each passage. One process writes at a time; all read snapshots, which stay as they
are while others write. Knows nothing of models: vectors come with the rows.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import FTS
from lancedb.query import MatchQuery
from numpy.typing import NDArray

from tuneserve.server import concurrency
from tuneserve.server.answer.rows import Found, Row, Size

logger = logging.getLogger(__name__)

# Bytes of memory for each index: of what the full-text index and the tables' descriptions are read into.
_INDEX_CACHE, _METADATA_CACHE = 256 << 20, 64 << 20
# ICU finds the words of all scripts, also of those without spaces, by dictionaries that are in the library. Stems and
# stop words are those of one language.
_WORDS = FTS(base_tokenizer="icu", stem=False, remove_stop_words=False)
# Files are merged this long after a change, not after each of many. Readers of an older version have that long to end.
_TIDY_SECONDS, _KEPT = 2.0, timedelta(minutes=10)
_MADE_BY = b"tuneserve.embedding"
# The reader that stands for everybody; callers' own readers are not empty. A row that has none is found by nobody.
EVERYBODY = ""
# Of a long document, so many passages count in its mean vector.
_MEANT = 8


class OtherVectors(Exception):
    """The documents that are there have vectors of another model."""


_COLUMNS = tuple(Row.__dataclass_fields__)


def _schema(width: int, made_by: str) -> pa.Schema:
    text, number, texts = pa.string(), pa.int32(), pa.list_(pa.string())
    kinds = [text, number, text, text, text, number, number, number, texts, texts, text, pa.list_(pa.float32(), width)]
    return pa.schema(list(zip(_COLUMNS, kinds, strict=True)), metadata={_MADE_BY: made_by.encode()})


class Store:
    """A directory of tables."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError if the directory can't be made."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._session = lancedb.Session(_INDEX_CACHE, _METADATA_CACHE)
        self._documents: dict[str, Documents] = {}

    async def documents(self, tenant: str) -> "Documents":
        """Returns the documents of a tenant, whose name is one that a file may have."""
        if tenant not in self._documents:
            # Each reading looks for what other processes wrote.
            connection = await lancedb.connect_async(
                self._directory, read_consistency_interval=timedelta(0), session=self._session
            )
            self._documents.setdefault(tenant, Documents(connection, tenant, self._directory / f"{tenant}.lock"))
        return self._documents[tenant]

    async def sizes(self) -> dict[str, Size]:
        """Returns how much each tenant has."""
        names = await concurrency.apart(lambda: [one.stem for one in self._directory.glob("*.lance")])
        found = {name: await (await self.documents(name)).size() for name in sorted(names)}
        return {name: size for name, size in found.items() if size}

    async def close(self) -> None:
        """Ends the work in the background."""
        for one in self._documents.values():
            await one.close()


class Documents:
    """The documents of one tenant."""

    def __init__(self, connection: lancedb.AsyncConnection, table: str, lock: Path) -> None:
        self._connection = connection
        self._name = table
        self._lock = lock
        self._writer = asyncio.Lock()
        self._changed = False
        self._tidying: list[asyncio.Task[None]] = []

    async def snapshot(self) -> "Snapshot | None":
        """Returns the documents as they are now; None if nothing was ever written."""
        table = await self._table()
        # A process that died while it made the table left one without documents.
        if table is None or not await table.list_indices():
            return None
        version = await table.version()
        await table.checkout(version)
        made_by = (await table.schema()).metadata[_MADE_BY].decode()
        return Snapshot(table, version, made_by)

    async def replace(self, made_by: str, documents: Sequence[str], rows: Sequence[Row]) -> int:
        """Writes documents in place of those of the same ids, in one commit. Returns the new version.

        `made_by` is what made the vectors. If cancelled, it ends what it began. Raises OtherVectors.
        """
        schema = _schema(len(rows[0].vector), made_by)
        new = await concurrency.apart(_in_columns, rows, schema)

        async def write() -> int:
            table = await self._made(schema)
            if (await table.schema()).metadata != schema.metadata:
                raise OtherVectors
            merge = table.merge_insert(["document", "number"])
            merge.when_matched_update_all().when_not_matched_insert_all()
            merge.when_not_matched_by_source_delete(_among("document", documents))
            return int((await merge.execute(new)).version)

        async with self._writing():
            return await concurrency.to_the_end(write())

    async def delete(self, documents: Sequence[str]) -> tuple[int, int]:
        """Deletes documents. Returns how many there were, and the version without them."""

        async def write() -> tuple[int, int]:
            seen, table = await self.snapshot(), await self._table()
            if seen is None or table is None:
                return 0, 0
            count = len(await seen.digests(documents))
            if not count:
                return 0, seen.version
            return count, int((await table.delete(_among("document", documents))).version)

        async with self._writing():
            return await concurrency.to_the_end(write())

    async def size(self) -> Size | None:
        """Returns how much there is now; None if nothing was ever written."""
        table = await self._table()
        if table is None:
            return None
        # A dict, whatever its annotation says.
        stats: Any = await table.stats()
        fragments = stats["fragment_stats"]["num_fragments"]
        return Size(await table.count_rows("number = 0"), stats["num_rows"], fragments, await table.version())

    async def close(self) -> None:
        """Ends the work in the background."""
        await concurrency.end(self._tidying)

    async def _table(self) -> lancedb.AsyncTable | None:
        try:
            return await self._connection.open_table(self._name)
        except ValueError as error:
            if "was not found" in str(error):
                return None
            raise

    async def _made(self, schema: pa.Schema) -> lancedb.AsyncTable:
        table = await self._table() or await self._connection.create_table(self._name, schema=schema)
        if not await table.list_indices():
            await table.create_index("passage", config=_WORDS)
        return table

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[None]:
        """Waits until nobody else writes, in this process or another. A process that is killed holds no lock."""
        async with self._writer, concurrency.locked(self._lock):
            yield
        self._changed = True
        if not self._tidying or self._tidying[0].done():
            self._tidying = [asyncio.create_task(self._tidy())]

    async def _tidy(self) -> None:
        """Merges small files, adds new passages to the full-text index, and deletes versions that nobody reads."""
        while self._changed:
            await asyncio.sleep(_TIDY_SECONDS)
            self._changed = False
            try:
                async with self._writing():
                    if table := await self._table():
                        await table.optimize(cleanup_older_than=_KEPT)
            except Exception as error:
                # Searches go on without it. The text may have a path.
                logger.warning("an index could not be optimized: %s", type(error).__name__)
            self._changed = False


class Snapshot:
    """The documents at one version."""

    def __init__(self, table: lancedb.AsyncTable, version: int, made_by: str) -> None:
        self._table = table
        self.version = version
        self.made_by = made_by

    async def digests(self, documents: Sequence[str]) -> dict[str, str]:
        """Returns the digests of those documents that there are, by id."""
        query = self._table.query().where(_among("document", documents)).select(["document", "digest"])
        found = await query.to_arrow()
        return dict(zip(found["document"].to_pylist(), found["digest"].to_pylist(), strict=True))

    async def vectors(self, documents: Sequence[str], readers: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Returns the mean vector of each of those documents that one of the readers may read, by id."""
        where = f"{_among('document', documents)} AND {_readable(readers)} AND number < {_MEANT}"
        found = await self._table.query().where(where).select(["document", "vector"]).to_arrow()
        vectors: dict[str, list[NDArray[np.float32]]] = {}
        for document, vector in zip(found["document"].to_pylist(), _matrix(found), strict=True):
            vectors.setdefault(document, []).append(vector)
        return {document: np.mean(some, axis=0) for document, some in vectors.items()}

    async def search(
        self,
        vector: NDArray[np.float32],
        words: str,
        readers: Sequence[str],
        filters: Sequence[tuple[str, Sequence[str]]],
        most: int,
        without: Sequence[str] = (),
    ) -> list[Found]:
        """Returns the `most` nearest passages by vector, and as many by words, each once, in no order.

        Conditions hold before anything is counted: for one of the readers, with one of the values for each key, and of
        other documents than those `without`.
        """
        conditions = [_readable(readers)]
        conditions += [_shares("tags", [f"{key}={value}" for value in values]) for key, values in filters]
        conditions += [f"NOT ({_among('document', without)})"] * bool(without)
        where = " AND ".join(conditions)
        by_words = self._table.query().nearest_to_text(MatchQuery(words, "passage"))
        by_vector = self._table.query().nearest_to(vector).column("vector").distance_type("cosine")
        keyword, dense = await asyncio.gather(
            by_words.where(where).limit(most).select([*_COLUMNS, "_score"]).to_arrow(),
            by_vector.where(where).limit(most).select([*_COLUMNS, "_distance"]).to_arrow(),
        )
        found = {(row.document, row.number): Found(row, 0.0) for row in _rows(dense)}
        scores: Sequence[float] = keyword["_score"].to_pylist()
        found |= {
            (row.document, row.number): Found(row, score) for row, score in zip(_rows(keyword), scores, strict=True)
        }
        return list(found.values())


def _in_columns(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in _COLUMNS}
    numbers = pa.array(np.concatenate(columns["vector"]))
    columns["vector"] = pa.FixedSizeListArray.from_arrays(numbers, len(rows[0].vector))
    return pa.table(columns, schema=schema)


def _rows(found: pa.Table) -> list[Row]:
    rows = found.select(_COLUMNS[:-1]).to_pylist()
    return [Row(**row, vector=vector) for row, vector in zip(rows, _matrix(found), strict=True)]


def _matrix(found: pa.Table) -> NDArray[np.float32]:
    vectors = found["vector"].combine_chunks()
    matrix: NDArray[np.float32] = vectors.flatten().to_numpy(zero_copy_only=False)
    return matrix.reshape(len(found), vectors.type.list_size)


def _among(column: str, values: Sequence[str]) -> str:
    return f"{column} IN ({_listed(values)})"


def _readable(readers: Sequence[str]) -> str:
    return _shares("readers", [EVERYBODY, *readers])


def _shares(column: str, values: Sequence[str]) -> str:
    return f"array_has_any({column}, [{_listed(values)}])"


def _listed(values: Sequence[str]) -> str:
    # In SQL, only the quote itself has a meaning inside quotes.
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)
