"""The manager's client of the storage proxy's RPC.

The law: every call here is idempotent, so one that got no answer is tried again, a bounded number of times within the
call's deadline; every failure is one of our errors.
"""

import asyncio
import io
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError

from manager_api.metrics import ProxyCallMetrics
from manager_api.proxy_problems import error_of
from storage_proxy.common.errors import ServiceError, ShuttingDown, StorageError, StorageTimeout, StorageUnavailable
from storage_proxy.common.problems import PROBLEM_CONTENT_TYPE
from storage_proxy.common.service.middleware import REQUEST_ID_HEADER
from storage_proxy.common.wire import ArchiveSelection, BlobAddress, BlobDescription, PlannedArchive

MAX_ANSWER_BYTES = 64 << 20
"""Room for a problem with 100,000 missing keys."""

_BLOBS = "/rpc/v1/blobs"
_ARCHIVES = "/rpc/v1/archives"
_HEALTH = "/rpc/v1/health"

_Answer = TypeVar("_Answer", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class CallPolicy:
    """Bounds of a call, in seconds. A retry waits for a random part of a time that doubles from ``first_wait``."""

    connect_timeout: float = 5.0
    stat_timeout: float = 40.0
    plan_timeout: float = 600.0
    retries: int = 2
    first_wait: float = 0.2


@dataclass(frozen=True, slots=True)
class _Call:
    operation: str
    method: str
    path: str
    timeout: float
    request_id: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


class _Unanswered(Exception):
    """Nothing came back that says what became of the request; ``error`` is what that means in the end."""

    def __init__(self, error: ServiceError) -> None:
        super().__init__(error.detail)
        self.error = error


class ProxyClient:
    """Asks the proxy at ``rpc_url`` over ``session``, which stays its owner's to close."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        metrics: ProxyCallMetrics,
        *,
        rpc_url: str,
        rpc_secret: str,
        policy: CallPolicy,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._session = session
        self._metrics = metrics
        self._rpc_url = rpc_url
        self._headers = {"Authorization": f"Bearer {rpc_secret}"}
        self._policy = policy
        self._jitter = jitter

    async def stat_blob(self, address: BlobAddress, *, request_id: str) -> BlobDescription:
        """The blob as it is now. Raises as the proxy says, and `StorageUnavailable` or `StorageTimeout`."""
        query = {"bucket": address.bucket, "key": address.key}
        timeout = self._policy.stat_timeout
        return await self._ask(_Call("stat_blob", "GET", _BLOBS, timeout, request_id, query), BlobDescription)

    async def plan_archive(self, selection: ArchiveSelection, *, request_id: str) -> PlannedArchive:
        """The archive of ``selection``, decided and kept; asking again gives the same one. Raises as `stat_blob`."""
        body = selection.model_dump_json(exclude_none=True).encode()
        timeout = self._policy.plan_timeout
        call = _Call("plan_archive", "POST", _ARCHIVES, timeout, request_id, body=body)
        return await self._ask(call, PlannedArchive)

    async def probe(self) -> None:
        """Whether the proxy answers and accepts our secret; one try. Raises `StorageUnavailable` with the reason."""
        call = _Call("probe", "GET", _HEALTH, self._policy.stat_timeout, "probe")
        try:
            async with asyncio.timeout(call.timeout), self._send(call) as response:
                status = response.status
        except (aiohttp.ClientError, TimeoutError) as error:
            raise StorageUnavailable("cannot be reached") from error
        if status == 401:
            raise StorageUnavailable("refuses the RPC secret")
        if status != 200:
            raise StorageUnavailable(f"answers {status}")

    async def _ask(self, call: _Call, model: type[_Answer]) -> _Answer:
        started = time.monotonic()
        try:
            return _parsed(await self._answer(call), model)
        except ServiceError as error:
            self._metrics.errors.labels(call.operation, error.code).inc()
            raise
        finally:
            self._metrics.seconds.labels(call.operation).observe(time.monotonic() - started)

    async def _answer(self, call: _Call) -> bytes:
        """The body of the answer, once there is one."""
        error: ServiceError = StorageTimeout("The storage proxy did not answer in time")
        try:
            async with asyncio.timeout(call.timeout):
                for attempt in range(self._policy.retries + 1):
                    if attempt:
                        self._metrics.retries.labels(call.operation).inc()
                        await asyncio.sleep(self._policy.first_wait * 2 ** (attempt - 1) * self._jitter())
                    try:
                        return await self._try(call)
                    except _Unanswered as unanswered:
                        error = unanswered.error
        except TimeoutError as cause:
            raise error from cause
        raise error

    async def _try(self, call: _Call) -> bytes:
        try:
            async with self._send(call) as response:
                body = await _read(response)
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            raise _Unanswered(StorageUnavailable("The storage proxy cannot be reached")) from error
        except aiohttp.ClientError as error:
            raise StorageError("The storage proxy gave an answer that is not understood") from error
        if response.status in (200, 201):
            return body
        if response.status == 503 and response.content_type != PROBLEM_CONTENT_TYPE:
            raise _Unanswered(StorageUnavailable("The storage proxy is unavailable"))  # a balancer's word
        problem = error_of(response.status, response.content_type, response.headers.get("Retry-After"), body)
        if isinstance(problem, ShuttingDown):  # the next connection reaches another replica
            raise _Unanswered(StorageUnavailable("The storage proxy is shutting down"))
        raise problem

    def _send(self, call: _Call) -> "aiohttp.client._RequestContextManager":
        headers = {**self._headers, REQUEST_ID_HEADER: call.request_id}
        if call.body is not None:
            headers["Content-Type"] = "application/json"
        return self._session.request(
            call.method,
            self._rpc_url + call.path,
            params=call.query,
            data=None if call.body is None else io.BytesIO(call.body),  # aiohttp wants large bodies as files
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._policy.connect_timeout),
        )


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise StorageError("The storage proxy's answer is too long")
    return bytes(body)


def _parsed(body: bytes, model: type[_Answer]) -> _Answer:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise StorageError("The storage proxy gave an answer that is not understood") from error
