"""What `event_days` says is loaded: the truth about which days are there, whatever wrote them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

from mixpanel_source.windows import LoadedDay, windows_over

LOADED_DAYS_SQL = """
SELECT event_days.day, event_days.filter, event_days.exported_at, event_days.complete, event_days.rows,
    event_days.bytes
FROM event_days JOIN _dlt_loads ON _dlt_loads.load_id = event_days._dlt_load_id
WHERE _dlt_loads.status = 0
"""
"""A row counts once its load package is complete: `_dlt_loads.status` is 0."""


def loaded_days(rows: Iterable[Sequence[Any]], labels: Sequence[str | None]) -> list[LoadedDay]:
    """The days of `rows` (of LOADED_DAYS_SQL) that hold all of `labels`: values of `filter`, None being the whole day.

    A whole day holds every event. Of a day loaded in parts, the least complete and first exported part counts, and the
    rows of all.
    """
    best: dict[date, dict[str | None, LoadedDay]] = {}
    for day, label, exported_at, complete, count, size in rows:
        known = best.setdefault(day_of(day), {})
        loaded = LoadedDay(day_of(day), moment_of(exported_at), bool(complete), count, size)
        if label not in known or _rank(loaded) > _rank(known[label]):
            known[label] = loaded
    days = [_day_of(known, labels) for _, known in sorted(best.items())]
    return [day for day in days if day is not None]


def last_exports(rows: Iterable[Sequence[Any]]) -> dict[date, datetime]:
    """When each day of `rows` (of LOADED_DAYS_SQL), or a part of it, was exported last."""
    last: dict[date, datetime] = {}
    for day, _, exported_at, *_ in rows:
        day, exported_at = day_of(day), moment_of(exported_at)
        last[day] = max(last.get(day, exported_at), exported_at)
    return last


def day_of(value: date | str) -> date:
    """A day as a destination gives it: SQLite has text."""
    return date.fromisoformat(value) if isinstance(value, str) else value


def moment_of(value: datetime | str) -> datetime:
    """A moment as a destination gives it: in UTC, even where it does not say so."""
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _day_of(known: Mapping[str | None, LoadedDay], labels: Sequence[str | None]) -> LoadedDay | None:
    """None where `known` does not hold all of `labels`."""
    holding = [[label for label in {wanted, None} if label in known] for wanted in labels]
    if not all(holding):
        return None
    parts = [known[label] for label in {max(found, key=lambda label: _rank(known[label])) for found in holding}]
    least = min(parts, key=_rank)
    return replace(least, rows=sum(part.rows for part in parts), bytes=sum(part.bytes for part in parts))


def event_of(label: str) -> str | None:
    """The event that a part of a day holds, by its `filter`; None where it is that of an expression."""
    filter_ = json.loads(label)
    return None if "where" in filter_ else filter_["event"]


def recorded_otherwise(recorded: Mapping[str | None, int], there: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Where the rows of a day are not as many as its loads have recorded: (event, or "" for all; recorded; there).

    `recorded` are rows by `filter`, `there` by event. Nothing is known of a day of which an expression has replaced
    some rows, nor of all rows together where a part was loaded after the whole day.
    """
    parts = {label: event_of(label) for label in recorded if label is not None}
    if None in parts.values():
        return []
    counts = [(name, recorded[label], there.get(name, 0)) for label, name in parts.items() if name is not None]
    if not parts:
        counts = [("", count, sum(there.values())) for count in recorded.values()]
    return sorted(one for one in counts if one[1] != one[2])


def days_scope(column: str, days: Iterable[date]) -> str:
    """SQL that is true of exactly `days`. Without DATE, which SQLite does not know: its dates are text."""
    windows = windows_over(days, max_days=1_000_000)
    return " OR ".join(f"({column} >= '{w.first}' AND {column} <= '{w.last}')" for w in windows)


def _rank(day: LoadedDay) -> tuple[bool, datetime]:
    return day.complete, day.exported_at
