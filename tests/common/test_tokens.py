import base64
import hmac
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.common.errors import InvalidRequest, ServiceError, TokenExpired, TokenInvalid, TokenNotActive
from storage_proxy.common.names import unsafe_filename_reason, unsafe_key_reason
from storage_proxy.common.tokens import (
    LEEWAY_SECONDS,
    MAX_TOKEN_BYTES,
    ArchiveClaims,
    ArchiveGrant,
    BlobClaims,
    BlobGrant,
    Hs256Key,
    TokenSigner,
    TokenVerifier,
    UploadClaims,
    jti_hash,
)

NOW = 1_700_000_000
SECRET = b"a secret that is long enough for it"
KEY = Hs256Key("k1", SECRET)
OTHER = Hs256Key("k2", b"another secret, as long as the first")
CLAIMS: dict[str, Any] = {
    "iss": "manager-api",
    "aud": "storage-proxy",
    "iat": NOW,
    "nbf": NOW,
    "exp": NOW + 60,
    "jti": "id-1",
    "op": "blob",
    "bucket": "default",
    "key": "a/b.bin",
    "filename": "b.bin",
    "disposition": "attachment",
}
HEADER = {"alg": "HS256", "kid": "k1", "typ": "dl+jwt"}


def verifier(now: float = NOW, *keys: Hs256Key) -> TokenVerifier:
    return TokenVerifier(keys or (KEY, OTHER), issuer="manager-api", audience="storage-proxy", clock=lambda: now)


