"""HeadObject and PutObject by our own requests: where they go, how they are signed, when the SDK is asked instead.

The server is the real one behind `FaultyProxy`, but where an address is only looked at.
"""

import random
import threading
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

import aioboto3
import pytest
from aiobotocore.config import AioConfig
from botocore.exceptions import NoCredentialsError

from storage_proxy.common.errors import StorageError, StorageUnavailable
from storage_proxy.stores import s3_requests
from storage_proxy.stores.port import UploadTerms
from storage_proxy.stores.s3_signer import Address, Signer, address_of, chain_keys, fixed_keys
from storage_proxy.stores.s3_signing import Credentials
from tests.support.blobs import found, read_range
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.s3 import S3Bucket, open_store, shared_session
from tests.support.s3_answers import asked_by
from tests.support.turns import turns_beside


async def address(bucket: str = "bucket", **settings: Any) -> Address | None:
    given: dict[str, Any] = {"region_name": "eu-west-1", "aws_access_key_id": "k", "aws_secret_access_key": "s"}
    async with shared_session().client("s3", **(given | settings)) as client:
        return await address_of(client, bucket)


@pytest.mark.parametrize(
    ("endpoint", "style", "bucket", "expected"),
    [
        (None, "auto", "bucket", ("https://bucket.s3.eu-west-1.amazonaws.com", "/")),
        (None, "auto", "dotted.bucket", ("https://s3.eu-west-1.amazonaws.com", "/dotted.bucket/")),
        (None, "path", "bucket", ("https://s3.eu-west-1.amazonaws.com", "/bucket/")),
        ("http://127.0.0.1:7070", "auto", "bucket", ("http://127.0.0.1:7070", "/bucket/")),
        ("https://s3.example.com", "virtual", "bucket", ("https://bucket.s3.example.com", "/")),
        ("https://s3.example.com:443", "path", "bucket", ("https://s3.example.com", "/bucket/")),
        ("https://s3.example.com/under/here", "path", "bucket", ("https://s3.example.com", "/under/here/bucket/")),
        ("http://[::1]:7070", "path", "bucket", ("http://[::1]:7070", "/bucket/")),
    ],
)
async def test_the_sdk_decides_where_a_bucket_is(
    endpoint: str | None, style: Any, bucket: str, expected: tuple[str, str]
) -> None:
    config = AioConfig(signature_version="s3v4", s3={"addressing_style": style})
    found = await address(bucket, endpoint_url=endpoint, config=config)
    assert found is not None
    assert (found.origin, found.path) == expected
    assert found.host == found.origin.partition("//")[2]
    assert found.region == "eu-west-1"
    url, _ = await Signer(found, partial(fixed_keys, "k", "s")).signed_query({"prefix": "a b/"})
    assert url == f"{expected[0]}{expected[1].removesuffix('/') or '/'}?prefix=a%20b%2F"


async def test_the_region_of_an_access_point_is_signed_with() -> None:
    found = await address(
        "arn:aws:s3:us-west-2:123456789012:accesspoint/name", config=AioConfig(s3={"use_arn_region": True})
    )
    assert found is not None
    assert (found.host, found.region) == ("name-123456789012.s3-accesspoint.us-west-2.amazonaws.com", "us-west-2")


async def test_a_bucket_that_is_signed_for_in_another_way_is_left_to_the_sdk() -> None:
    assert await address("bucket--euw1-az1--x-s3") is None
    assert await address("arn:aws:s3-object-lambda:eu-west-1:123456789012:accesspoint/name") is None


async def test_a_name_that_no_bucket_can_have_is_an_error_of_each_call(s3_bucket: S3Bucket) -> None:
    async with open_store(replace(s3_bucket.options(), bucket="no bucket/at all")) as store:
        for call in (store.stat("k"), store.probe(), store.presign_put("k", UploadTerms(), expires_in=60)):
            with pytest.raises(StorageError):
                await call


async def test_finding_an_address_leaves_the_client_as_it_was(s3_bucket: S3Bucket) -> None:
    await address_of(s3_bucket.client, s3_bucket.name)
    await s3_bucket.client.put_object(Bucket=s3_bucket.name, Key="k", Body=b"1")
    assert (await s3_bucket.client.head_object(Bucket=s3_bucket.name, Key="k"))["ContentLength"] == 1


async def test_keys_come_from_the_provider_chain_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    assert await chain_keys(aioboto3.Session()) == Credentials("id", "secret", "token")


async def test_no_keys_are_the_sdks_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(NoCredentialsError):
        await chain_keys(aioboto3.Session())


async def test_a_stat_is_asked_without_the_sdk(s3_bucket: S3Bucket, faulty: FaultyProxy) -> None:
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store:
        await store.put("k", b"1")
        await found(store, "k")
    assert [asked_by(r.headers) for r in faulty.requests if r.method == "HEAD"] == ["us"]


