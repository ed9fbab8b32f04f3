"""Every failure that a caller may learn of, as one small hierarchy of stable codes.

The law: a code never changes its meaning, and nothing here knows of HTTP beyond a hint of its status.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NotRequired, TypedDict


class FieldError(TypedDict):
    """Where in the input something is wrong: ``loc`` is the path of keys and indexes, ``msg`` what is wrong."""

    loc: Sequence[str | int]
    msg: str
    key: NotRequired[str]


class ServiceError(Exception):
    """A failure with a stable ``code``; ``detail`` may be shown to whoever asked.

    ``errors`` names the fields at fault; ``retry_after`` (seconds) says when another try makes sense.
    """

    code: ClassVar[str] = "internal"
    status_hint: ClassVar[int] = 500
    public_message: ClassVar[str] = "Something went wrong here"
    default_retry_after: ClassVar[int | None] = None

    def __init__(
        self,
        detail: str = "",
        *,
        errors: Sequence[FieldError] = (),
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail or self.public_message)
        self.detail = detail or self.public_message
        self.errors = tuple(errors)
        self.retry_after = self.default_retry_after if retry_after is None else retry_after
        self.headers = dict(headers or {})


class Internal(ServiceError):
    """A defect on our side."""


# 400


class InvalidRequest(ServiceError):
    code = "invalid-request"
    status_hint = 400
    public_message = "The request is not valid"


class UnsafeName(ServiceError):
    code = "unsafe-name"
    status_hint = 400
    public_message = "A name or key is not safe"


class SizeMismatch(ServiceError):
    code = "size-mismatch"
    status_hint = 400
    public_message = "The content has another size than was announced"


class ChecksumMismatch(ServiceError):
    code = "checksum-mismatch"
    status_hint = 400
    public_message = "The content has another checksum than was announced"


# 401


class Unauthorized(ServiceError):
    code = "unauthorized"
    status_hint = 401
    public_message = "A valid API key is required"


class TokenMissing(ServiceError):
    code = "token-missing"
    status_hint = 401
    public_message = "A token is required"


class TokenInvalid(ServiceError):
    code = "token-invalid"
    status_hint = 401
    public_message = "The token is not valid"


class TokenExpired(ServiceError):
    code = "token-expired"
    status_hint = 401
    public_message = "The token has expired"


class TokenNotActive(ServiceError):
    code = "token-not-active"
    status_hint = 401
    public_message = "The token is not active yet"


# 403


class TokenWrongOperation(ServiceError):
    code = "token-wrong-operation"
    status_hint = 403
    public_message = "The token is for another operation"


# 404, 405


class BlobNotFound(ServiceError):
    code = "blob-not-found"
    status_hint = 404
    public_message = "The blob does not exist"


class BucketNotFound(ServiceError):
    code = "bucket-not-found"
    status_hint = 404
    public_message = "The bucket does not exist"


class RunNotFound(ServiceError):
    code = "run-not-found"
    status_hint = 404
    public_message = "The run does not exist"


class NotFound(ServiceError):
    code = "not-found"
    status_hint = 404
    public_message = "There is nothing at this address"


class MethodNotAllowed(ServiceError):
    code = "method-not-allowed"
    status_hint = 405
    public_message = "The method is not allowed here"


# 409, 410, 411, 412, 413, 415, 416


class DuplicateName(ServiceError):
    code = "duplicate-name"
    status_hint = 409
    public_message = "Two entries of the archive have the same name"


class RunDeleted(ServiceError):
    code = "run-deleted"
    status_hint = 409
    public_message = "The run has been deleted"


class RunBucketMismatch(ServiceError):
    code = "run-bucket-mismatch"
    status_hint = 409
    public_message = "The run lives in another bucket"


class BlobExists(ServiceError):
    code = "blob-exists"
    status_hint = 409
    public_message = "The blob is there already"


class UploadIncomplete(ServiceError):
    code = "upload-incomplete"
    status_hint = 409
    public_message = "The upload has not arrived"


class BlobChanged(ServiceError):
    code = "blob-changed"
    status_hint = 410
    public_message = "The blob changed or vanished after this link was made"


class LengthRequired(ServiceError):
    code = "length-required"
    status_hint = 411
    public_message = "The request needs a Content-Length"


class PreconditionFailed(ServiceError):
    code = "precondition-failed"
    status_hint = 412
    public_message = "A precondition of the request does not hold"


class SelectionTooLarge(ServiceError):
    code = "selection-too-large"
    status_hint = 413
    public_message = "The selection has too many entries"


class PayloadTooLarge(ServiceError):
    code = "payload-too-large"
    status_hint = 413
    public_message = "The request body is too large"


class UnsupportedMediaType(ServiceError):
    code = "unsupported-media-type"
    status_hint = 415
    public_message = "The request body must be application/json"


class RangeNotSatisfiable(ServiceError):
    code = "range-not-satisfiable"
    status_hint = 416
    public_message = "The range lies outside the representation"


# 429, 431


class TooManyDownloads(ServiceError):
    code = "too-many-downloads"
    status_hint = 429
    public_message = "This token has too many downloads running"
    default_retry_after = 5


class HeadersTooLarge(ServiceError):
    code = "headers-too-large"
    status_hint = 431
    public_message = "The request line or a header is too long"


# 502, 503, 504, 505


class StorageError(ServiceError):
    """The store answered, and not as it should: a refusal, or bytes other than those asked for."""

    code = "storage-error"
    status_hint = 502
    public_message = "The storage refused or gave a wrong answer"


class StorageUnavailable(ServiceError):
    """The store cannot be reached or is overloaded; another try may succeed."""

    code = "storage-unavailable"
    status_hint = 503
    public_message = "The storage is unavailable"
    default_retry_after = 5


class StorageTimeout(ServiceError):
    code = "storage-timeout"
    status_hint = 504
    public_message = "The storage did not answer in time"
    default_retry_after = 5


class StateUnavailable(ServiceError):
    """The state store cannot be reached, or gave up after bounded retries; whether it wrote anything is not known."""

    code = "state-unavailable"
    status_hint = 503
    public_message = "The state store is unavailable"
    default_retry_after = 5


class BusUnavailable(ServiceError):
    """The event bus cannot be reached, or refuses. Workers wait for it; no request does."""

    code = "bus-unavailable"
    status_hint = 503
    public_message = "The event bus is unavailable"
    default_retry_after = 5


class Busy(ServiceError):
    code = "busy"
    status_hint = 503
    public_message = "This server is busy"
    default_retry_after = 5


class ShuttingDown(ServiceError):
    code = "shutting-down"
    status_hint = 503
    public_message = "This server is shutting down"
    default_retry_after = 1


class HttpVersionNotSupported(ServiceError):
    code = "http-version-not-supported"
    status_hint = 505
    public_message = "This needs HTTP/1.1 (HTTP/1.0 where the body's length is known)"


def error_class(code: str) -> type[ServiceError] | None:
    """The error that has ``code``, None where there is none."""
    return next((each for each in ServiceError.__subclasses__() if each.code == code), None)
