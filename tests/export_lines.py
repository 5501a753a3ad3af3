"""Event lines as an export holds them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any


def at(day: str, hour: float = 0.0) -> int:
    """A time of a UTC day in milliseconds since 1970."""
    return round(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000 + hour * 3_600_000)


def line(time: Any, n: int, event: str = "E", **properties: Any) -> bytes:
    """One event whose `$insert_id` says its `n`, processed a second after it happened."""
    found: dict[str, Any] = {"time": time, "distinct_id": f"u{n % 7}", "$insert_id": f"i{n}", "n": n}
    if isinstance(time, int):
        found["mp_processing_time_ms"] = time + 1000
    found |= properties
    return json.dumps({"event": event, "properties": found}, ensure_ascii=False, separators=(",", ":")).encode()


def day_lines(day: str, count: int, event: str = "E", first: int = 0) -> list[bytes]:
    """`count` events of a day, a minute apart, numbered from `first`."""
    start = at(day)
    return [line(start + 60_000 * n, first + n, event) for n in range(count)]


def days(first: str, count: int) -> list[str]:
    """`count` days from `first` on."""
    start = datetime.fromisoformat(first).date()
    return [(start + timedelta(days=n)).isoformat() for n in range(count)]


def properties_of(text: bytes) -> str:
    """The text of the properties of a line in Mixpanel's own shape."""
    return text.decode().partition(',"properties":')[2][:-1]
