"""Logs: lines for a person in development, one JSON object a line in production. Never a token or a secret."""

import json
import logging
import re
import sys
from typing import Any

from storage_proxy.common.values import rfc3339

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# A second lock: nothing of ours logs these, a library's message might.
_CREDENTIALS = re.compile(r"(?i)eyJ[\w-]*\.[\w-]*(?:\.[\w-]*)?|(bearer\s+|token=|x-amz-signature=)[^\s&\"']+")


def redacted(text: str) -> str:
    """``text`` without anything that looks like a token or a signature."""
    return _CREDENTIALS.sub(lambda match: f"{match[1] or ''}[redacted]", text)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """A record as one JSON object; what was given as ``extra`` becomes its members."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": f"{rfc3339(int(record.created))[:-1]}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return redacted(json.dumps(entry, default=str, ensure_ascii=False))


class LineFormatter(logging.Formatter):
    """A record as one line for a person; what was given as ``extra`` follows as ``key=value``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        line, newline, rest = super().format(record).partition("\n")
        fields = "".join(f" {key}={value}" for key, value in _fields(record).items() if value is not None)
        return redacted(f"{line}{fields}{newline}{rest}")


class _Numbered(logging.Filter):
    """Lets everything through, with the number of this process."""

    def __init__(self, process: int) -> None:
        super().__init__()
        self._process = process

    def filter(self, record: logging.LogRecord) -> bool:
        record.__dict__["child"] = self._process
        return True


def configure_logs(environment: str, *, process: int | None = None) -> None:
    """Send everything of level INFO to stderr, in the form of the environment; every line says which ``process``."""
    handler = logging.StreamHandler(sys.stderr)
    if process is not None:
        handler.addFilter(_Numbered(process))
    handler.setFormatter(JsonFormatter() if environment == "production" else LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for noisy in ("aiokafka", "botocore", "aiobotocore", "boto3", "urllib3", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
