"""How a call reaches the storage proxy's RPC: the secret, the deadline, the retries.

The law: every call is idempotent, so one that got no answer is tried again, a bounded number of times within the
call's deadline; every failure is one of our errors.
"""

import asyncio
import io
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError

from manager_api.metrics import ProxyCallMetrics
from manager_api.proxy_problems import error_of
from storage_proxy.common.errors import ServiceError, ShuttingDown, StorageError, StorageTimeout, StorageUnavailable
from storage_proxy.common.large_json import by_size
from storage_proxy.common.problems import PROBLEM_CONTENT_TYPE
from storage_proxy.common.service.middleware import REQUEST_ID_HEADER

MAX_ANSWER_BYTES = 64 << 20
"""Room for a problem with 100,000 missing keys."""

_SUCCESS = (200, 201, 202)

_Answer = TypeVar("_Answer", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of a call, in seconds. A retry waits for a random part of a time that doubles from ``first_wait``."""

    connect_timeout: float = 5.0
    retries: int = 2
    first_wait: float = 0.2


@dataclass(frozen=True, slots=True)
class Call:
    """One call: ``operation`` names it in the metrics; ``timeout`` (seconds) is for all its tries together.

    ``for_caller`` are errors that here concern the caller, and not the two programs as elsewhere.
    """

    operation: str
    method: str
    path: str
    timeout: float
    request_id: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    for_caller: Collection[type[ServiceError]] = ()


class _Unanswered(Exception):
    """Nothing came back that says what became of the request; ``error`` is what that means in the end."""

    def __init__(self, error: ServiceError) -> None:
        super().__init__(error.detail)
        self.error = error


class RpcTransport:
    """Sends calls to the proxy at ``rpc_url`` over ``session``, which stays its owner's to close."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        metrics: ProxyCallMetrics,
        *,
        rpc_url: str,
        rpc_secret: str,
        policy: RetryPolicy,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._session = session
        self._metrics = metrics
        self._rpc_url = rpc_url
        self._headers = {"Authorization": f"Bearer {rpc_secret}"}
        self._policy = policy
        self._jitter = jitter

    async def ask(self, call: Call, model: type[_Answer]) -> _Answer:
        """The answer to ``call``. Raises as the proxy says, and `StorageUnavailable` or `StorageTimeout`."""
        started = time.monotonic()
        try:
            return await by_size(await self._answer(call), partial(_parsed, model=model))
        except ServiceError as error:
            self._metrics.errors.labels(call.operation, error.code).inc()
            raise
        finally:
            self._metrics.seconds.labels(call.operation).observe(time.monotonic() - started)

    async def status_of(self, call: Call) -> int:
        """The status of the answer to one try of ``call``. Raises `aiohttp.ClientError` and TimeoutError."""
        async with asyncio.timeout(call.timeout), self._send(call) as response:
            return response.status

    async def _answer(self, call: Call) -> bytes:
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

    async def _try(self, call: Call) -> bytes:
        try:
            async with self._send(call) as response:
                body = await _read(response)
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            raise _Unanswered(StorageUnavailable("The storage proxy cannot be reached")) from error
        except aiohttp.ClientError as error:
            raise StorageError("The storage proxy gave an answer that is not understood") from error
        if response.status in _SUCCESS:
            return body
        if response.status == 503 and response.content_type != PROBLEM_CONTENT_TYPE:
            raise _Unanswered(StorageUnavailable("The storage proxy is unavailable"))  # a balancer's word
        reading = partial(
            error_of,
            status=response.status,
            content_type=response.content_type,
            retry_after=response.headers.get("Retry-After"),
            for_caller=call.for_caller,
        )
        problem = await by_size(body, reading)
        if isinstance(problem, ShuttingDown):  # the next connection reaches another replica
            raise _Unanswered(StorageUnavailable("The storage proxy is shutting down"))
        raise problem

    def _send(self, call: Call) -> "aiohttp.client._RequestContextManager":
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
