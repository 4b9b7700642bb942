"""The gauges of indexes, brought up to date now and then: other processes change an index, too."""

import asyncio
import logging
from collections.abc import Mapping

from tuneserve.server.answer.index import Index
from tuneserve.server.metrics import Metrics

logger = logging.getLogger(__name__)

_SECONDS = 10.0


async def follow(indexes: Mapping[str, Index], metrics: Metrics) -> None:
    """Measures the indexes again and again, until it is cancelled."""
    while True:
        for name, index in indexes.items():
            try:
                await measure(name, index, metrics)
            except Exception as error:
                # Searches go on without it. The text may have a path.
                logger.warning("index %s could not be measured: %s", name, type(error).__name__)
        await asyncio.sleep(_SECONDS)


async def measure(name: str, index: Index, metrics: Metrics) -> None:
    """Sets the gauges of an index."""
    for tenant, size in (await index.sizes()).items():
        metrics.index_documents.labels(name, tenant).set(size.documents)
        metrics.index_passages.labels(name, tenant).set(size.passages)
        metrics.index_fragments.labels(name, tenant).set(size.fragments)
        metrics.index_version.labels(name, tenant).set(size.version)