async def test_the_keys_of_the_environment_are_used_where_the_options_have_none(
    s3_bucket: S3Bucket, faulty: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_bucket.server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_bucket.server.secret_key)
    options = replace(s3_bucket.options(endpoint=faulty.endpoint), access_key=None, secret_key=None)
    async with open_store(options) as store:
        await s3_bucket.client.put_object(Bucket=s3_bucket.name, Key="k", Body=b"1")
        assert (await found(store, "k")).size == 1


async def test_a_large_object_is_put_without_the_sdk_and_others_have_their_turns(
    s3_bucket: S3Bucket, faulty: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real server checks the signature, the length, the sha256 and the CRC-32."""
    content, hashed_by = random.Random(8).randbytes((12 << 20) + 7), []

    def hashing(body: bytes) -> Any:
        hashed_by.append(threading.get_ident())
        return sha256(body)

    monkeypatch.setattr(s3_requests, "sha256", hashing)

    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store:
        faulty.fault(Fault(method="PUT", times=1, cut_head=True))
        turns, _ = await turns_beside(store.put("k/é", content))
        assert await read_range(store, "k/é", 0, len(content)) == content
    assert turns > len(content) / (256 << 10)
    assert len(hashed_by) == 1
    assert threading.get_ident() not in hashed_by
    assert [asked_by(r.headers) for r in faulty.requests if r.method == "PUT"] == ["us", "us"]


async def test_a_body_is_sent_in_pieces() -> None:
    content = random.Random(9).randbytes(700_000)
    pieces = [bytes(piece) async for piece in s3_requests._pieces(content)]
    assert b"".join(pieces) == content
    assert max(map(len, pieces)) == 256 << 10


@pytest.mark.parametrize("status", [301, 400])
async def test_an_answer_to_a_put_that_the_sdk_understands_better_is_left_to_it(
    s3_bucket: S3Bucket, faulty: FaultyProxy, status: int
) -> None:
    """The first answer is made up, as one from another region."""
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store:
        faulty.fault(Fault(method="PUT", times=1, status=status, code="AuthorizationHeaderMalformed"))
        await store.put("k", b"123")
        assert (await found(store, "k")).size == 3
    assert [asked_by(r.headers) for r in faulty.requests if r.method == "PUT"] == ["us", "sdk"]


@pytest.mark.parametrize("status", [301, 307, 400])
async def test_an_answer_that_the_sdk_understands_better_is_left_to_it(
    s3_bucket: S3Bucket, faulty: FaultyProxy, status: int
) -> None:
    """The first answer is made up, as one from another region."""
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store:
        await store.put("k", b"1")
        faulty.fault(Fault(method="HEAD", times=1, status=status))
        assert (await found(store, "k")).size == 1
    assert [asked_by(r.headers) for r in faulty.requests if r.method == "HEAD"] == ["us", "sdk"]


async def test_a_connection_that_breaks_is_tried_again(s3_bucket: S3Bucket, faulty: FaultyProxy) -> None:
    async with open_store(replace(s3_bucket.options(endpoint=faulty.endpoint), max_attempts=3)) as store:
        await store.put("k", b"1")
        faulty.fault(Fault(method="HEAD", times=2, refuse=True))
        assert (await found(store, "k")).size == 1


async def test_attempts_are_bounded(s3_bucket: S3Bucket, faulty: FaultyProxy) -> None:
    async with open_store(replace(s3_bucket.options(endpoint=faulty.endpoint), max_attempts=3)) as store:
        faulty.fault(Fault(method="HEAD", status=503))
        with pytest.raises(StorageUnavailable):
            await store.stat("k")
    assert faulty.count("HEAD") == 3


@pytest.mark.parametrize(
    "headers",
    [{"etag": None}, {"last-modified": None}, {"last-modified": "yesterday"}, {"content-length": None}],
    ids=str,
)
async def test_an_answer_that_makes_no_sense_is_an_error(
    s3_bucket: S3Bucket, faulty: FaultyProxy, headers: dict[str, str | None]
) -> None:
    async with open_store(s3_bucket.options(endpoint=faulty.endpoint)) as store:
        await store.put("k", b"1")
        faulty.fault(Fault(method="HEAD", headers=headers))
        with pytest.raises(StorageError):
            await store.stat("k")


async def test_a_signer_signs_with_the_moment_of_its_clock() -> None:
    async def keys() -> Credentials:
        return await fixed_keys("id", "secret")

    signer = Signer(Address("http://h", "h", "/b/", "us-east-1"), keys, clock=lambda: 86_400.9)
    url, headers = await signer.signed("HEAD", "ü/k", {})
    assert url == "http://h/b/%C3%BC/k"
    assert headers["x-amz-date"] == "19700102T000000Z"
    assert "X-Amz-Date=19700102T000000Z" in await signer.presigned("GET", "k", {}, expires_in=5)
