"""The `events` table, with `event_days` and `rejected_lines` beside it in the same load package.

Read this one first: it calls the client and the parser through `Exports`, and names how days are replaced.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import dlt
import pyarrow as pa
import pyarrow.compute as pc
from dlt.extract import DltResource

from mixpanel_source import settings
from mixpanel_source.day_counts import planned
from mixpanel_source.destinations import EXACT_JSON
from mixpanel_source.errors import MixpanelDataError
from mixpanel_source.event_days import days_scope
from mixpanel_source.exports import EventFilter, Exports, WindowRows
from mixpanel_source.parquet_file import ParquetFile
from mixpanel_source.parsing import events as parsing
from mixpanel_source.project import Project, spool_folder
from mixpanel_source.resources.load_package import literals, replace_in_one_transaction, with_load_id
from mixpanel_source.windows import ONE_DAY, DateRange, LoadedDay, Window

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
        *parsing.REJECTED_SCHEMA,
    ]
)

_JSON_COLUMNS: Any = {"properties": {**EXACT_JSON}, "extra": {**EXACT_JSON}}


def events(
    open_project: Callable[[], Project],
    asked: DateRange = DateRange(),
    filter_: EventFilter = EventFilter(),
    *,
    loaded_days: Callable[[], Sequence[LoadedDay]] = lambda: (),
) -> DltResource:
    """The events of the days asked for, replacing exactly these days (or, with a filter, their part of them).

    `open_project` and `loaded_days` (what the destination holds) are called when the resource is read: a source is
    built without asking anyone anything. All of it is one load package, whole or not at all.
    """

    @dlt.resource(name="events", write_disposition="merge")
    def read() -> Iterator[Any]:
        project = open_project()
        loaded = loaded_days()
        plan = planned(project, asked, filter_, loaded)
        with project.client() as client, Exports(client, project, plan, filter_, loaded=loaded) as exports:
            package = _EventsPackage(exports)
            yield from package.read()
            yield from package.scopes()
            for warning in exports.warnings():
                logger.warning(warning)

    return read


@dataclass(frozen=True)
class PackageLimits:
    """When a load package is full enough to be written: a stop loses no more than one."""

    bytes: int = settings.PACKAGE_BYTES
    seconds: float = settings.PACKAGE_S
    """Since its first window was read; and before every long wait for the request limit."""


def events_package(
    exports: Exports,
    limits: PackageLimits,
    about_to_write: Callable[[], None],
    holds_none_of: Callable[[Sequence[date]], bool],
    through_file: bool = True,
) -> DltResource:
    """The next windows, as the `events` of one load package; at least one, unless none is left.

    `about_to_write` is called when the package is complete. `holds_none_of` says whether the destination has no row of
    some days: appending is then the same as replacing, for less. `through_file` writes the rows ourselves, where the
    destination takes Parquet. A window that fails ends the package before it, and
    the next one raises its error.
    """

    @dlt.resource(name="events", write_disposition="merge")
    def read() -> Iterator[Any]:
        with ParquetFile(spool_folder()) if through_file else nullcontext() as file:
            package = _EventsPackage(exports, file)
            yield from package.read(limits)
            about_to_write()
            yield from package.scopes(holds_none_of)

    return read


class _EventsPackage:
    """What dlt is given for one load package. With `file` the rows go through it: not every destination takes one."""

    def __init__(self, exports: Exports, file: ParquetFile | None = None) -> None:
        self._exports = exports
        self._file = file
        self._days: defaultdict[EventFilter, list[date]] = defaultdict(list)
        """Those that are replaced, by what of them is."""
        self._event_days: list[pa.Table] = []

    def read(self, limits: PackageLimits | None = None) -> Iterator[Any]:
        """The rows of the next windows, of all that are left without `limits`, and what is to be said of them."""
        exports = self._exports
        rows = exports.next()
        if rows is None:
            return
        started = time.monotonic()
        replace_in_one_transaction()
        # `events` comes last: the other tables start from the hints that the resource has by then.
        yield _hinted(EVENT_DAYS_SCHEMA, "event_days")
        yield _hinted(REJECTED_LINES_SCHEMA, "rejected_lines")
        yield _hinted(parsing.SCHEMA, "events", columns=_JSON_COLUMNS)
        size = largest = 0
        while rows is not None:
            began = time.monotonic()
            with rows:
                counts = _DayCounts(rows.window, rows.filter)
                for table, duplicates in rows.tables():
                    counts.count(table, duplicates)
                    if self._file is None:
                        yield with_load_id(table)
                    else:
                        self._file.write(with_load_id(table))
                for lines in rows.rejected:
                    table = _rejected_table(lines, rows.window, rows.filter)
                    yield dlt.mark.with_table_name(with_load_id(table), "rejected_lines")
            pa.default_memory_pool().release_unused()  # else it keeps what the largest window so far needed
            self._days[rows.filter] += rows.window.days
            self._event_days.append(counts.rows_of(rows, exports.project.calendar))
            size += counts.bytes
            largest = max(largest, counts.bytes)
            convert_s = rows.read_s + time.monotonic() - began
            if exports.progress is not None:
                exports.progress.spent("convert", convert_s)
            by_day = counts.rows_by_day()
            logger.info(
                "%s: %d rows, %d bytes of properties, %.2f s to convert",
                rows.window,
                by_day.total(),
                counts.bytes,
                convert_s,
                extra={
                    "from_date": rows.window.first,
                    "to_date": rows.window.last,
                    "rows": by_day.total(),
                    "property_bytes": counts.bytes,
                    "convert_s": round(convert_s, 3),
                },
            )
            exports.loaded(rows, by_day, counts.bytes)
            if limits is not None:
                left_s = limits.seconds - (time.monotonic() - started)
                # Another window like the largest would make it too large.
                if size + largest > limits.bytes or left_s <= 0 or exports.is_held_up(left_s):
                    break
            try:
                rows = exports.next()
            except MixpanelDataError:
                if limits is None:
                    raise
                break
        if self._file is not None and self._file.rows:
            hints = self._file.schema.empty_table() if self._file.schema else None
            yield dlt.mark.with_file_import(str(self._file.finish()), "parquet", self._file.rows, hints=hints)
        # Last, and together: dlt computes a table's schema anew each time the table changes.
        yield dlt.mark.with_table_name(with_load_id(pa.concat_tables(self._event_days)), "event_days")

    def scopes(self, holds_none_of: Callable[[Sequence[date]], bool] = lambda days: False) -> Iterator[Any]:
        """Which days are replaced: known only now. Even with no row, these empty tables make dlt replace them."""
        if not self._days:
            return
        yield _hinted(EVENT_DAYS_SCHEMA, "event_days", self._scope(partial(_days_scope, "day")))
        yield _hinted(REJECTED_LINES_SCHEMA, "rejected_lines", self._scope(partial(_days_scope, "from_date")))
        if set(self._days) == {EventFilter()} and holds_none_of(self._days[EventFilter()]):
            yield dlt.mark.with_hints(
                with_load_id(parsing.SCHEMA.empty_table()), dlt.mark.make_hints(write_disposition="append")
            )
        else:
            yield _hinted(parsing.SCHEMA, "events", self._scope(_events_scope), _JSON_COLUMNS)

    def _scope(self, of: Callable[[list[date], EventFilter], str]) -> str:
        return " OR ".join(f"({of(days, filter_)})" for filter_, days in self._days.items())


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
        scope = f"({scope}) AND event_name IN ({literals(filter_.events)})"
    return scope


def _days_scope(column: str, days: Iterable[date], filter_: EventFilter) -> str:
    scope = days_scope(column, days)
    labels = [label for label in filter_.labels if label is not None]
    # A whole day takes the place of every part of it.
    return f"({scope}) AND filter IN ({literals(labels)})" if labels else scope


class _DayCounts:
    """What `event_days` tells of each day (and each event, where the filter names some), as its tables go by."""

    def __init__(self, window: Window, filter_: EventFilter) -> None:
        self.bytes = 0
        self._window = window
        self._filter = filter_
        self._keys = ["event_date", "event_name"] if filter_.events and filter_.where is None else ["event_date"]
        self._rows: Counter[tuple[date, str | None]] = Counter()
        self._bytes: Counter[tuple[date, str | None]] = Counter()
        self._duplicates: Counter[tuple[date, str | None]] = Counter()

    def count(self, table: pa.Table, duplicates: pa.Table) -> None:
        for key, rows, size in self._sizes(table):
            self.bytes += size
            self._rows[key] += rows
            self._bytes[key] += size
        for key, rows, _ in self._sizes(duplicates):
            self._duplicates[key] += rows

    def rows_by_day(self) -> Counter[date]:
        days: Counter[date] = Counter()
        for (day, _), rows in self._rows.items():
            days[day] += rows
        return days

    def _sizes(self, table: pa.Table) -> Iterator[tuple[tuple[date, str | None], int, int]]:
        sizes = table.select(self._keys).append_column("size", pc.binary_length(table.column("properties")))
        groups = sizes.group_by(self._keys).aggregate([("size", "count"), ("size", "sum")])
        for group in groups.to_pylist():
            yield (group["event_date"], group.get("event_name")), group["size_count"], group["size_sum"]

    def rows_of(self, result: WindowRows, calendar: ZoneInfo) -> pa.Table:
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
                        "rejected": result.unreadable,
                        "bytes": self._bytes[day, event],
                        # The window's, on its first row alone: a sum over rows counts each request once.
                        "requests": 0 if rows else result.requests,
                        "attempts": 0 if rows else result.attempts,
                        "exported_at": result.exported_at,
                        "complete": over and self._filter.where is None,
                    }
                )
        return pa.Table.from_pylist(rows, EVENT_DAYS_SCHEMA)


def _rejected_table(lines: pa.Table, window: Window, filter_: EventFilter) -> pa.Table:
    """`lines`, of parsing.REJECTED_SCHEMA, with where they came from."""
    places = (window.first, window.last, filter_.labels[0])
    columns = [
        pa.repeat(pa.scalar(place, field.type), len(lines))
        for place, field in zip(places, REJECTED_LINES_SCHEMA, strict=False)
    ]
    return pa.table([*columns, *lines.columns], schema=REJECTED_LINES_SCHEMA)


def _day_end(day: date, calendar: ZoneInfo) -> datetime:
    after = day + ONE_DAY
    return datetime(after.year, after.month, after.day, tzinfo=calendar)
