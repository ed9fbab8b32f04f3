"""Encrypted URIs: what they tell, for how long, and to whom."""

import base64

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.common.errors import InvalidRequest, TokenExpired
from storage_proxy.downloads.blob_uris import MAX_URI_LENGTH, BlobTarget, BlobUris

KEYS = [Fernet.generate_key().decode() for _ in range(2)]
TARGET = BlobTarget("media", "runs/r1/secret plan.txt", '"abc"', "r1")
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def uris(*keys: str, clock: Clock | None = None) -> BlobUris:
    return BlobUris(keys or KEYS, ttl_seconds=3600, clock=clock or Clock())


@given(text, text, text, text)
def test_a_uri_names_what_it_was_made_of(bucket: str, key: str, etag: str, run_id: str) -> None:
    target = BlobTarget(bucket, key, etag, run_id)
    assert uris().decrypt(uris().encrypt(*target)) == target


def test_nothing_of_the_blob_can_be_read_in_it() -> None:
    uri = uris().encrypt(*TARGET)
    assert uri.startswith("blob:")
    token = uri.removeprefix("blob:")
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    assert not any(part.encode() in raw or part in uri for part in ("media", "runs", "secret", "abc", "r1/"))
    assert uris().encrypt(*TARGET) != uri


def test_the_longest_key_fits() -> None:
    key = "runs/r/" + '"' * 1017
    assert len(uris().encrypt("b" * 64, key, '"' * 70, "r" * 128)) < MAX_URI_LENGTH


def test_it_ends_with_its_time() -> None:
    clock = Clock()
    uri = uris(clock=clock).encrypt(*TARGET)
    clock.now += 3600
    assert uris(clock=clock).decrypt(uri) == TARGET
    clock.now += 1
    with pytest.raises(TokenExpired):
        uris(clock=clock).decrypt(uri)


def test_keys_rotate() -> None:
    old, new = KEYS
    by_old = uris(old).encrypt(*TARGET)
    assert uris(new, old).decrypt(by_old) == TARGET
    assert uris(old, new).decrypt(uris(new, old).encrypt(*TARGET)) == TARGET
    with pytest.raises(InvalidRequest):
        uris(new).decrypt(by_old)


@pytest.mark.parametrize("junk", ["", "blob:", "blob:x", "blob:é", "https://example.org", "blob:" + "A" * 200])
def test_junk_is_refused(junk: str) -> None:
    with pytest.raises(InvalidRequest):
        uris().decrypt(junk)


@pytest.mark.parametrize(
    "content", [b"junk", b"\xff", b"{}", b"null", b'["a","b","c"]', b'["a","b","c",4]', b"[" * 2000]
)
def test_what_our_key_encrypted_and_names_no_blob_is_refused(content: bytes) -> None:
    token = Fernet(KEYS[0]).encrypt_at_time(content, int(Clock.now)).decode()
    with pytest.raises(InvalidRequest):
        uris().decrypt("blob:" + token)


@given(st.integers(5, 150), st.sampled_from("ABCxyz019-_"))
def test_a_changed_uri_is_refused(position: int, letter: str) -> None:
    uri = uris().encrypt(*TARGET)
    changed = uri[:position] + letter + uri[position + 1 :]
    if changed != uri:
        with pytest.raises(InvalidRequest):
            uris().decrypt(changed)


def test_without_a_key_none_is_made_and_none_is_taken() -> None:
    none = BlobUris([], ttl_seconds=3600)
    with pytest.raises(InvalidRequest):
        none.encrypt(*TARGET)
    with pytest.raises(InvalidRequest):
        none.decrypt(uris().encrypt(*TARGET))
