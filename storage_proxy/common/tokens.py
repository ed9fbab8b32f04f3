"""Download tokens: signed claims that say who may have what, for how long.

The law: the algorithm is the key's, never the token's; a token that is not exactly of the shapes below is refused
with a stable code, whatever a client sends.
"""

import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Any, Literal, Self

import jwt
from pydantic import BaseModel, ConfigDict, Discriminator, Field, TypeAdapter, ValidationError, model_validator

from storage_proxy.common.errors import InvalidRequest, TokenExpired, TokenInvalid, TokenNotActive
from storage_proxy.common.problems import field_errors

TOKEN_TYPE = "dl+jwt"  # noqa: S105 a media type, RFC 8725 section 3.11
MAX_TOKEN_BYTES = 6144
LEEWAY_SECONDS = 30
MAX_INLINE_FILES = 50

_NUMERIC_DATE_LIMIT = 2**53
NumericDate = Annotated[int, Field(strict=True, ge=0, lt=_NUMERIC_DATE_LIMIT)]
Sha256Name = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Operation(StrEnum):
    """What a token permits: the claim ``op``."""

    BLOB = "blob"
    ARCHIVE = "archive"
    UPLOAD = "upload"


class Disposition(StrEnum):
    ATTACHMENT = "attachment"
    INLINE = "inline"


class ArchiveFormat(StrEnum):
    ZIP = "zip"
    TAR = "tar"


class Compression(StrEnum):
    STORE = "store"
    DEFLATE = "deflate"


class OnMissing(StrEnum):
    FAIL = "fail"
    SKIP = "skip"


class _Claims(BaseModel):
    # str_min_length makes Pydantic look at every text: without it a lone surrogate would pass.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, str_min_length=0)


class RegisteredClaims(_Claims):
    """The claims of RFC 7519 that every token carries."""

    iss: Annotated[str, Field(min_length=1)]
    aud: Annotated[str, Field(min_length=1)]
    iat: NumericDate
    nbf: NumericDate
    exp: NumericDate
    jti: Annotated[str, Field(min_length=1, max_length=128)]
    sub: Annotated[str, Field(max_length=255)] | None = None

    @property
    def jti_hash(self) -> str:
        """How a log names this token: the first 16 hex digits of sha256(jti)."""
        return jti_hash(self.jti)


class Limits(_Claims):
    """Limits on the use of a token; a program that does not enforce one refuses the token."""

    max_downloads: Annotated[int, Field(strict=True, ge=1)] | None = None
    allowed_networks: Annotated[tuple[str, ...], Field(min_length=1, max_length=64)] | None = None

    @property
    def limited(self) -> bool:
        """Whether any limit is set."""
        return self.max_downloads is not None or self.allowed_networks is not None

    def refuse_limits(self) -> None:
        """Raise `InvalidRequest` when a limit is set: for a program that enforces none."""
        if self.limited:
            raise InvalidRequest("The token carries a limit that this version does not enforce")


class BlobGrant(Limits):
    """May download one blob, as it is at the request."""

    op: Literal[Operation.BLOB] = Operation.BLOB
    bucket: str
    key: Annotated[str, Field(min_length=1)]
    filename: str
    disposition: Disposition = Disposition.ATTACHMENT


class InlineFile(_Claims):
    """One file of an archive that its token lists itself."""

    key: Annotated[str, Field(min_length=1)]
    name: str


class ArchiveGrant(Limits):
    """May download one archive: what a manifest pins, or the files that the token lists itself."""

    op: Literal[Operation.ARCHIVE] = Operation.ARCHIVE
    bucket: str
    filename: str
    format: ArchiveFormat = ArchiveFormat.ZIP
    compression: Compression = Compression.STORE
    manifest: Sha256Name | None = None
    files: Annotated[tuple[InlineFile, ...], Field(min_length=1, max_length=MAX_INLINE_FILES)] | None = None
    on_missing: OnMissing | None = None

    @model_validator(mode="after")
    def _names_its_entries_one_way(self) -> Self:
        if (self.manifest is None) == (self.files is None):
            raise ValueError("exactly one of manifest and files is required")
        if self.on_missing is not None and self.files is None:
            raise ValueError("on_missing belongs to files")
        return self

    @model_validator(mode="after")
    def _compresses_only_zip(self) -> Self:
        if self.format is ArchiveFormat.TAR and self.compression is Compression.DEFLATE:
            raise ValueError("tar cannot be combined with deflate")
        return self


class UploadGrant(Limits):
    """May upload one blob of a run."""

    op: Literal[Operation.UPLOAD] = Operation.UPLOAD
    bucket: str
    key: Annotated[str, Field(min_length=1)]
    run_id: str
    path: str
    content_type: str | None = None
    size: Annotated[int, Field(strict=True, ge=0)] | None = None
    crc32: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")] | None = None


class BlobClaims(RegisteredClaims, BlobGrant):
    """A token for ``/download``."""

    disposition: Disposition


class ArchiveClaims(RegisteredClaims, ArchiveGrant):
    """A token for ``/download-archive``."""

    format: ArchiveFormat
    compression: Compression


class UploadClaims(RegisteredClaims, UploadGrant):
    """A token for ``/upload``."""


