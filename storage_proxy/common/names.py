"""Rules for the names that people and programs give: keys, archive names, file names.

The law: a name that a caller gives is accepted as it is or refused; a name that comes from a listed key is
never refused, its unsafe parts become ``_``.
"""

import re
import unicodedata

from storage_proxy.common.errors import UnsafeName

RESERVED_PREFIX = ".storage-proxy/"
"""Keys under it are the service's own: for a caller they do not exist."""
MANIFESTS_PREFIX = f"{RESERVED_PREFIX}manifests/"
"""Where the manifests are in their bucket."""
MAX_NAME_BYTES = 4096
MAX_PART_BYTES = 255
MAX_FILENAME_CHARACTERS = 255
MAX_KEY_BYTES = 1024

_DRIVE = re.compile(r"^[A-Za-z]:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DOTS = re.compile(r"(?:^|/)\.\.?(?:/|$)")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ud800-\udfff]")
_UNPORTABLE = str.maketrans(dict.fromkeys('<>:"|?*', "_"))
_RESERVED_STEMS = frozenset(
    ["CON", "PRN", "AUX", "NUL"]
    + [f"{device}{digit}" for device in ("COM", "LPT") for digit in "123456789\u00b9\u00b2\u00b3"]
)


def unsafe_reason(name: str) -> str | None:
    """Why ``name`` (an archive name given by a caller) is refused, or None when it is safe.

    One ``/`` at the end, a folder's, is allowed.
    """
    if reason := _unsafe_text_reason(name, MAX_NAME_BYTES):
        return reason
    if _DRIVE.match(name):
        return "is absolute"
    may_be_long = len(name) > MAX_PART_BYTES // 4  # characters of 4 bytes at the most
    for part in _parts(name):
        if part == "":
            return "contains an empty part"
        if may_be_long and len(part.encode()) > MAX_PART_BYTES:
            return f"contains a part longer than {MAX_PART_BYTES} bytes"
    return None


def unsafe_key_reason(key: str) -> str | None:
    """Why a caller may not name a blob by ``key``, or None when it may.

    Wider than a name: object stores hold keys with empty or long parts.
    """
    return _unsafe_text_reason(key, MAX_KEY_BYTES)


def _unsafe_text_reason(text: str, max_bytes: int) -> str | None:
    if not text:
        return "is empty"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "contains a lone surrogate"
    if size > max_bytes:
        return f"is longer than {max_bytes} bytes"
    if _CONTROL.search(text):
        return "contains a control character"
    if "\\" in text:
        return "contains a backslash"
    if text.startswith("/"):
        return "is absolute"
    if _DOTS.search(text):
        return "contains a . or .. part"
    return None


def require_safe_key(key: str) -> str:
    """Return ``key``; raise `UnsafeName` when a caller may not name a blob so."""
    if reason := unsafe_key_reason(key):
        raise UnsafeName(f"The key {reason}", errors=[{"loc": ["key"], "msg": reason}])
    return key


def unsafe_filename_reason(filename: str) -> str | None:
    """Why ``filename`` (one part, for Content-Disposition) is refused, or None when it is safe."""
    if not 1 <= len(filename) <= MAX_FILENAME_CHARACTERS:
        return f"must have 1 to {MAX_FILENAME_CHARACTERS} characters"
    try:
        filename.encode()
    except UnicodeEncodeError:
        return "contains a lone surrogate"
    if "/" in filename:
        return "contains a slash"
    if _CONTROL.search(filename):
        return "contains a control character"
    return None


def default_filename(key: str) -> str:
    """The file name of a blob whose caller named none: the key's last part, made safe."""
    last = key.rstrip("/").rpartition("/")[2]
    return sanitized(last)[:MAX_FILENAME_CHARACTERS] if last else "_"


def sanitized(name: str) -> str:
    """A safe archive name for a listed key: unsafe characters and parts become ``_``, long parts are cut."""
    name = _UNSAFE.sub("_", name)
    if _DRIVE.match(name):
        name = f"{name[0]}_{name[2:]}"
    folder = "/" if name.endswith("/") and name != "/" else ""
    parts = ["_" if part in ("", ".", "..") else cut(part, MAX_PART_BYTES) for part in _parts(name)]
    size = sum(len(part.encode()) + 1 for part in parts)
    while size > MAX_NAME_BYTES:  # too deep: the folders nearest to the file are left out
        size -= len(parts.pop(-2).encode()) + 1
    return "/".join(parts) + folder


def portable(name: str) -> str:
    """``name`` as Windows can store it, too: see the API's ``names: portable``."""
    folder = "/" if name.endswith("/") else ""
    return "/".join(_portable_part(part) for part in _parts(name)) + folder


def folded(name: str) -> str:
    """The form under which two names are the same file to a case-insensitive file system."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def numbered(name: str, number: int) -> str:
    """``name`` told apart by a number before its extension: ``a/b.txt`` and 2 give ``a/b (2).txt``."""
    folder = "/" if name.endswith("/") else ""
    parent, slash, last = name.removesuffix("/").rpartition("/")
    stem, dot, extension = last.rpartition(".")
    if folder or not stem:
        stem, dot, extension = last, "", ""
    suffix = f" ({number}){dot}{extension}"
    room = min(MAX_PART_BYTES, MAX_NAME_BYTES - len(f"{parent}{slash}{folder}".encode())) - len(suffix.encode())
    if room < 1:  # an extension so long that nothing of the stem would remain
        suffix = f" ({number})"
        stem, room = last, MAX_PART_BYTES - len(suffix.encode())
    return f"{parent}{slash}{cut(stem, room)}{suffix}{folder}"


def cut(text: str, size: int) -> str:
    """``text`` cut to at most ``size`` bytes of UTF-8, never within a character."""
    encoded = text.encode()
    return text if len(encoded) <= size else encoded[:size].decode(errors="ignore")


def _parts(name: str) -> list[str]:
    return name.removesuffix("/").split("/")


def _portable_part(part: str) -> str:
    part = _without_trailing(part.translate(_UNPORTABLE))
    stem, dot, rest = part.partition(".")
    if stem.rstrip(" ").upper() in _RESERVED_STEMS:
        part = _without_trailing(cut(f"{stem}_{dot}{rest}", MAX_PART_BYTES))
    return part


def _without_trailing(part: str) -> str:
    return part[:-1] + "_" if part.endswith((".", " ")) else part
