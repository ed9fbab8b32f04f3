"""The framing of multipart/form-data (RFC 7578, RFC 2046 section 5.1): what stands before, between and after parts.

The law: a header's value cannot end its header, whatever it was made of.
"""

import re
from collections.abc import Mapping

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def part_head(boundary: str, headers: Mapping[str, str], *, first: bool) -> bytes:
    """The delimiter and the headers of a part, in UTF-8; its content follows as it is.

    ``boundary`` must not be in any content: whoever makes it takes care that nobody can guess it.
    """
    lines = [f"--{boundary}", *(f"{name}: {_CONTROL.sub('_', value)}" for name, value in headers.items()), "", ""]
    return (b"" if first else b"\r\n") + "\r\n".join(lines).encode("utf-8", "replace")


def closing(boundary: str) -> bytes:
    """What ends the body, after the last part's content."""
    return f"\r\n--{boundary}--\r\n".encode()


def form_data(name: str, filename: str | None) -> str:
    """A part's Content-Disposition: RFC 7578 section 4.2 has no ``filename*``; quotes are percent-encoded."""
    if filename is None:
        return f'form-data; name="{name}"'
    return f'form-data; name="{name}"; filename="{filename.replace(chr(34), "%22")}"'