Grant = BlobGrant | ArchiveGrant | UploadGrant
Claims = BlobClaims | ArchiveClaims | UploadClaims
_BY_OP = Discriminator("op", custom_error_type="op", custom_error_message="op must be blob, archive or upload")
_CLAIMS: TypeAdapter[Claims] = TypeAdapter(Annotated[Claims, _BY_OP])
_FORM = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
_REGISTERED = frozenset(RegisteredClaims.model_fields)


@dataclass(frozen=True, slots=True)
class Hs256Key:
    """A shared secret: its bytes sign and verify."""

    kid: str
    secret: bytes = field(repr=False)
    alg: Literal["HS256"] = "HS256"

    @property
    def signing_key(self) -> bytes:
        """What PyJWT signs with."""
        return self.secret

    @property
    def verification_key(self) -> bytes:
        """What PyJWT verifies with."""
        return self.secret


TokenKey = Hs256Key
"""A key of the ring. Another algorithm is another class with these attributes, told apart by ``alg``."""


class TokenSigner:
    """Mints tokens with one key of the ring. ``clock`` gives seconds since the epoch."""

    def __init__(self, key: TokenKey, *, issuer: str, audience: str, clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._issuer = issuer
        self._audience = audience
        self._clock = clock
        self._jws = jwt.PyJWS()

    def sign(
        self, grant: Grant, *, jti: str, expires_in: int, subject: str | None = None
    ) -> tuple[str, RegisteredClaims]:
        """A token for ``grant`` that lives ``expires_in`` seconds from now, and its registered claims.

        Raises `InvalidRequest` when it would be longer than `MAX_TOKEN_BYTES`.
        """
        now = int(self._clock())
        registered = RegisteredClaims(
            iss=self._issuer,
            aud=self._audience,
            iat=now,
            nbf=now,
            exp=now + expires_in,
            jti=jti,
            sub=subject,
        )
        payload = registered.model_dump(mode="json", exclude_none=True) | grant.model_dump(
            mode="json", exclude_none=True
        )
        # jwt.encode would write every letter beyond ASCII as an escape of six bytes: too long for long names.
        claims = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
        headers = {"kid": self._key.kid, "typ": TOKEN_TYPE}
        token = self._jws.encode(claims, self._key.signing_key, algorithm=self._key.alg, headers=headers)
        if len(token) > MAX_TOKEN_BYTES:
            raise InvalidRequest("The token would be too long: shorten the key, the file name or the subject")
        return token, registered


class TokenVerifier:
    """Turns a token into its claims, or raises the API's error. ``clock`` gives seconds since the epoch."""

    def __init__(
        self,
        keys: Iterable[TokenKey],
        *,
        issuer: str,
        audience: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = {key.kid: key for key in keys}
        self._issuer = issuer
        self._audience = audience
        self._clock = clock

    def verify(self, token: str) -> Claims:
        """The claims of ``token``.

        Raises `TokenInvalid` (form, header, key, signature, issuer, audience, registered claims), `TokenExpired`,
        `TokenNotActive`, and `InvalidRequest` when a well-signed payload is not one of the shapes above.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise TokenInvalid("The token is too long")
        if _FORM.fullmatch(token) is None:
            raise TokenInvalid
        payload = self._verified_payload(token)
        self._check_times(payload)
        try:
            return _CLAIMS.validate_python(payload)
        except ValidationError as error:
            raise InvalidRequest("The token's claims are not valid", errors=field_errors(error)) from None

    def _verified_payload(self, token: str) -> dict[str, Any]:
        # Everything a stranger can send passes here before its signature is known: deep nesting makes the JSON
        # decoder recurse, huge numbers make int() raise. All of it is simply not a token.
        try:
            key = self._key_of(jwt.get_unverified_header(token))
            return jwt.decode(
                token,
                key.verification_key,
                algorithms=[key.alg],
                issuer=self._issuer,
                audience=self._audience,
                options={
                    "require": ["iss", "aud", "iat", "nbf", "exp", "jti"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise TokenInvalid from None

    def _key_of(self, header: dict[str, Any]) -> TokenKey:
        if header.keys() != {"alg", "kid", "typ"} or header["typ"] != TOKEN_TYPE:
            raise TokenInvalid
        kid = header["kid"]
        key = self._keys.get(kid) if isinstance(kid, str) else None
        if key is None or header["alg"] != key.alg:
            raise TokenInvalid
        return key

    def _check_times(self, payload: dict[str, Any]) -> None:
        try:
            registered = RegisteredClaims.model_validate(
                {name: value for name, value in payload.items() if name in _REGISTERED}
            )
        except ValidationError:
            raise TokenInvalid from None
        now = self._clock()
        if registered.iat > now + LEEWAY_SECONDS:
            raise TokenInvalid
        if registered.nbf > now + LEEWAY_SECONDS:
            raise TokenNotActive
        if registered.exp <= now - LEEWAY_SECONDS:
            raise TokenExpired


def jti_hash(jti: str) -> str:
    """The name of a token in logs: the first 16 hex digits of sha256 of its ``jti``."""
    return sha256(jti.encode()).hexdigest()[:16]
