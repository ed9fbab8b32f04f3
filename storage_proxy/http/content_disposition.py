"""The Content-Disposition header (RFC 6266, RFC 8187): a name for every client."""

import unicodedata
from urllib.parse import quote

from storage_proxy.common.tokens import Disposition


def content_disposition(disposition: Disposition, filename: str) -> str:
    """Both forms: an ASCII ``filename`` that old clients take, and the exact one as ``filename*``."""
    decomposed = unicodedata.normalize("NFKD", filename)
    plain = "".join("" if unicodedata.combining(c) else c if " " <= c <= "~" else "_" for c in decomposed)
    plain = plain.replace("\\", "_").replace('"', "_").replace("%", "_").replace("/", "_")
    exact = quote(filename, safe="!#$&+-.^_`|~")
    return f"{disposition}; filename=\"{plain}\"; filename*=UTF-8''{exact}"
