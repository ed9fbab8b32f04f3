"""Objects, their versions and uploads that were never completed are removed from S3.

The law: a name is removed only as the listing or the caller writes it, and what the server does not confirm is an
error. Listings begin again after each page of removals, so nothing has to be remembered between two steps.
"""

import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from botocore.exceptions import ClientError

from storage_proxy.common.errors import StorageError
from storage_proxy.stores.s3_answers import may_be_alias
from storage_proxy.stores.s3_errors import answer_of, refusal
from storage_proxy.stores.s3_listings import Deadline, S3Listings

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import (
        ListMultipartUploadsOutputTypeDef,
        MultipartUploadTypeDef,
        ObjectIdentifierTypeDef,
    )

STEP = 1000
"""Names in one request, at most."""

# Not allowed in XML, or not kept by its readers (XML 1.0 sections 2.2 and 2.11): not to be written into DeleteObjects.
_NOT_FOR_XML = re.compile("[\x00-\x1f\x7f\ufffe\uffff]")
_NOT_THERE = frozenset({"NoSuchKey", "NoSuchVersion", "KeyTooLongError"})


class S3Deletion:
    """Removes from one bucket."""

    def __init__(self, client: "S3Client", bucket: str, deadline: Deadline, listings: S3Listings) -> None:
        self._client = client
        self._bucket = bucket
        self._deadline = deadline
        self._listings = listings
        self._tells_versions = True
        self._tells_uploads = True

    async def delete_named(self, names: Sequence[str]) -> None:
        """Remove objects that a caller names: one that may be taken for another only where it is listed."""
        wanted: list[ObjectIdentifierTypeDef] = []
        for name in names:
            # A folder is one only where it is listed: a server of files may have a folder that no object made.
            if may_be_alias(name) or name.endswith("/"):
                async with self._deadline("ListObjectsV2"):
                    if not await self._listings.has(name):
                        continue
            wanted.append({"Key": name})
        for start in range(0, len(wanted), STEP):
            await self._delete(wanted[start : start + STEP])

    async def erase(self, prefix: str) -> AsyncGenerator[int, None]:
        """Remove all that begins with ``prefix``. Uploads first: one that is completed meanwhile is an object then."""
        previous: Any = None
        for page in (self._uploads_page, self._objects_page):
            while found := await page(prefix):
                if found == previous:
                    raise StorageError("The storage keeps what it was told to remove")
                previous = found
                yield len(found)

    async def _uploads_page(self, prefix: str) -> Sequence[tuple[str, str]]:
        """Abort a page of uploads; each as name and id."""
        uploads = (await self._list_uploads(prefix)).get("Uploads", [])
        await self._abort_all(uploads)
        return [(upload["Key"], upload["UploadId"]) for upload in uploads]

    async def _objects_page(self, prefix: str) -> "Sequence[ObjectIdentifierTypeDef]":
        """Delete a page of versions, or of objects where the server knows no versions."""
        found = await self._list_versions(prefix) if self._tells_versions else None
        if found is None:
            self._tells_versions = False
            found = await self._list_objects(prefix)
        if not all(item["Key"].startswith(prefix) for item in found):
            raise StorageError("The storage's listing is not of this prefix")
        if found:
            await self._delete(found)
        return found

    async def discard_uploads(self, prefix: str, older_than: float) -> int:
        """Abort the uploads that were begun before ``older_than``, in seconds since the epoch; how many."""
        discarded = 0
        marker: dict[str, str] = {}
        previous: list[MultipartUploadTypeDef] = []
        while True:
            page = await self._list_uploads(prefix, **marker)
            uploads = page.get("Uploads", [])
            old = [upload for upload in uploads if upload["Initiated"].timestamp() < older_than]
            if old and old == previous:
                raise StorageError("The storage keeps what it was told to remove")
            previous = old
            await self._abort_all(old)
            discarded += len(old)
            if not page.get("IsTruncated"):
                return discarded
            if not old:
                marker = {"KeyMarker": _last_whole_key(uploads)}

    async def _list_uploads(self, prefix: str, **marker: Any) -> "ListMultipartUploadsOutputTypeDef":
        nothing = cast("ListMultipartUploadsOutputTypeDef", {})
        if not self._tells_uploads:
            return nothing
        async with self._deadline("ListMultipartUploads"):
            try:
                answer = await self._client.list_multipart_uploads(
                    Bucket=self._bucket, Prefix=prefix, MaxUploads=STEP, **marker
                )
            except ClientError as error:
                if not _lacks(error):
                    raise
                self._tells_uploads = False
                return nothing
        if not all(upload["Key"].startswith(prefix) for upload in answer.get("Uploads", [])):
            raise StorageError("The storage's list of uploads is not of this prefix")
        return answer

    async def _abort_all(self, uploads: "Iterable[MultipartUploadTypeDef]") -> None:
        for upload in uploads:
            async with self._deadline("AbortMultipartUpload"):
                try:
                    await self._client.abort_multipart_upload(
                        Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                except ClientError as error:
                    if answer_of(error)[1] != "NoSuchUpload":  # completed or aborted meanwhile
                        raise

    async def _list_versions(self, prefix: str) -> "Sequence[ObjectIdentifierTypeDef] | None":
        async with self._deadline("ListObjectVersions"):
            try:
                answer = await self._client.list_object_versions(Bucket=self._bucket, Prefix=prefix, MaxKeys=STEP)
            except ClientError as error:
                if not _lacks(error):
                    raise
                return None
        found: list[Any] = [*answer.get("Versions", []), *answer.get("DeleteMarkers", [])]
        return [{"Key": item["Key"], "VersionId": item["VersionId"]} for item in found]

    async def _list_objects(self, prefix: str) -> "Sequence[ObjectIdentifierTypeDef]":
        async with self._deadline("ListObjectsV2"):
            return [{"Key": item.name} for item in await self._listings.first(prefix, STEP)]

    async def _delete(self, objects: "Sequence[ObjectIdentifierTypeDef]") -> None:
        listed = [item for item in objects if not _NOT_FOR_XML.search(item["Key"])]
        if listed:
            async with self._deadline("DeleteObjects"):
                answer = await self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": listed, "Quiet": True}
                )
            for error in answer.get("Errors", []):
                if error.get("Code") not in _NOT_THERE:
                    raise _refused(error.get("Code", ""))
        for item in objects:
            if _NOT_FOR_XML.search(item["Key"]):
                async with self._deadline("DeleteObject"):
                    which: Any = item
                    await self._client.delete_object(Bucket=self._bucket, **which)


def _lacks(error: ClientError) -> bool:
    """Whether the server says that it has no such call."""
    status, code = answer_of(error)
    return status in {405, 501} or code == "NotImplemented"


def _last_whole_key(uploads: "Sequence[MultipartUploadTypeDef]") -> str:
    """The last key of a page whose uploads are all in it, or the only one.

    By it the next page is asked for: versitygw refuses the marker by an upload that it gives itself.
    """
    keys = sorted({upload["Key"] for upload in uploads}, key=str.encode)
    if not keys:
        raise StorageError("The storage's list of uploads does not end")
    return keys[-2] if len(keys) > 1 else keys[-1]


def _refused(code: str) -> Exception:
    """The port's error for one name that was not removed; its answer has a code and no status."""
    return refusal("DeleteObjects", 500 if code in {"InternalError", "ServiceUnavailable"} else 200, code)
