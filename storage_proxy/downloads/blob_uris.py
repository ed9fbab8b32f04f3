"""Encrypted blob URIs: a capability for one version of one blob of a run, for a while.

The law: whoever holds one learns nothing from it but its length and age; it says what is meant, never that it may be
had: that is asked of the records at each use.
"""

import json
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from storage_proxy.common.errors import InvalidRequest, TokenExpired

SCHEME = "blob:"
MAX_URI_LENGTH = 4096
"""Characters: more than the longest key, quoted and encrypted, needs."""


class BlobTarget(NamedTuple):
    """What a URI names. ``etag`` is that of the version which its holder was told of."""

    bucket: str
    key: str
    etag: str
    run_id: str


class BlobUris:
    """Makes and reads URIs. The first of ``keys`` encrypts, all decrypt; ``clock`` gives seconds since the epoch."""

    def __init__(self, keys: Sequence[str], *, ttl_seconds: int, clock: Callable[[], float] = time.time) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys]) if keys else None
        self._ttl_seconds = ttl_seconds
        self._clock = clock

    def encrypt(self, bucket: str, key: str, etag: str, run_id: str) -> str:
        """A URI, good for the configured time. Raises `InvalidRequest` where no key is configured."""
        if self._fernet is None:
            raise InvalidRequest("This service has no key for blob URIs")
        target = json.dumps([bucket, key, etag, run_id], separators=(",", ":"), ensure_ascii=False)
        return SCHEME + self._fernet.encrypt_at_time(target.encode(), int(self._clock())).decode().rstrip("=")

    def decrypt(self, uri: str) -> BlobTarget:
        """What the URI names. Raises `InvalidRequest` for what no key of ours made, `TokenExpired`."""
        token = uri.removeprefix(SCHEME)
        if self._fernet is None or token == uri or not token.isascii() or len(uri) > MAX_URI_LENGTH:
            raise InvalidRequest("The URI is not valid")
        padded = token + "=" * (-len(token) % 4)
        try:
            target = self._fernet.decrypt_at_time(padded, self._ttl_seconds, int(self._clock()))
        except InvalidToken:
            raise self._refusal(padded) from None
        return _target(target)

    def _refusal(self, token: str) -> InvalidRequest | TokenExpired:
        assert self._fernet is not None
        try:
            self._fernet.decrypt(token)
        except InvalidToken:
            return InvalidRequest("The URI is not valid")
        return TokenExpired("The URI has expired")


def _target(content: bytes) -> BlobTarget:
    """Who else has the key may have encrypted anything."""
    try:
        names = json.loads(content)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or len(names) != len(BlobTarget._fields):
        raise InvalidRequest("The URI is not valid")
    if not all(isinstance(name, str) for name in names):
        raise InvalidRequest("The URI is not valid")
    return BlobTarget(*names)


def uri_hash(uri: str) -> str:
    """How a log names a URI: the first 16 hex digits of its sha256."""
    return sha256(uri.encode("utf-8", "replace")).hexdigest()[:16]
