"""What S3 and its client library raise, as the port's errors: written once, for every call.

The law: a message names the operation, the status and the error's code, and nothing else: no key, URL or secret.
"""

import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    HTTPClientError,
    ReadTimeoutError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from storage_proxy.common.errors import (
    BlobChanged,
    BlobNotFound,
    ServiceError,
    StorageError,
    StorageTimeout,
    StorageUnavailable,
)

# Codes that mean "later" whatever the status that came with them.
_LATER = frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout", "OperationAborted"}
)

_TRY_AGAIN = frozenset({500, 502, 503, 504})

# The answers of another region; a HEAD has no code (S3 API reference, "Error responses").
_ELSEWHERE = frozenset({"", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})

_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9.]{1,64})\s*</Code>")

_MAX_ERROR_BYTES = 64 << 10

_NO_SUCH_KEY = frozenset({"", "404", "NoSuchKey", "NoSuchVersion", "NotFound"})
"""Another code with a 404 is of something else, such as an account; a HEAD has none."""


class BadRequest(StorageError):
    """A 400, which some servers also answer for a key that they cannot hold."""


@contextmanager
def translated(operation: str) -> Iterator[None]:
    """Raise the port's error for whatever the client library raises within; ``operation`` is S3's name of it."""
    try:
        yield
    except ServiceError:
        raise
    except ClientError as error:
        raise refusal(operation, *answer_of(error)) from error
    except ReadTimeoutError as error:
        raise StorageTimeout(f"The storage did not answer {operation} in time") from error
    except (ConnectTimeoutError, BotoConnectionError, HTTPClientError) as error:
        if isinstance(error.kwargs.get("error"), ValueError):  # the answer came, and a header of it is no text
            raise StorageError(f"The storage's answer to {operation} makes no sense") from error
        raise StorageUnavailable(f"The storage cannot be reached for {operation}") from error
    except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:  # a wrong certificate, too
        raise StorageUnavailable(f"The storage cannot be reached for {operation}") from error
    except (BotoCoreError, ResponseParserError, ValueError, KeyError) as error:
        raise StorageError(f"The storage's answer to {operation} makes no sense ({type(error).__name__})") from error
    except TimeoutError as error:  # the deadline, or aiohttp's own
        raise StorageTimeout(f"The storage did not answer {operation} in time") from error
    except (aiohttp.ClientError, OSError) as error:
        raise StorageUnavailable(f"The connection for {operation} broke") from error
    except RuntimeError as error:  # aiohttp: the session is closed
        raise StorageUnavailable(f"The bucket was closed during {operation}") from error


def answer_of(error: ClientError) -> tuple[int, str]:
    """The status and the code of an answer."""
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return status, str(error.response.get("Error", {}).get("Code", ""))


def asks_for_patience(status: int, code: str) -> bool:
    """Whether a request may be tried again after this answer to it."""
    return status in _TRY_AGAIN or code in _LATER


async def error_code(read: Callable[[], Awaitable[bytes | memoryview]]) -> str:
    """The code in the body of an answer with an error status, read piece by piece; empty where it has none."""
    body = bytearray()
    while len(body) < _MAX_ERROR_BYTES and (piece := await read()):
        body += piece
    found = _CODE.search(body)
    return found[1].decode() if found else ""


def is_elsewhere(status: int, code: str) -> bool:
    """Whether the answer is of a bucket that has to be asked for in another place, which the SDK finds out."""
    return 300 <= status < 400 or (status == 400 and code in _ELSEWHERE)


def refusal(operation: str, status: int, code: str) -> ServiceError:
    """The port's error for an answer with an error status (S3 API reference, "Error responses"); HEAD has no code."""
    code = re.sub(r"[^A-Za-z0-9.]", "", code)[:64]
    said = f"{status}" if code in {"", str(status)} else f"{status} {code}"
    if status == 429 or code in _LATER or (status >= 500 and status != 501):
        return StorageUnavailable(f"The storage is unavailable: it answered {operation} with {said}")
    if code == "NoSuchBucket":
        return StorageError("The storage has no such bucket")
    if status == 404 and code in _NO_SUCH_KEY:
        return BlobNotFound()
    if status in {412, 416}:
        return BlobChanged()
    kind = BadRequest if status == 400 else StorageError
    return kind(f"The storage refused {operation}: {said}")
