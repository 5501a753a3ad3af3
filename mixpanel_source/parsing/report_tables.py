"""Rows of reports, as `parsing.reports` gives them, as Arrow tables of fixed schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any

import pyarrow as pa

from mixpanel_source.parsing.reports import Rows
from mixpanel_source.raw_json import ExactFloat

_DATES = [("date", pa.string()), ("day", pa.date32()), ("starts_at", pa.timestamp("us"))]
_VALUES = [("value", pa.float64()), ("value_text", pa.string())]
_ASKED = [("question", pa.string()), ("from_date", pa.date32()), ("to_date", pa.date32())]

SCHEMAS: Mapping[str, pa.Schema] = {
    "segmentation": pa.schema(
        [
            ("report", pa.string()),
            ("event", pa.string()),
            ("segment_property", pa.string()),
            ("segment", pa.string()),
            *_DATES,
            ("unit", pa.string()),
            ("type", pa.string()),
            ("math", pa.string()),
            *_VALUES,
            *_ASKED,
        ]
    ),
    "event_counts": pa.schema(
        [
            ("report", pa.string()),
            ("event", pa.string()),
            *_DATES,
            ("unit", pa.string()),
            ("type", pa.string()),
            *_VALUES,
            *_ASKED,
        ]
    ),
    "funnel_steps": pa.schema(
        [
            ("report", pa.string()),
            ("funnel_id", pa.int64()),
            ("segment_property", pa.string()),
            ("segment", pa.string()),
            *_DATES,
            ("unit", pa.string()),
            ("step", pa.int64()),
            ("event", pa.string()),
            ("label", pa.string()),
            ("count", pa.int64()),
            ("step_conv_ratio", pa.float64()),
            ("overall_conv_ratio", pa.float64()),
            ("avg_time", pa.float64()),
            ("avg_time_from_start", pa.float64()),
            *_ASKED,
        ]
    ),
    "retention_cohorts": pa.schema(
        [
            ("report", pa.string()),
            ("retention_type", pa.string()),
            ("born_event", pa.string()),
            ("event", pa.string()),
            ("segment_property", pa.string()),
            ("segment", pa.string()),
            *_DATES,
            ("unit", pa.string()),
            ("first", pa.int64()),
            ("interval", pa.int64()),
            ("at_least", pa.int64()),
            ("count", pa.int64()),
            *_ASKED,
        ]
    ),
    "insights": pa.schema(
        [
            ("report", pa.string()),
            ("bookmark_id", pa.int64()),
            ("headers", pa.string()),
            ("path", pa.string()),
            *_DATES,
            *_VALUES,
            ("from_date", pa.date32()),
            ("to_date", pa.date32()),
            ("computed_at", pa.timestamp("us", "UTC")),
        ]
    ),
}
"""By table. `starts_at` is the project's clock; what is JSON is named in JSON_COLUMNS."""

JSON_COLUMNS = ("question", "headers", "path")

_CALLED = {"count": "users"}
"""By column, what a report calls it that calls it otherwise."""
_MOMENT = re.compile(
    r"(?P<day>[0-9]{4}-[0-9]{2}-[0-9]{2})(?:[T ](?P<time>[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?)"
    r"(?:[-+][0-9]{2}:?[0-9]{2})?)?"
)
_INT64 = range(-(2**63), 2**63)


def to_arrow(table: str, rows: Rows, about: Mapping[str, Any]) -> pa.Table:
    """`rows` with the columns of `table`: what is not in them is as `about` has it for all, else NULL.

    Raises ValueError, TypeError or OverflowError for a value that is not what its column holds.
    """
    arrays = []
    for field in SCHEMAS[table]:
        worked_out = _WORKED_OUT.get(field.name)
        if worked_out is not None:
            name, read = worked_out
        else:
            name, read = _CALLED.get(field.name, field.name), _READ.get(field.type, _as_it_is)
        every = about.get(field.name)
        arrays.append(pa.array([read(row.get(name, row.get(field.name, every))) for row in rows], field.type))
    return pa.table(arrays, schema=SCHEMAS[table])


def dated(rows: Rows) -> dict[str, date | None]:
    """The days of the dates in `rows`; None for one that is in a form that is not known."""
    return {text: moment_of(text)[0] for text in dict.fromkeys(row["date"] for row in rows)}


@lru_cache
def moment_of(text: str | None) -> tuple[date | None, datetime | None]:
    """The day of a date and its beginning, by the project's clock; None where the form of the date is not known.

    A day, or with a time of the day; such a date carries the project's offset, or none. Mixpanel docs: Insights, Query
    Saved Report. How it writes hours and minutes elsewhere is not in the docs.
    """
    found = _MOMENT.fullmatch(text or "")
    try:
        if found:
            moment = datetime.fromisoformat(f"{found['day']} {found['time'] or '00:00'}")
            return moment.date(), moment
    except ValueError:
        pass
    return None, None


def computed_at(text: object) -> datetime | None:
    """When a saved report was worked out, where that is a moment."""
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
        return moment.astimezone(UTC) if moment and moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _value(value: Any) -> float | None:
    """NULL for what is no number, such as a text in a saved report, or too large for one."""
    if isinstance(value, (list, dict)):
        raise TypeError(f"{str(value)[:40]!r} where one value was expected")
    try:
        return float(value) if _is_number(value) else None
    except OverflowError:
        return None


def _every_digit(value: Any) -> str | None:
    return _text(value.text if isinstance(value, ExactFloat) else value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(value: Any) -> int | None:
    if value is None:
        return None
    if not _is_number(value) or value != int(value) or int(value) not in _INT64:
        raise ValueError(f"{str(value)[:40]!r} where a whole number was expected")
    return int(value)


def _ratio(value: Any) -> float | None:
    if value is None:
        return None
    if not _is_number(value):
        raise ValueError(f"{str(value)[:40]!r} where a number was expected")
    return float(value)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _as_it_is(value: Any) -> Any:
    return value


_READ: dict[pa.DataType, Callable[[Any], Any]] = {pa.int64(): _whole, pa.float64(): _ratio, pa.string(): _text}
_WORKED_OUT: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "day": ("date", lambda text: moment_of(text)[0]),
    "starts_at": ("date", lambda text: moment_of(text)[1]),
    "value": ("value", _value),
    "value_text": ("value", _every_digit),
}
"""Columns that come from another one of the rows, or in two forms."""
