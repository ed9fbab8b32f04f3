"""The configured buckets by name."""

from collections.abc import Iterator, Mapping

from storage_proxy.common.errors import BucketNotFound
from storage_proxy.stores.port import BlobStore


class Buckets:
    """Name -> store."""

    def __init__(self, stores: Mapping[str, BlobStore]) -> None:
        self._stores = dict(stores)

    def __iter__(self) -> Iterator[tuple[str, BlobStore]]:
        return iter(self._stores.items())

    def get(self, name: str) -> BlobStore:
        """The store of bucket ``name``. Raises `BucketNotFound`."""
        store = self._stores.get(name)
        if store is None:
            raise BucketNotFound
        return store
