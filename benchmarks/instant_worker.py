"""The ingest worker as `storage-proxy worker ingest` runs it, over buckets that answer from memory at once.

So it is seen what everything but the HeadObject costs: Kafka, parsing, deciding, recording.
"""

import asyncio
import dataclasses
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from storage_proxy.bus.metrics import BusMetrics
from storage_proxy.common.errors import BlobNotFound, StorageError
from storage_proxy.common.service.endpoints import add_endpoints, endpoints_of
from storage_proxy.common.service.listener import Listener
from storage_proxy.common.service.operations import Health, HealthHandlers
from storage_proxy.common.service.process import serve_until_signal
from storage_proxy.ingest.verification import Verifier
from storage_proxy.runtime.backends import open_bus
from storage_proxy.runtime.core import Core, open_core
from storage_proxy.runtime.workers import Role, workers
from storage_proxy.settings import ProxySettings
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.port import BlobReader, BlobStat


class InstantBucket:
    """A `BlobStore` where every blob is there, of the same size and checksum."""

    def __init__(self, size: int, crc32: int) -> None:
        self._size = size
        self._crc32 = crc32

    async def stat(self, key: str) -> BlobStat:
        return BlobStat(key, self._size, f'"{hash(key):x}"', 0, "application/octet-stream", None, self._crc32)

    async def open(self, key: str, *, start: int, stop: int, if_match: str | None) -> BlobReader:
        raise BlobNotFound

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Sequence[BlobStat]]:
        nothing: Sequence[Sequence[BlobStat]] = ()
        for page in nothing:
            yield page

    async def put(self, key: str, body: bytes) -> None:
        raise StorageError

    async def probe(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


def instant(core: Core, size: int, crc32: int) -> Core:
    """``core`` with its buckets replaced."""
    buckets = Buckets({name: InstantBucket(size, crc32) for name, _ in core.buckets})
    options, metrics = core.ingest_options, core.ingest_metrics
    verifier = Verifier(core.store, core.records, buckets, options=options, metrics=metrics)
    return dataclasses.replace(core, buckets=buckets, verifier=verifier)


async def main(config: Path, size: int, crc32: int) -> None:
    settings = ProxySettings.load(config)
    async with AsyncExitStack() as stack:
        core = instant(await stack.enter_async_context(open_core(settings)), size, crc32)
        metrics = BusMetrics(core.registry)
        bus = await open_bus(settings, stack, observer=metrics)
        health = Health()
        operations = Listener("operations", settings.operations.listen)
        add_endpoints(operations.app, endpoints_of(HealthHandlers(health)))
        work = workers(core, bus, metrics, {Role.INGEST})
        await serve_until_signal((), health=health, drain_seconds=1, operations=operations, work=work)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
