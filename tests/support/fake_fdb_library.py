"""The C library libfdb_c in front of the simulated client, for the real Python binding: its ctypes calls end here.

What is real: the package `fdb` as it is installed, with its futures, callbacks, lazy values, selectors and options.
Every argument goes through the conversion that the binding declared, as ctypes would do it.
"""

import atexit
import ctypes
import importlib
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from tests.support.fake_fdb import FakeFdb, FakeTransaction, KeySelector
from tests.support.fake_fdb_network import FakeFuture, FDBError

TIMEOUT, MAX_RETRY_DELAY = 500, 502
_READ_CONFLICT = 0


class _Pair(ctypes.Structure):
    """FDBKeyValue of fdb_c.h."""

    _pack_ = 4
    _fields_ = (
        ("key", ctypes.c_char_p),
        ("key_length", ctypes.c_int),
        ("value", ctypes.c_char_p),
        ("value_length", ctypes.c_int),
    )


class _Function:
    """A function of a `ctypes.CDLL`."""

    def __init__(self, name: str, work: Callable[..., Any] | None) -> None:
        self._name = name
        self._work = work
        self.argtypes: list[Any] | None = None
        self.restype: Any = ctypes.c_int
        self.errcheck: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        if self._work is None:
            raise NotImplementedError(self._name)
        if self.argtypes is not None:
            for declared, argument in zip(self.argtypes, arguments, strict=True):
                declared.from_param(argument)
        result = self._work(*arguments)
        return result if self.errcheck is None else self.errcheck(result, self, arguments)


