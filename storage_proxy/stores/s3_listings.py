"""What is in a bucket, page by page: by our own requests, or by the SDK where it has to be asked.

The law: a listing is believed only as far as it answers the question, in order, and ends.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from storage_proxy.common.errors import StorageError
from storage_proxy.stores.port import whole_seconds
from storage_proxy.stores.s3_answers import longest_name
from storage_proxy.stores.s3_errors import translated
from storage_proxy.stores.s3_listing_xml import ListedObject, Listing, ListingQuestion
from storage_proxy.stores.s3_requests import S3Requests

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import ListObjectsV2RequestTypeDef

PAGE = 1000
"""Objects in one answer, at most (S3 API reference, "ListObjectsV2")."""

Deadline = Callable[[str], AbstractAsyncContextManager[None]]


class S3Listings:
    """Lists one bucket. ``requests`` None leaves all to the SDK."""

    def __init__(self, client: "S3Client", bucket: str, requests: S3Requests | None, deadline: Deadline) -> None:
        self._client = client
        self._bucket = bucket
        self._requests = requests
        self._deadline = deadline

    async def objects(self, prefix: str, after: bytes) -> AsyncGenerator[Sequence[ListedObject], None]:
        """Those whose names begin with ``prefix`` and sort after ``after``, of any length; each page has a deadline."""
        start_after = longest_name(after) if after > prefix.encode() else ""
        question = ListingQuestion(prefix, PAGE, start_after)
        previous = b""
        while True:
            async with self._deadline("ListObjectsV2"):
                page = await self._page(question)
            found = []
            for item in page.objects:
                order = item.name.encode()
                if not item.name.startswith(prefix) or order <= previous:
                    raise StorageError("The storage's listing is not of this prefix, or not in order")
                previous = order
                if order > after:  # the start may have been shortened
                    found.append(item)
            if found:
                yield found
            if not page.is_truncated:
                return
            if page.following in {"", question.continuation}:
                raise StorageError("The storage's listing does not end")
            question = replace(question, continuation=page.following)

    async def first(self, prefix: str, count: int = PAGE) -> Sequence[ListedObject]:
        """The first of those whose names begin with ``prefix``; an empty answer also shows that the bucket is there.

        The deadline is the caller's.
        """
        return (await self._page(ListingQuestion(prefix, count))).objects

    async def has(self, name: str) -> bool:
        """Whether there is an object of exactly this name. The deadline is the caller's."""
        return any(item.name == name for item in await self.first(name, 1))

    async def _page(self, question: ListingQuestion) -> Listing:
        with translated("ListObjectsV2"):
            if self._requests is not None and (own := await self._requests.list_objects(question)) is not None:
                return own
            return await self._page_of_sdk(question)

    async def _page_of_sdk(self, question: ListingQuestion) -> Listing:
        asked: ListObjectsV2RequestTypeDef = {
            "Bucket": self._bucket,
            "Prefix": question.prefix,
            "MaxKeys": question.max_keys,
        }
        if question.start_after:
            asked["StartAfter"] = question.start_after
        if question.continuation:
            asked["ContinuationToken"] = question.continuation
        answer = await self._client.list_objects_v2(**asked)
        found = [
            ListedObject(
                item["Key"], item["Size"], item.get("ETag", ""), whole_seconds(item["LastModified"].timestamp())
            )
            for item in answer.get("Contents", [])
        ]
        return Listing(found, answer["IsTruncated"], answer.get("NextContinuationToken", ""))
