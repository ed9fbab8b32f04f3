"""The body of one GetObject answer, counted: exactly the bytes asked for, or an error.

For answers that were left to the SDK (behind an HTTP proxy, from another region): it reads aiohttp's stream beneath
the client library's wrapper, buffer by buffer without joining or copying them.
"""

import asyncio

import aiohttp

from storage_proxy.common.errors import StorageError, StorageTimeout, StorageUnavailable


class S3Reader:
    """Gives ``length`` bytes of ``response``; a wait longer than ``stall_timeout`` seconds is a stall.

    The connection goes back to its pool once the body has come to its end, and is closed otherwise.
    """

    def __init__(self, response: aiohttp.ClientResponse, *, length: int, stall_timeout: float) -> None:
        self._response = response
        self._stream = response.content
        self._left = length
        self._stall_timeout = stall_timeout
        self._closed = False

    async def read(self) -> bytes:
        if self._left == 0 and self._stream.at_eof():
            return b""
        if self._closed:
            raise StorageUnavailable("The reader is closed")
        chunk = await self._receive()
        if len(chunk) > self._left:
            raise StorageError("The storage sent more bytes than were asked for")
        if not chunk and self._left:
            raise StorageUnavailable("The storage ended the body early")
        self._left -= len(chunk)
        return chunk

    async def _receive(self) -> bytes:
        try:
            async with asyncio.timeout(self._stall_timeout):
                chunk, _ = await self._stream.readchunk()
                while not chunk and not self._stream.at_eof():  # between two chunks of a chunked body
                    chunk, _ = await self._stream.readchunk()
        except TimeoutError as error:
            raise StorageTimeout("The storage stopped sending") from error
        except (aiohttp.ClientError, OSError) as error:
            raise StorageUnavailable("The connection broke within the body") from error
        except RuntimeError as error:  # aiohttp: the connection is closed
            raise StorageUnavailable("The connection was closed within the body") from error
        return chunk

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._left == 0 and self._stream.at_eof():
            self._response.release()
        else:
            self._response.close()
