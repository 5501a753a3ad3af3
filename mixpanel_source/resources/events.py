"""The `events` table, with `event_days` and `rejected_lines` beside it in the same load package.

Read this one first: it calls the client and the parser through `Exports`, and names how days are replaced.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import dlt
import pyarrow as pa
import pyarrow.compute as pc
from dlt.extract import DltResource

from mixpanel_source.errors import MixpanelDataError
from mixpanel_source.exports import EventFilter, Exports, WindowRows, warn_of_other_kind
from mixpanel_source.parsing import events as parsing
from mixpanel_source.project import Project, spool_folder
from mixpanel_source.resources.event_file import EventFile
from mixpanel_source.resources.load_package import replace_in_one_transaction, with_load_id
from mixpanel_source.windows import ONE_DAY, Window, windows_over

logger = logging.getLogger(__name__)

EVENT_DAYS_SCHEMA = pa.schema(
    [
        ("day", pa.date32()),
        ("filter", pa.string()),
        ("rows", pa.int64()),
        ("duplicates", pa.int64()),
        ("rejected", pa.int64()),
        ("bytes", pa.int64()),
        ("requests", pa.int64()),
        ("attempts", pa.int64()),
        ("exported_at", pa.timestamp("us", "UTC")),
        ("complete", pa.bool_()),
    ]
)
REJECTED_LINES_SCHEMA = pa.schema(
    [
        ("from_date", pa.date32()),
        ("to_date", pa.date32()),
        ("filter", pa.string()),
        ("line_number", pa.int64()),
        ("reason", pa.string()),
        ("loaded", pa.bool_()),
        ("raw", pa.binary()),
    ]
)

_JSON_COLUMNS: Any = {"properties": {"data_type": "json"}, "extra": {"data_type": "json"}}


def events(
    open_project: Callable[[], Project],
    windows: Callable[[Project], Sequence[Window]],
    filter_: EventFilter = EventFilter(),
) -> DltResource:
    """The events of some windows, replacing exactly their days (or, with a filter, their part of these days).

    `open_project` and `windows` are called when the resource is read: a source is built without asking anyone anything.
    """

    @dlt.resource(name="events", write_disposition="merge")
    def read() -> Iterator[Any]:
        project = open_project()
        asked = windows(project)
        if not asked:
            return
        with project.client() as client, Exports(client, project, asked, filter_) as exports:
            yield from _package(exports)
            warn_of_other_kind(exports.lags, project, logger.warning)

    return read


def events_package(exports: Exports, max_bytes: int, holds_none_of: Callable[[Sequence[date]], bool]) -> DltResource:
    """As many of the next windows as make `max_bytes` of properties, at least one, as the `events` of one load package.

    `holds_none_of` says whether the destination has no row of some days: appending is then the same as replacing,
    for less. A window that fails ends the package before it, and the next one raises its error.
    """

    @dlt.resource(name="events", write_disposition="merge")
    def read() -> Iterator[Any]:
        with EventFile(spool_folder()) as file:
            yield from _package(exports, file, max_bytes, holds_none_of)

    return read


def _package(
    exports: Exports,
    file: EventFile | None = None,
    max_bytes: int | None = None,
    holds_none_of: Callable[[Sequence[date]], bool] = lambda days: False,
) -> Iterator[Any]:
    """What dlt is given. With `file` the rows go through it, which not every destination can take."""
    replace_in_one_transaction()
    # `events` comes last: the other tables start from the hints that the resource has by then.
    yield _hinted(EVENT_DAYS_SCHEMA, "event_days")
    yield _hinted(REJECTED_LINES_SCHEMA, "rejected_lines")
    yield _hinted(parsing.SCHEMA, "events", columns=_JSON_COLUMNS)
    days: list[date] = []
    event_days: list[pa.Table] = []
    rejected_lines: list[pa.Table] = []
    size = 0
    while not exports.is_done and (max_bytes is None or size < max_bytes):
        try:
            rows = exports.next()
        except MixpanelDataError:
            if max_bytes is not None and days:
                break
            raise
        with rows.held:
            counts = _DayCounts(rows.window, exports.filter)
            for table, duplicates in rows.tables():
                counts.count(table, duplicates)
                if file is None:
                    yield with_load_id(table)
                else:
                    file.write(with_load_id(table))
        days += rows.window.days
        event_days.append(counts.rows_of(rows, exports.project.calendar))
        rejected_lines.append(_rejected_table(rows, exports.filter))
        size += counts.bytes
        if exports.progress:
            exports.progress.loaded(rows.window, counts.rows, counts.bytes)
    if file is not None:
        yield from file.items()
    # Last, and together: dlt computes a table's schema anew each time the table changes.
    yield dlt.mark.with_table_name(with_load_id(pa.concat_tables(event_days)), "event_days")
    yield dlt.mark.with_table_name(with_load_id(pa.concat_tables(rejected_lines)), "rejected_lines")
    # Only now is it known which days are replaced. Even with no row, these empty tables make dlt replace them.
    yield _hinted(EVENT_DAYS_SCHEMA, "event_days", _days_scope("day", days, exports.filter))
    yield _hinted(REJECTED_LINES_SCHEMA, "rejected_lines", _days_scope("from_date", days, exports.filter))
    if exports.filter == EventFilter() and holds_none_of(days):
        yield dlt.mark.with_hints(
            with_load_id(parsing.SCHEMA.empty_table()), dlt.mark.make_hints(write_disposition="append")
        )
    else:
        yield _hinted(parsing.SCHEMA, "events", _events_scope(days, exports.filter), _JSON_COLUMNS)


def _hinted(schema: pa.Schema, name: str, scope: str | None = None, columns: Any = None) -> Any:
    """An empty table that carries the hints of its table. No keys: with one, dlt compares every pair of rows."""
    disposition: Any = {"disposition": "merge", "strategy": "delete-insert"}
    if scope is not None:
        disposition["destination_scope"] = scope
    hints = dlt.mark.make_hints(table_name=name, columns=columns, write_disposition=disposition)
    return dlt.mark.with_hints(with_load_id(schema.empty_table()), hints, create_table_variant=name != "events")


def _events_scope(days: Iterable[date], filter_: EventFilter) -> str:
    """SQL that is true of the rows a run replaces."""
    if filter_.where is not None:  # an upsert: only what comes again is deleted
        return "event_id IN (SELECT event_id FROM {staging_table})"
    scope = days_scope("event_date", days)
    if filter_.events:
        scope = f"({scope}) AND event_name IN ({_literals(filter_.events)})"
    return scope


def _days_scope(column: str, days: Iterable[date], filter_: EventFilter) -> str:
    scope = days_scope(column, days)
    labels = [label for label in filter_.labels if label is not None]
    # A whole day takes the place of every part of it.
    return f"({scope}) AND filter IN ({_literals(labels)})" if labels else scope


def days_scope(column: str, days: Iterable[date]) -> str:
    """SQL that is true of exactly `days`."""
    windows = windows_over(days, max_days=1_000_000)
    return " OR ".join(f"({column} >= DATE '{w.first}' AND {column} <= DATE '{w.last}')" for w in windows)


def _literals(texts: Iterable[str]) -> str:
    return ", ".join(f"'{text.translate(_IN_LITERAL)}'" for text in texts)


# dlt formats the scope, so braces are doubled. It splits it at semicolons and line ends, and a scope that holds
# ALTER SCHEMA it runs without a transaction: inside literals too.
_IN_LITERAL: dict[int, str] = {
    **{code: f"' || chr({code}) || '" for code in (*range(33), ord(";"), 0x85, 0x2028, 0x2029)},
    **str.maketrans({"'": "''", "{": "{{", "}": "}}"}),
}


class _DayCounts:
    """What `event_days` tells of each day (and each event, where the filter names some), as its tables go by."""

    def __init__(self, window: Window, filter_: EventFilter) -> None:
        self.rows = 0
        self.bytes = 0
        self._window = window
        self._filter = filter_
        self._keys = ["event_date", "event_name"] if filter_.events and filter_.where is None else ["event_date"]
        self._rows: Counter[tuple[date, str | None]] = Counter()
        self._bytes: Counter[tuple[date, str | None]] = Counter()
        self._duplicates: Counter[tuple[date, str | None]] = Counter()

    def count(self, table: pa.Table, duplicates: pa.Table) -> None:
        for key, rows, size in self._sizes(table):
            self.rows += rows
            self.bytes += size
            self._rows[key] += rows
            self._bytes[key] += size
        for key, rows, _ in self._sizes(duplicates):
            self._duplicates[key] += rows

    def _sizes(self, table: pa.Table) -> Iterator[tuple[tuple[date, str | None], int, int]]:
        sizes = table.select(self._keys).append_column("size", pc.binary_length(table.column("properties")))
        groups = sizes.group_by(self._keys).aggregate([("size", "count"), ("size", "sum")])
        for group in groups.to_pylist():
            yield (group["event_date"], group.get("event_name")), group["size_count"], group["size_sum"]

    def rows_of(self, result: WindowRows, calendar: ZoneInfo) -> pa.Table:
        rejected = sum(not line.loaded for line in result.rejected)
        events = self._filter.events if "event_name" in self._keys else (None,)
        rows: list[dict[str, Any]] = []
        for day in self._window.days:
            over = result.exported_at >= _day_end(day, calendar)
            for event, label in zip(events, self._filter.labels, strict=True):
                rows.append(
                    {
                        "day": day,
                        "filter": label,
                        "rows": self._rows[day, event],
                        "duplicates": self._duplicates[day, event],
                        "rejected": rejected,
                        "bytes": self._bytes[day, event],
                        "requests": result.requests,
                        "attempts": result.attempts,
                        "exported_at": result.exported_at,
                        "complete": over and self._filter.where is None,
                    }
                )
        return pa.Table.from_pylist(rows, EVENT_DAYS_SCHEMA)


def _rejected_table(result: WindowRows, filter_: EventFilter) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "from_date": result.window.first,
                "to_date": result.window.last,
                "filter": filter_.labels[0],
                "line_number": line.line_number,
                "reason": line.reason,
                "loaded": line.loaded,
                "raw": line.raw,
            }
            for line in result.rejected
        ],
        REJECTED_LINES_SCHEMA,
    )


def _day_end(day: date, calendar: ZoneInfo) -> datetime:
    after = day + ONE_DAY
    return datetime(after.year, after.month, after.day, tzinfo=calendar)
