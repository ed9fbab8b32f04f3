"""Reading and listing blobs to the end, for tests."""

from storage_proxy.stores.port import BlobReader, BlobStat, BlobStore


async def read_all(reader: BlobReader) -> bytes:
    """Everything the reader gives; the reader is closed."""
    content = bytearray()
    try:
        while chunk := await reader.read():
            content += chunk
    finally:
        await reader.aclose()
    return bytes(content)


async def read_range(store: BlobStore, key: str, start: int, stop: int, if_match: str | None = None) -> bytes:
    return await read_all(await store.open(key, start=start, stop=stop, if_match=if_match))


async def list_all(store: BlobStore, prefix: str = "", start_after: str = "") -> list[BlobStat]:
    return [blob async for page in store.list(prefix, start_after=start_after) for blob in page]


async def list_keys(store: BlobStore, prefix: str = "", start_after: str = "") -> list[str]:
    return [blob.key for blob in await list_all(store, prefix, start_after)]


async def found(store: BlobStore, key: str) -> BlobStat:
    """The blob, which must be there."""
    blob = await store.stat(key)
    assert blob is not None, key
    return blob
