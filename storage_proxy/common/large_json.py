"""JSON with very many entries: in a thread, and with Python between two of them.

The law: there the interpreter changes threads, and nowhere within Pydantic or the JSON encoder. Without it a hundred
thousand entries would be checked or written in one breath, and an event loop beside them stand still. Only the parse of
a text itself is one.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from pydantic import AfterValidator, BaseModel, SerializerFunctionWrapHandler, WrapSerializer

LARGE_BYTES = 64 << 10
"""What takes longer than a millisecond to read is read in a thread."""

MANY = 1000
"""Entries that take longer than a millisecond to write."""

_T = TypeVar("_T")


def _as_it_is(entry: _T) -> _T:
    return entry


def _as_written(entry: object, write: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def] # a type would be the schema's
    return write(entry)


READ_IN_TURNS = AfterValidator(_as_it_is)
"""For the type of a list's entries."""

WRITTEN_IN_TURNS = WrapSerializer(_as_written)
"""For the type of a list's entries."""


async def by_size(body: bytes, read: Callable[[bytes], _T]) -> _T:
    """What ``read`` makes of ``body``, in a thread where it is large."""
    if len(body) <= LARGE_BYTES:
        return read(body)
    return await asyncio.to_thread(read, body)


async def dumped(model: BaseModel) -> bytes:
    """``model`` as JSON; in a thread where a list in it is long."""
    if any(isinstance(value, list) and len(value) > MANY for value in vars(model).values()):
        return await asyncio.to_thread(_dumped, model)
    return _dumped(model)


def _dumped(model: BaseModel) -> bytes:
    return model.model_dump_json().encode()
