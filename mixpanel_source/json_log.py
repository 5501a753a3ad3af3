"""Log records as lines of JSON, for any handler of Python's logging. Imports nothing of ours."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

_OF_EVERY_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """`time` (ISO 8601, UTC), `level`, `logger`, `message`, what the call gave as `extra`, and any `exception`.

    Every text goes through `redact`.
    """

    def __init__(self, redact: Callable[[str], str] = str) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(self._redacted(line), ensure_ascii=False)

    def _redacted(self, value: Any) -> Any:
        """`value` as JSON can have it."""
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, Mapping):
            return {self._redact(str(key)): self._redacted(one) for key, one in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            return [self._redacted(one) for one in value]
        return self._redact(str(value))
