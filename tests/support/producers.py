"""Producers of blobs: they prepare uploads, put bodies, announce them, delete runs, and try again as real ones do.

The law: the ledger says what was answered with success, and nothing else; the service is judged by it.
"""

import asyncio
import json
import random
import time
import uuid
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from tests.support.deployment import Deployment
from tests.support.programs import API_KEY

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client

_HEADERS = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
_PATIENCE_SECONDS = 180.0
_UNTIL_SECONDS = 10
_SHORTEST_URL_SECONDS = 12


@dataclass
class Ledger:
    """``verified`` has size and CRC-32 by run and path, ``rejected`` paths by run, ``poison`` the messages' values."""

    verified: defaultdict[str, dict[str, tuple[int, str]]] = field(default_factory=lambda: defaultdict(dict))
    rejected: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    deleted: set[str] = field(default_factory=set)
    poison: set[str] = field(default_factory=set)
    retries: int = 0

    @property
    def live(self) -> set[str]:
        return (self.verified.keys() | self.rejected.keys()) - self.deleted

    @property
    def blobs(self) -> int:
        """How many blobs of live runs have to be verified."""
        return sum(len(self.verified[run]) for run in self.live if run in self.verified)


class Producer:
    """Works through the manager, with presigned URLs, and as an external producer straight on S3 and Kafka."""

    def __init__(
        self,
        deployment: Deployment,
        http: aiohttp.ClientSession,
        s3: "S3Client",
        kafka: AIOKafkaProducer,
        rng: random.Random,
        ledger: Ledger,
    ) -> None:
        self._deployment = deployment
        self._http = http
        self._s3 = s3
        self._kafka = kafka
        self._rng = rng
        self.ledger = ledger

    async def api(self, method: str, path: str, body: object = None, *, attempts: int | None = None) -> tuple[int, Any]:
        """Status and answer of the manager; tried again while it, or what is behind it, is away."""
        url = f"{self._deployment.service.manager_url}{path}"
        give_up = time.monotonic() + _PATIENCE_SECONDS
        attempt = 0
        while True:
            attempt += 1
            try:
                async with self._http.request(method, url, json=body, headers=_HEADERS) as answer:
                    answered = answer.status, await answer.json()
                    assert answer.status != 500, f"{method} {path}: {answered}"
                    if answer.status < 500 or attempt == attempts:
                        return answered
            except (aiohttp.ClientError, TimeoutError) as error:
                answered = 0, {"detail": repr(error)}
                if attempt == attempts:
                    return answered
            assert time.monotonic() < give_up, f"{method} {path}: {answered}"
            self.ledger.retries += 1
            await asyncio.sleep(0.2)

    async def prepare_once(self, run_id: str, path: str, body: bytes) -> tuple[int, Any]:
        """Prepare an upload, and do not try again."""
        order = {"run_id": run_id, "path": path, "bucket": "media", "size": len(body), "expires_in": _lifetime()}
        return await self.api("POST", "/v1/uploads", order, attempts=1)

    async def upload(self, run_id: str, path: str, body: bytes, *, via: str | None = None, wait: float = 0.0) -> bool:
        """Prepare an upload and put the body after ``wait`` seconds, until it is there; False when the run is gone."""
        crc32 = f"{zlib.crc32(body):08x}"
        told = {"size": len(body), "crc32": crc32} if self._rng.random() < 0.7 else {}
        order = {"run_id": run_id, "path": path, "bucket": "media", **told} | ({"via": via} if via else {})
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while True:
            status, prepared = await self.api("POST", "/v1/uploads", {**order, "expires_in": _lifetime()})
            if status == 409 and prepared["code"] == "run-deleted":
                return False
            if status == 409 and prepared["code"] == "blob-exists":
                break
            assert status == 201, prepared
            await asyncio.sleep(wait)
            outcome = await self._put(prepared["url"], prepared["headers"], body)
            if outcome in (200, 201, 412) or (via and outcome == 409):
                break
            assert time.monotonic() < give_up, f"{run_id}/{path}: PUT is answered {outcome}"
            self.ledger.retries += 1
            await asyncio.sleep(0.2)
        self.promise(run_id, path, body)
        return True

    async def external(
        self, run_id: str, path: str, body: bytes, *, copies: int = 1, announced_first: float = 0
    ) -> None:
        """Put a blob with the bucket's own keys, and announce it ``copies`` times by message; or that before."""
        message = reference(run_id, path, size=len(body), crc32=f"{zlib.crc32(body):08x}")
        if announced_first:
            await self.publish(run_id, message)
            await asyncio.sleep(announced_first)
        await self.store(run_id, path, body)
        for _ in range(copies - bool(announced_first)):
            await self.publish(run_id, message)
        self.promise(run_id, path, body)

    async def announce(self, run_id: str, path: str, body: bytes) -> None:
        """Announce a blob that is stored."""
        await self.publish(run_id, reference(run_id, path, size=len(body), crc32=f"{zlib.crc32(body):08x}"))
        self.promise(run_id, path, body)

    async def store(self, run_id: str, path: str, body: bytes) -> None:
        """Put an object, unannounced, until it is there."""
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                await self._s3.put_object(Bucket=self._deployment.s3_bucket, Key=f"runs/{run_id}/{path}", Body=body)
            except Exception:  # noqa: BLE001 the client library's own are many, and the server may be away
                assert time.monotonic() < give_up, f"{run_id}/{path}"
                self.ledger.retries += 1
                await asyncio.sleep(0.2)
            else:
                return

    async def poison(self, run_id: str, kinds: Sequence[int] = range(5)) -> None:
        """Publish a message that can never succeed: no JSON, another run's key, an unknown schema, a contradicting
        size, a contradicting CRC-32."""
        path, kind = f"poison/{uuid.uuid4().hex}", self._rng.choice(kinds)
        if kind == 0:
            value = f'{{"schema": 1, "never closed": "{path}'
        elif kind == 1:
            value = reference(run_id, path, key=f"runs/another/{path}")
        elif kind == 2:
            value = reference(run_id, path).replace('"schema": 1', '"schema": 7')
        else:
            await self.store(run_id, path, b"contradicted")
            value = reference(run_id, path, **({"size": 3} if kind == 3 else {"crc32": "00000000"}))
            self.ledger.rejected[run_id].add(path)
        self.ledger.poison.add(value)
        await self.publish(run_id, value)

    async def publish(self, run_id: str, value: str) -> None:
        """Publish on the ingest topic until it is acknowledged."""
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                await self._kafka.send_and_wait(self._deployment.ingest_topic, value.encode(), key=run_id.encode())
            except KafkaError:
                assert time.monotonic() < give_up, value
                self.ledger.retries += 1
                await asyncio.sleep(0.2)
            else:
                return

    async def delete(self, run_id: str) -> None:
        """Delete a run, until that is answered."""
        status, answer = await self.api("DELETE", f"/v1/runs/{run_id}")
        assert status == 202, answer
        self.ledger.deleted.add(run_id)

    async def blobs(self, run_id: str, *, state: str = "all") -> list[dict[str, Any]]:
        """The listing of a run, all pages."""
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            status, page = await self.api("GET", f"/v1/runs/{run_id}/blobs?state={state}&limit=500{cursor}")
            assert status == 200, page
            found += page["blobs"]
            if page["next_cursor"] is None:
                return found
            cursor = f"&cursor={page['next_cursor']}"

    async def objects(self, prefix: str = "runs/") -> dict[str, int]:
        """Sizes of the objects in S3 by key."""
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._deployment.s3_bucket, Prefix=prefix)
        return {item["Key"]: item["Size"] async for page in pages for item in page.get("Contents", [])}

    def body(self, largest: int = 20_000) -> bytes:
        return self._rng.randbytes(self._rng.randrange(1, largest))

    def promise(self, run_id: str, path: str, body: bytes) -> None:
        """The blob is there, and was announced."""
        self.ledger.verified[run_id][path] = (len(body), f"{zlib.crc32(body):08x}")

    async def _put(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        try:
            async with self._http.put(url, data=body, headers=headers) as answer:
                await answer.read()
                return answer.status
        except (aiohttp.ClientError, TimeoutError):
            return 0


@asynccontextmanager
async def producing(deployment: Deployment, rng: random.Random) -> AsyncIterator[Producer]:
    """A producer with connections of its own. Kafka has to be up."""
    kafka = AIOKafkaProducer(
        bootstrap_servers=deployment.backing.kafka.broker.bootstrap_servers,
        acks="all",
        enable_idempotence=True,
        request_timeout_ms=5000,
    )
    timeout = aiohttp.ClientTimeout(total=60, sock_connect=5)
    async with (
        aiohttp.ClientSession(timeout=timeout, skip_auto_headers=["Content-Type"]) as http,
        deployment.backing.s3.server.client() as s3,
    ):
        await kafka.start()
        try:
            yield Producer(deployment, http, s3, kafka, rng, Ledger())
        finally:
            await kafka.stop()


def reference(run_id: str, path: str, *, bucket: str = "media", key: str | None = None, **payload: Any) -> str:
    """A `blob_ref` message."""
    place = {"bucket": bucket, "key": key or f"runs/{run_id}/{path}", "path": path}
    event = {
        "schema": 1,
        "id": str(uuid.uuid4()),
        "type": "blob_ref",
        "run_id": run_id,
        "occurred_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "payload": place | payload,
    }
    return json.dumps(event)


def _lifetime() -> int:
    """Seconds to the end of a step: a run's second pass comes after the step of time in which its last URL ends."""
    left = _UNTIL_SECONDS - int(time.time()) % _UNTIL_SECONDS
    while left < _SHORTEST_URL_SECONDS:
        left += _UNTIL_SECONDS
    return left
