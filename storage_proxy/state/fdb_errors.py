"""FoundationDB's error codes as the port's errors: written once, for every call.

The law: what another attempt may heal is `FdbAttemptFailed`, and the client itself (`on_error`) says whether it may;
all else is an error of the port, with the code in its text.
"""

from storage_proxy.common.errors import Internal, ServiceError, StateUnavailable
from storage_proxy.state import limits
from storage_proxy.state.attempts import TooOld
from storage_proxy.state.port import AttemptFailed

_TRANSACTION_TOO_OLD = 1007
_TRANSACTION_TIMED_OUT = 1031
# Before anything runs: at open, and by the first request of a client that opens lazily.
_IO_ERROR = 1510
_CLUSTER_FILE_NOT_READABLE = 1513
_NO_CLUSTER_FILE = 1515
_CLUSTER_FILE_INVALID = 2104

_DEFECTS: dict[int, tuple[type[Internal], str]] = {
    2004: (limits.KeyReserved, "A key lies outside of what may be used"),
    2005: (limits.LimitExceeded, "A range ends before it begins"),
    2017: (limits.TransactionFinished, "A transaction was used during its commit"),
    2101: (limits.TransactionTooLarge, "The transaction is over the limit of bytes"),
    2102: (limits.KeyTooLarge, "A key is over the limit of bytes"),
    2103: (limits.ValueTooLarge, "A value is over the limit of bytes"),
}
_OUTAGES = {
    1025: "gave up a transaction that was dropped",
    1101: "gave up a request that was cancelled",
    _TRANSACTION_TIMED_OUT: "did not answer in time: the cluster cannot be reached, or is overloaded",
    _IO_ERROR: "cannot read a file",
    _CLUSTER_FILE_NOT_READABLE: "may not read its cluster file",
    _NO_CLUSTER_FILE: "has no cluster file: there is none at the configured path",
    _CLUSTER_FILE_INVALID: "cannot be found: the cluster file is not valid",
}


class FdbAttemptFailed(AttemptFailed):
    """The client reported ``code``; `on_error` decides whether the attempt may be repeated."""

    def __init__(self, code: int) -> None:
        super().__init__(f"FoundationDB error {code}")
        self.code = code


class FdbTooOld(FdbAttemptFailed, TooOld):
    """The cluster has forgotten the version that the attempt read."""


def during_attempt(code: int) -> ServiceError | FdbAttemptFailed:
    """What an attempt raises for ``code``: final where that is certain."""
    if code in _DEFECTS or code in _OUTAGES:
        return final(code)
    return FdbTooOld(code) if code == _TRANSACTION_TOO_OLD else FdbAttemptFailed(code)


def final(code: int) -> ServiceError:
    """What the port raises for a ``code`` that no other attempt heals."""
    if code in _DEFECTS:
        error, text = _DEFECTS[code]
        return error(f"{text} (FoundationDB error {code})")
    return StateUnavailable(f"FoundationDB {_OUTAGES.get(code, 'failed')} (error {code})")
