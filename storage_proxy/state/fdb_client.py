"""The FoundationDB client library and a database of it, or a clear reason why there is none.

The law: nothing is loaded or opened at import; the database is opened in the process that uses it, since a process
forked after that hangs for ever in the client.
"""

import importlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage_proxy.common.errors import StateUnavailable
from storage_proxy.state import fdb_errors
from storage_proxy.state.attempts import RetryPolicy

# Below it a retry forgets a transaction's options, its timeout among them (before 610), and 7.1 is the oldest cluster.
_OLDEST_API_VERSION = 710


@dataclass(frozen=True, slots=True)
class FdbOptions:
    """``cluster_file`` None is the one that the client finds by itself (FDB_CLUSTER_FILE, /etc/foundationdb).

    ``api_version`` is 710 for clusters of 7.1 and later; the `foundationdb` package and the client library must be of
    the cluster's minor version. Times are in seconds.
    """

    cluster_file: Path | None = None
    api_version: int = 710
    probe_seconds: float = 1.5
    max_retry_delay_seconds: float = 0.5
    retries: RetryPolicy = field(default_factory=RetryPolicy)


class FdbClient:
    """The module `fdb` at one API version, and the database of one cluster file."""

    def __init__(self, module: Any, database: Any) -> None:
        self.module = module
        self._database = database
        self._process = os.getpid()

    def transaction(self, *, timeout_seconds: float, max_retry_delay_seconds: float) -> Any:
        """A native transaction that ends by itself (error 1031) after the timeout, retries included."""
        if os.getpid() != self._process:
            raise StateUnavailable("FoundationDB was opened before this process was forked: open it after")
        transaction = self._database.create_transaction()
        transaction.options.set_timeout(max(1, int(timeout_seconds * 1000)))
        transaction.options.set_max_retry_delay(int(max_retry_delay_seconds * 1000))
        return transaction


def open_client(options: FdbOptions, module: Any | None = None) -> FdbClient:
    """Load the library, choose the API version, open the database. Asks nothing of the cluster yet.

    ``module`` stands in for the package `fdb`. Raises `StateUnavailable`.
    """
    if options.api_version < _OLDEST_API_VERSION:
        raise StateUnavailable(f"FoundationDB's API version has to be {_OLDEST_API_VERSION} or later")
    fdb = importlib.import_module("fdb") if module is None else module
    try:
        fdb.api_version(options.api_version)
    except Exception as error:  # the binding raises a bare Exception, a RuntimeError, or what ctypes raises
        raise StateUnavailable(_library_problem(error, options.api_version)) from error
    path = None if options.cluster_file is None else str(options.cluster_file)
    try:
        database = fdb.open(path)
    except fdb.FDBError as error:
        reason = fdb_errors.final(error.code).detail
        raise StateUnavailable(f"{reason}; configured: {path or 'none, so the default'}") from error
    return FdbClient(fdb, database)


def _library_problem(error: Exception, api_version: int) -> str:
    if "Unable to locate" in str(error):
        return (
            "FoundationDB's client library libfdb_c is not installed: install the package foundationdb-clients, in "
            "the version of the cluster"
        )
    return (
        f"FoundationDB's client library does not work with API version {api_version} and the installed foundationdb "
        f"package, which have to be of the cluster's version: {error}"
    )