class FakeLibrary:
    """Stands in for the loaded library. Objects are numbers outside of it, as pointers are."""

    def __init__(self, client: FakeFdb) -> None:
        self._client = client
        self._objects: dict[int, Any] = {}
        self._numbers = itertools.count(1)
        self._stopped = threading.Event()

    def __getattr__(self, name: str) -> _Function:
        if not name.startswith("fdb_"):
            raise AttributeError(name)
        function = _Function(name, getattr(type(self), name[4:], None) and getattr(self, name[4:]))
        setattr(self, name, function)  # where the binding finds it again, with what it declared
        return function

    def _keep(self, made: Any) -> int:
        number = next(self._numbers)
        self._objects[number] = made
        return number

    def _drop(self, number: int | None) -> None:
        del self._objects[number or 0]

    transaction_destroy = future_destroy = _drop

    # The network

    def select_api_version_impl(self, version: int, _: int) -> int:
        self._client.version = version
        return 0

    def get_error(self, code: int) -> bytes:
        return b"error %d" % code

    def setup_network(self) -> int:
        return 0

    def run_network(self) -> int:
        self._stopped.wait()
        return 0

    def stop_network(self) -> int:
        self._stopped.set()
        return 0

    # Databases and transactions

    def create_database(self, path: bytes | None, made: Any) -> int:
        try:
            database = self._client.open(None if path is None else path.decode())
        except FDBError as error:
            return error.code
        made._obj.value = self._keep(database)
        return 0

    def database_destroy(self, database: ctypes.c_void_p) -> None:
        self._drop(database.value)

    def database_create_transaction(self, database: ctypes.c_void_p, made: Any) -> int:
        made._obj.value = self._keep(self._objects[database.value or 0].create_transaction())
        return 0

    def transaction_set_option(self, number: int, option: int, value: bytes, length: int) -> int:
        assert length == 8, "an option of a transaction is a 64-bit number"
        options = self._objects[number].options
        {TIMEOUT: options.set_timeout, MAX_RETRY_DELAY: options.set_max_retry_delay}[option](
            int.from_bytes(value, "little")
        )
        return 0

    def transaction_get_read_version(self, number: int) -> int:
        return self._keep(self._objects[number].get_read_version())

    def transaction_get(self, number: int, key: bytes, length: int, snapshot: int) -> int:
        assert len(key) == length
        return self._keep(self._objects[number].get(key, snapshot=bool(snapshot)))

    def transaction_get_range(self, number: int, *arguments: Any) -> int:
        begin, _, begin_or_equal, begin_offset, end, _, end_or_equal, end_offset, *rest = arguments
        limit, target_bytes, mode, iteration, snapshot, reverse = rest
        assert (begin_or_equal, begin_offset, end_or_equal, end_offset) == (False, 1, False, 1)
        assert target_bytes == 0
        transaction: FakeTransaction = self._objects[number]
        selectors = KeySelector.first_greater_or_equal(begin), KeySelector.first_greater_or_equal(end)
        return self._keep(
            transaction._get_range(*selectors, limit, mode, iteration, bool(reverse), snapshot=bool(snapshot))
        )

    def transaction_set(self, number: int, key: bytes, _: int, value: bytes, __: int) -> None:
        self._objects[number].set(key, value)

    def transaction_clear(self, number: int, key: bytes, _: int) -> None:
        self._objects[number].clear(key)

    def transaction_clear_range(self, number: int, begin: bytes, _: int, end: bytes, __: int) -> None:
        self._objects[number].clear_range(begin, end)

    def transaction_add_conflict_range(self, number: int, begin: bytes, _: int, end: bytes, __: int, kind: int) -> int:
        assert kind == _READ_CONFLICT
        self._objects[number].add_read_conflict_range(begin, end)
        return 0

    def transaction_commit(self, number: int) -> int:
        return self._keep(self._objects[number].commit())

    def transaction_on_error(self, number: int, code: int) -> int:
        return self._keep(self._objects[number].on_error(code))

    # Futures

    def future_is_ready(self, number: int) -> int:
        return int(self._objects[number].is_ready())

    def future_set_callback(self, number: int, callback: Any, _: None) -> int:
        self._objects[number].on_ready(lambda _: callback(None))
        return 0

    def future_cancel(self, number: int) -> None:
        self._objects[number].cancel()

    def future_release_memory(self, number: int) -> None:
        assert self._objects[number].is_ready()

    def _result(self, number: int) -> tuple[Any, int]:
        try:
            return FakeFuture.wait(self._objects[number]), 0
        except FDBError as error:
            return None, error.code

    def future_get_error(self, number: int) -> int:
        return self._result(number)[1]

    def future_get_int64(self, number: int, out: Any) -> int:
        result, code = self._result(number)
        if not code:
            out._obj.value = result
        return code

    def future_get_value(self, number: int, present: Any, out: Any, length: Any) -> int:
        result, code = self._result(number)
        if code:
            return code
        present._obj.value = result is not None
        if result is not None:
            length._obj.value = len(result)
            self._objects[number].memory = buffer = ctypes.create_string_buffer(result)
            out._obj.contents = ctypes.c_byte.from_buffer(buffer)
        return 0

    def future_get_keyvalue_array(self, number: int, out: Any, count: Any, more: Any) -> int:
        result, code = self._result(number)
        if code:
            return code
        pairs, count._obj.value, more._obj.value = result
        array = (_Pair * max(1, len(pairs)))()
        for place, pair in zip(array, pairs, strict=False):
            place.key, place.key_length = pair.key, len(pair.key)
            place.value, place.value_length = pair.value, len(pair.value)
        self._objects[number].memory = array
        ctypes.memmove(ctypes.byref(out._obj), ctypes.byref(ctypes.c_void_p(ctypes.addressof(array))), 8)
        return 0


@contextmanager
def real_binding(client: FakeFdb, api_version: int = 710) -> Iterator[Any]:
    """The installed package `fdb`, a copy of its own, on the simulated ``client``."""
    library = FakeLibrary(client)
    installed = _take_modules()
    try:
        with mock.patch.object(ctypes, "CDLL", return_value=library):
            fdb = importlib.import_module("fdb")
            fdb.api_version(api_version)
            implementation = importlib.import_module("fdb.impl")
        atexit.unregister(implementation._stop_on_exit)
    finally:
        _take_modules()
        sys.modules.update(installed)
    try:
        yield fdb
    finally:
        library.stop_network()
        if implementation._network_thread is not None:
            implementation._network_thread.join()


def _take_modules() -> dict[str, Any]:
    names = [name for name in sys.modules if name == "fdb" or name.startswith("fdb.")]
    return {name: sys.modules.pop(name) for name in names}
