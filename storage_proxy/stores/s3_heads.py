"""HeadObject without the SDK, whose own costs are 1 ms of CPU: what minting and ingesting ask by the thousand.

The law: an answer that the SDK would understand better, a redirect or a 400, is left to the SDK.
"""

import asyncio
import random
from collections.abc import Callable, Mapping

import aiohttp
from yarl import URL

from storage_proxy.stores.s3_attempts import attempts
from storage_proxy.stores.s3_errors import asks_for_patience, refusal
from storage_proxy.stores.s3_signer import Signer

_QUESTION = {"accept-encoding": "identity", "x-amz-checksum-mode": "ENABLED"}


class HeadRequests:
    """Asks through ``session``; the caller closes it, and has a deadline over all attempts."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        signer: Signer,
        *,
        max_attempts: int,
        proxy: str | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._session = session
        self._signer = signer
        self._max_attempts = max_attempts
        self._proxy = proxy
        self._jitter = jitter

    async def head(self, name: str) -> Mapping[str, str] | None:
        """The headers of the answer, by names in any case; None when the SDK has to be asked instead.

        Raises the port's errors, `BlobNotFound` among them, and those of aiohttp.
        """
        for is_last, pause in attempts(self._max_attempts, self._jitter):
            try:
                status, headers = await self._ask(name)
                if is_last or not asks_for_patience(status, ""):
                    return self._answered(status, headers)
            except (aiohttp.ClientError, OSError):  # a deadline's TimeoutError is raised further out
                if is_last:
                    raise
            await asyncio.sleep(pause)
        raise AssertionError("there is at least one attempt")

    async def _ask(self, name: str) -> tuple[int, Mapping[str, str]]:
        url, headers = await self._signer.signed("HEAD", name, _QUESTION)
        request = self._session.head(URL(url, encoded=True), headers=headers, allow_redirects=False, proxy=self._proxy)
        async with request as response:
            return response.status, response.headers

    @staticmethod
    def _answered(status: int, headers: Mapping[str, str]) -> Mapping[str, str] | None:
        if status == 200:
            for value in headers.values():
                value.encode()  # bytes that are no text: `ValueError`
            return headers
        if 300 <= status <= 400:
            return None
        raise refusal("HeadObject", status, "")
