"""Our signatures against those of the SDK's signer, for any key, header, secret and moment."""

import datetime
from unittest.mock import patch
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as SdkCredentials
from hypothesis import example, given
from hypothesis import strategies as st

from storage_proxy.stores.s3_signing import (
    UNSIGNED_PAYLOAD,
    Credentials,
    Scope,
    encoded_path,
    encoded_query,
    presigned_query,
    signed_headers,
)

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
ODD = st.text(st.sampled_from("aé😀 +%/~.-_?&=#;:@!$'()*,\\\"<>^`{|}[]"), min_size=1, max_size=40)
HEADERS = st.dictionaries(
    st.sampled_from(["content-type", "if-none-match", "content-length", "x-amz-checksum-crc32", "x-amz-checksum-mode"]),
    st.text(st.sampled_from("abc */;=.,-09\t"), min_size=1, max_size=20),
)
PARAMETERS = st.sampled_from(["prefix", "list-type", "continuation-token", "max-keys", "start-after"])
CREDENTIALS = st.builds(
    Credentials,
    st.text(st.sampled_from("AKIA0123/+="), min_size=1, max_size=20),
    TEXT,
    st.none() | st.text(st.sampled_from("Tok/+=9"), min_size=1, max_size=40),
)
SCOPES = st.builds(Scope, st.sampled_from(["us-east-1", "eu-central-1"]), st.integers(0, 4_000_000_000))
HOSTS = ["s3.example.com", "127.0.0.1:7070", "[::1]:9000"]


def at(scope: Scope) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(scope.moment, datetime.UTC).replace(tzinfo=None)


def sdk_request(method: str, host: str, path: str, headers: dict[str, str]) -> AWSRequest:
    return AWSRequest(method=method, url=f"http://{host}{path}", headers=headers)


@given(st.sampled_from(HOSTS), ODD | TEXT, HEADERS, CREDENTIALS, SCOPES, st.booleans())
@example(HOSTS[0], "a//b/../c/./~", {}, Credentials("k", "s"), Scope("us-east-1", 0), False)
def test_signed_headers_are_those_of_the_sdk(
    host: str, key: str, headers: dict[str, str], credentials: Credentials, scope: Scope, signs_payload: bool
) -> None:
    path = "/bucket/" + encoded_path(key)
    request = sdk_request("HEAD", host, path, headers)
    request.context["client_config"] = _Config(signs_payload)
    with patch("botocore.auth.get_current_datetime", return_value=at(scope)):
        S3SigV4Auth(SdkCredentials(*credentials), "s3", scope.region).add_auth(request)
    if signs_payload:
        ours = signed_headers("HEAD", host, path, headers, credentials, scope)
    else:
        ours = signed_headers("HEAD", host, path, headers, credentials, scope, payload=UNSIGNED_PAYLOAD)
    theirs = {name.lower(): value for name, value in request.headers.items()}
    assert ours == {**theirs, "host": host}


@given(st.sampled_from(HOSTS), ODD | TEXT, HEADERS, CREDENTIALS, SCOPES, st.integers(1, 604_800))
def test_a_presigned_query_is_that_of_the_sdk(
    host: str, key: str, headers: dict[str, str], credentials: Credentials, scope: Scope, expires_in: int
) -> None:
    path = "/bucket/" + encoded_path(key)
    request = sdk_request("PUT", host, path, headers)
    with patch("botocore.auth.get_current_datetime", return_value=at(scope)):
        S3SigV4QueryAuth(SdkCredentials(*credentials), "s3", scope.region, expires_in).add_auth(request)
    ours = presigned_query("PUT", host, path, headers, credentials, scope, expires_in=expires_in)
    assert sorted(ours.split("&")) == sorted(urlsplit(request.url).query.split("&"))


@given(st.sampled_from(HOSTS), st.dictionaries(PARAMETERS, ODD | TEXT, max_size=5), CREDENTIALS, SCOPES)
def test_a_query_is_signed_as_the_sdk_signs_it(
    host: str, parameters: dict[str, str], credentials: Credentials, scope: Scope
) -> None:
    query = encoded_query(parameters)
    request = sdk_request("GET", host, f"/bucket?{query}", {})
    with patch("botocore.auth.get_current_datetime", return_value=at(scope)):
        S3SigV4Auth(SdkCredentials(*credentials), "s3", scope.region).add_auth(request)
    ours = signed_headers("GET", host, "/bucket", {}, credentials, scope, query=query)
    assert ours["authorization"] == request.headers["Authorization"]


def test_credentials_do_not_show_themselves() -> None:
    assert "hidden" not in repr(Credentials("hidden-id", "hidden-secret", "hidden-token"))
    assert "hidden" not in str(Credentials("hidden-id", "hidden-secret", "hidden-token"))


class _Config:
    """What the SDK's signer looks at to decide whether it sums the body."""

    def __init__(self, signs_payload: bool) -> None:
        self.s3 = {"payload_signing_enabled": signs_payload}
