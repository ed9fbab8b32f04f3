"""The check of an archive's selection: every name and key that a caller gave, before anything is looked up.

The law: all that is wrong is told at once, each at its place in the request.
"""

from collections.abc import Iterator

from storage_proxy.common.errors import FieldError, UnsafeName
from storage_proxy.common.names import unsafe_key_reason, unsafe_reason
from storage_proxy.common.problems import MAX_FIELD_ERRORS
from storage_proxy.common.wire import ArchiveSelection, SelectedBlob


def check_selection(selection: ArchiveSelection) -> None:
    """Refuse ``selection`` when a name or a key in it is unsafe.

    Raises `UnsafeName`; its ``errors`` are at ``["entries", i, "key" | "name"]`` or ``["prefix"]``, at most
    `MAX_FIELD_ERRORS` of them.
    """
    errors: list[FieldError] = []
    if selection.prefix and (reason := unsafe_key_reason(selection.prefix.removesuffix("/"))):
        errors.append({"loc": ["prefix"], "msg": reason})
    count = 0
    for index, entry in enumerate(selection.entries or ()):
        for field, reason in _unsafe_fields(entry):
            count += 1
            if len(errors) < MAX_FIELD_ERRORS:
                errors.append({"loc": ["entries", index, field], "msg": reason})
    if errors:
        raise UnsafeName(f"{max(count, 1)} of the names and keys are not safe", errors=errors)


def _unsafe_fields(entry: SelectedBlob) -> Iterator[tuple[str, str]]:
    if reason := unsafe_key_reason(entry.key):
        yield "key", reason
    elif entry.name is None and (reason := unsafe_reason(entry.key)):
        yield "key", f"{reason}: give the entry a name"
    if entry.name is not None:
        if reason := unsafe_reason(entry.name):
            yield "name", reason
        elif entry.name.endswith("/") and not entry.key.endswith("/"):
            yield "name", "ends in / while the key does not"