def b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def raw(header: object, payload: bytes, secret: bytes = SECRET) -> str:
    """A token signed by hand, so that nothing of its making can refuse what is tried here."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    signed = f"{b64(head)}.{b64(payload)}"
    return f"{signed}.{b64(hmac.digest(secret, signed.encode(), 'sha256'))}"


def token(**changes: Any) -> str:
    claims = {name: value for name, value in (CLAIMS | changes).items() if value is not ...}
    return raw(HEADER, json.dumps(claims).encode())


def headed(**changes: Any) -> str:
    header = {name: value for name, value in (HEADER | changes).items() if value is not ...}
    return raw(header, json.dumps(CLAIMS).encode())


def test_a_signed_grant_comes_back_as_its_claims() -> None:
    signer = TokenSigner(KEY, issuer="manager-api", audience="storage-proxy", clock=lambda: NOW + 0.9)
    grant = BlobGrant(bucket="default", key="a/b.bin", filename="b.bin")
    signed, registered = signer.sign(grant, jti="id-1", expires_in=60, subject="who")
    claims = verifier().verify(signed)
    assert isinstance(claims, BlobClaims)
    assert (claims.key, claims.exp, claims.sub, claims.jti) == ("a/b.bin", NOW + 60, "who", "id-1")
    assert registered.exp == NOW + 60
    assert jwt.get_unverified_header(signed) == HEADER


def test_the_shapes_of_the_contract_are_told_apart_by_op() -> None:
    archive = {"op": "archive", "key": ..., "disposition": ..., "format": "zip", "compression": "store"}
    upload = {"op": "upload", "filename": ..., "disposition": ..., "run_id": "r1", "path": "a"}
    assert isinstance(verifier().verify(token(**archive, manifest="sha256:" + "0" * 64)), ArchiveClaims)
    assert isinstance(verifier().verify(token(**archive, files=[{"key": "a", "name": "b"}])), ArchiveClaims)
    assert isinstance(verifier().verify(token(**upload)), UploadClaims)


def test_any_key_of_the_ring_verifies_by_its_kid() -> None:
    made = raw(HEADER | {"kid": "k2"}, json.dumps(CLAIMS).encode(), OTHER.secret)
    assert verifier().verify(made).jti == "id-1"
    with pytest.raises(TokenInvalid):
        verifier(NOW, KEY).verify(made)


@pytest.mark.parametrize(
    "change",
    [
        {"alg": "none"},
        {"alg": "None"},
        {"alg": "HS512"},
        {"alg": "RS256"},
        {"alg": "EdDSA"},
        {"alg": ...},
        {"alg": 5},
        {"alg": ["HS256"]},
        {"kid": ...},
        {"kid": "k3"},
        {"kid": ""},
        {"kid": 1},
        {"kid": ["k1"]},
        {"kid": {"k1": 1}},
        {"kid": "../../k1"},
        {"kid": "\ud800"},
        {"typ": ...},
        {"typ": "JWT"},
        {"typ": None},
        {"typ": ["dl+jwt"]},
        {"crit": ["b64"]},
        {"b64": False},
        {"jwk": {"kty": "oct"}},
        {"jku": "https://example.org"},
    ],
)
def test_a_header_that_is_not_ours_is_invalid(change: dict[str, Any]) -> None:
    with pytest.raises(TokenInvalid):
        verifier().verify(headed(**change))


def test_a_token_without_a_signature_is_invalid() -> None:
    unsigned = f"{b64(json.dumps(HEADER | {'alg': 'none'}).encode())}.{b64(json.dumps(CLAIMS).encode())}."
    with pytest.raises(TokenInvalid):
        verifier().verify(unsigned)
    with pytest.raises(TokenInvalid):
        verifier().verify(token().rpartition(".")[0] + ".")


def test_a_token_signed_by_another_algorithm_is_invalid() -> None:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with pytest.raises(TokenInvalid):
        verifier().verify(jwt.encode(CLAIMS, private, "RS256", headers={"kid": "k1", "typ": "dl+jwt"}))


def test_a_token_signed_by_another_key_is_invalid() -> None:
    with pytest.raises(TokenInvalid):
        verifier().verify(raw(HEADER, json.dumps(CLAIMS).encode(), OTHER.secret))


@pytest.mark.parametrize("change", [{"key": "c"}, {"exp": NOW + 10**6}, {"op": "archive"}])
def test_a_payload_edited_after_signing_is_invalid(change: dict[str, Any]) -> None:
    head, _, signature = token().split(".")
    with pytest.raises(TokenInvalid):
        verifier().verify(f"{head}.{b64(json.dumps(CLAIMS | change).encode())}.{signature}")


@pytest.mark.parametrize("claim", ["iss", "aud", "iat", "nbf", "exp", "jti"])
@pytest.mark.parametrize(
    "value", [..., None, "", "other", [], ["storage-proxy"], {}, True, 1.5, float("inf"), -1, 10**400]
)
def test_a_missing_or_ill_typed_registered_claim_is_invalid(claim: str, value: Any) -> None:
    if (claim, value) == ("jti", "other"):
        return  # that is a jti
    with pytest.raises(TokenInvalid):
        verifier().verify(token(**{claim: value}))


@pytest.mark.parametrize("value", [str(NOW + 60), float(NOW + 60), True, 2**53, [NOW + 60]])
@pytest.mark.parametrize("claim", ["iat", "nbf", "exp"])
def test_a_date_that_is_no_whole_number_is_invalid(claim: str, value: Any) -> None:
    with pytest.raises(TokenInvalid):
        verifier().verify(token(**{claim: value}))


@pytest.mark.parametrize(
    "change", [{"sub": 5}, {"sub": "x" * 256}, {"jti": "x" * 129}, {"jti": "\ud800"}, {"iss": "\ud800"}]
)
def test_a_registered_claim_out_of_bounds_is_invalid(change: dict[str, Any]) -> None:
    with pytest.raises(TokenInvalid):
        verifier().verify(token(**change))


@pytest.mark.parametrize(
    ("changes", "last_good", "first_bad", "error"),
    [
        ({"exp": NOW + 60}, NOW + 60 + LEEWAY_SECONDS - 0.01, NOW + 60 + LEEWAY_SECONDS, TokenExpired),
        ({"nbf": NOW + 50}, NOW + 50 - LEEWAY_SECONDS, NOW + 50 - LEEWAY_SECONDS - 0.01, TokenNotActive),
        ({"iat": NOW + 50}, NOW + 50 - LEEWAY_SECONDS, NOW + 50 - LEEWAY_SECONDS - 0.01, TokenInvalid),
    ],
)
def test_clocks_may_differ_by_the_leeway_and_not_more(
    changes: dict[str, int], last_good: float, first_bad: float, error: type[ServiceError]
) -> None:
    made = token(**changes)
    assert verifier(last_good).verify(made)
    with pytest.raises(error):
        verifier(first_bad).verify(made)


@pytest.mark.parametrize(
    "change",
    [
        {"nope": 1},
        {"op": "delete"},
        {"op": ...},
        {"op": None},
        {"op": ["blob"]},
        {"op": {"blob": 1}},
        {"key": ...},
        {"key": ""},
        {"key": 5},
        {"key": "\ud800"},
        {"bucket": None},
        {"filename": ["a"]},
        {"filename": "\ud800"},
        {"bucket": "\udfff"},
        {"disposition": "both"},
        {"manifest": "sha256:" + "0" * 64},
        {"max_downloads": 0},
        {"max_downloads": True},
        {"max_downloads": "3"},
        {"allowed_networks": []},
        {"allowed_networks": "10.0.0.0/8"},
    ],
)
def test_a_well_signed_payload_of_another_shape_is_an_invalid_request(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as error:
        verifier().verify(token(**change))
    assert error.value.errors


@pytest.mark.parametrize(
    "change",
    [
        {"manifest": ..., "files": ...},
        {"files": [{"key": "a", "name": "a"}]},
        {"manifest": ..., "files": []},
        {"manifest": ..., "files": [{"key": "a", "name": "a"}] * 51},
        {"manifest": ..., "files": [{"key": "a", "nope": "a"}]},
        {"manifest": "sha256:" + "A" * 64},
        {"manifest": "sha256:" + "0" * 63},
        {"on_missing": "skip"},
        {"format": "rar"},
        {"format": "tar", "compression": "deflate"},
    ],
)
def test_an_archive_names_its_entries_in_exactly_one_way(change: dict[str, Any]) -> None:
    archive = {"op": "archive", "key": ..., "disposition": ..., "manifest": "sha256:" + "0" * 64}
    with pytest.raises(InvalidRequest):
        verifier().verify(token(**archive | change))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'"text"',
        b"not json",
        b"\xff\xfe",
        b"[" * 2000 + b"]" * 2000,
        b'{"a":' * 700 + b"1" + b"}" * 700,
        b'{"exp":' + b"9" * 4301 + b"}",
        b'{"exp":1e999}',
        b'{"exp":NaN}',
    ],
)
def test_a_well_signed_payload_that_is_no_claims_is_invalid(payload: bytes) -> None:
    with pytest.raises(TokenInvalid):
        verifier().verify(raw(HEADER, payload))


@pytest.mark.parametrize(
    "header", [b"", b"[]", b"5", b"null", b"[" * 2000, b'{"kid":' * 500, b'{"kid":' + b"9" * 4301 + b"}"]
)
def test_a_header_that_is_no_object_is_invalid(header: bytes) -> None:
    with pytest.raises(TokenInvalid):
        verifier().verify(raw(header, json.dumps(CLAIMS).encode()))


@pytest.mark.parametrize(
    "junk", ["", ".", "..", "...", "a.b", "a.b.c", "a.b.c.d.e", "é.é.é", "\x00", "\ud800.a.b", " "]
)
def test_junk_is_invalid(junk: str) -> None:
    with pytest.raises(TokenInvalid):
        verifier().verify(junk)


def test_a_token_has_at_most_6144_bytes() -> None:
    longest = next(made for n in range(4500, 0, -1) if len(made := token(filename="x" * n)) <= MAX_TOKEN_BYTES)
    assert verifier().verify(longest)
    with pytest.raises(TokenInvalid):
        verifier().verify(token(filename="x" * 4500))


KEY_LETTERS = st.sampled_from(['"', "é", "日", "🎈", "a", "\u2028"])


@given(KEY_LETTERS, KEY_LETTERS, st.integers(0, 1024))
def test_the_longest_key_and_filename_of_any_letters_fit_into_a_token(key: str, filename: str, length: int) -> None:
    key = (key * length)[: 1024 // len(key.encode())] or "a"
    filename = filename * 255
    assert unsafe_key_reason(key) is None
    assert unsafe_filename_reason(filename) is None
    signer = TokenSigner(KEY, issuer="manager-api", audience="storage-proxy", clock=lambda: NOW)
    made, _ = signer.sign(BlobGrant(bucket="b" * 64, key=key, filename=filename), jti="0" * 32, expires_in=60)
    claims = verifier().verify(made)
    assert isinstance(claims, BlobClaims)
    assert (claims.key, claims.filename) == (key, filename)


def test_a_grant_that_no_token_can_hold_is_not_signed() -> None:
    signer = TokenSigner(KEY, issuer="manager-api", audience="storage-proxy")
    grant = ArchiveGrant(bucket="b", filename="x" * 5000, manifest="sha256:" + "0" * 64)
    with pytest.raises(InvalidRequest, match="too long"):
        signer.sign(grant, jti="1", expires_in=60)


@given(st.text(max_size=200) | st.text("abc.=-_eyJ", max_size=200))
def test_no_text_raises_anything_but_our_errors(text: str) -> None:
    with pytest.raises(ServiceError):
        verifier().verify(text)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_no_signed_bytes_raise_anything_but_our_errors(header: bytes, payload: bytes) -> None:
    for made in (raw(HEADER, payload), raw(header, payload)):
        with pytest.raises(ServiceError):
            verifier().verify(made)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.text("\ud800a", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from([*CLAIMS, "sub", "manifest", "files", "max_downloads", "nope"]), JSON, max_size=4)
)
def test_no_signed_claims_raise_anything_but_our_errors(changes: dict[str, Any]) -> None:
    accepted_or_refused(lambda: verifier().verify(token(**changes)))


@given(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64"]), JSON, max_size=3))
def test_no_header_raises_anything_but_our_errors(changes: dict[str, Any]) -> None:
    accepted_or_refused(lambda: verifier().verify(headed(**changes)))


@given(st.data())
def test_no_edited_token_is_accepted_as_something_else(data: st.DataObject) -> None:
    whole = token()
    at = data.draw(st.integers(0, len(whole) - 1))
    put = data.draw(st.text(st.characters(max_codepoint=0x2FF), max_size=3))
    edited = whole[:at] + put + whole[at + data.draw(st.integers(0, 3)) :]
    try:
        claims = verifier().verify(edited)
    except ServiceError:
        return
    assert claims == verifier().verify(whole)  # base64 has spare bits and padding: the same bytes, written otherwise


def test_a_log_names_a_token_by_a_hash_of_its_id() -> None:
    assert verifier().verify(token()).jti_hash == jti_hash("id-1")
    assert len(jti_hash("id-1")) == 16


def accepted_or_refused(verify: Callable[[], object]) -> None:
    try:
        verify()
    except ServiceError:
        return
