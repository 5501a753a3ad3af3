"""Exports read into rows: where the client and the parser meet. No dlt.

`Exports` gives the rows of one window after the other, each handed on only when it is whole and read.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any, Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mixpanel_source import settings
from mixpanel_source.bodies import ExportBody
from mixpanel_source.client import MixpanelClient, compact
from mixpanel_source.closing import Closing
from mixpanel_source.errors import ConfigError, IncompleteExportError, MixpanelDataError
from mixpanel_source.parsing import events as parsing
from mixpanel_source.parsing.duplicates import Duplicates, Resolution
from mixpanel_source.parsing.held import HeldTables
from mixpanel_source.project import Project, spool_folder
from mixpanel_source.rate_limit import SHORT_WAIT_S
from mixpanel_source.windows import LoadedDay, Window

logger = logging.getLogger(__name__)

_QUARTER_HOUR_MS = 15 * 60 * 1000
_REJECTED_IN_MEMORY_BYTES = 8 * 1024 * 1024
_LOOK_EVERY_S = 0.5
_NAMED = 5


@dataclass(frozen=True)
class EventFilter:
    """What an export is narrowed to: some events, or an expression (Mixpanel docs: Segmentation expressions)."""

    events: tuple[str, ...] = ()
    where: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.events, str):  # type: ignore[unreachable]
            raise ConfigError(f"events is a list of names, not the text {self.events[:40]!r}")
        if self.where == "" or "" in self.events:
            raise ConfigError("the filter holds an empty text", hint="leave it out for all events")
        # A name given twice is one part of a day, and has one row in `event_days`.
        object.__setattr__(self, "events", tuple(dict.fromkeys(self.events)))

    @property
    def labels(self) -> list[str | None]:
        """The values of `filter` in `event_days`: None for whole days, one for each event, or one for `where`."""
        if self.where is not None:
            asked: dict[str, Any] = {"where": self.where}
            if self.events:
                asked["events"] = list(self.events)
            return [compact(asked, ascii_only=False)]
        return [compact({"event": event}, ascii_only=False) for event in self.events] or [None]


class Progress(Protocol):
    """Told how far a load of events is. Called from several threads."""

    def received(self, compressed_bytes: int) -> None:
        """So much of the export under way is here; less than before where it had to be begun again."""

    def loaded(self, window: Window, rows: int, size: int) -> None:
        """A window is in the load package: its rows, and the bytes of their properties."""


@dataclass
class WindowRows(Closing):
    """One window's export, read, proven whole and rid of duplicates. Close it when its tables are written.

    `rejected` has tables of parsing.REJECTED_SCHEMA; `unreadable` counts the lines among them that are no rows.
    """

    window: Window
    held: HeldTables
    resolution: Resolution
    rejected: HeldTables
    unreadable: int
    lags: Counter[int]
    exported_at: datetime
    requests: int = 0
    attempts: int = 0

    def tables(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Each table as it is to be loaded, and its rows that were duplicates of others."""
        first_row = 0
        for table in self.held:
            yield self.resolution.apply(table, first_row)
            first_row += len(table)

    def close(self) -> None:
        self.held.close()
        self.rejected.close()


class StrayTimesError(Exception):
    """A window of several days holds rows whose `time` does not say which of the days they belong to."""


class Exports(Closing):
    """The rows of each window. The next export is fetched while one is read and written.

    Fetched, not read: two threads reading at once cost more CPU than they save time. `loaded` are the days that the
    destination holds. Closing ends what is under way. An error ends it, and every later call raises the same one; with
    `skip_incomplete` a window that never comes whole is left out, and the others still come.
    """

    def __init__(
        self,
        client: MixpanelClient,
        project: Project,
        windows: Sequence[Window],
        filter_: EventFilter = EventFilter(),
        progress: Progress | None = None,
        loaded: Sequence[LoadedDay] = (),
        skip_incomplete: bool = False,
    ) -> None:
        self.project = project
        self.filter = filter_
        self.progress = progress
        self._lags: Counter[int] = Counter()
        """Rows by the quarters of an hour from when they happened to when Mixpanel processed them."""
        self._shrunk: list[str] = []
        self._skip_incomplete = skip_incomplete
        self._incomplete: list[tuple[Window, IncompleteExportError]] = []
        # Of parts of days nothing is known where a whole day holds them.
        self._rows_before = {day.day: day.rows for day in loaded} if filter_ == EventFilter() else {}
        self._client = client
        self._todo = deque(_Asked(window) for window in windows)
        self._ahead: Future[_Fetched] | None = None
        self._error: MixpanelDataError | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mixpanel-export")
        self._connection = parsing.new_connection()

    @property
    def is_done(self) -> bool:
        return not (self._todo or self._ahead or self._error)

    def next(self) -> WindowRows | None:
        """The next rows, for the caller to close; None after the last.

        A window of several days with a row that does not say its day by itself is asked for again day by day. Raises
        what `MixpanelClient.export` raises.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._next()
        except MixpanelDataError as error:
            self._error = error
            raise

    def is_held_up(self, for_s: float) -> bool:
        """Whether the next export will not be here within `for_s`, or not before a long wait for the request limit."""
        until = time.monotonic() + for_s
        while self._ahead is not None and not self._ahead.done():
            left = until - time.monotonic()
            if left <= 0 or self._client.ledger.spent("export").next_free_s > SHORT_WAIT_S:
                return True
            wait([self._ahead], timeout=min(left, _LOOK_EVERY_S))
        return False

    def raise_incomplete(self) -> None:
        """Raises IncompleteExportError where a window never came whole."""
        if not self._incomplete:
            return
        _, error = self._incomplete[0]
        days = [day for window, _ in self._incomplete for day in window.days]
        named = ", ".join(map(str, days[:_NAMED])) + (" ..." if len(days) > _NAMED else "")
        are = f"{len(days)} days are" if len(days) > 1 else "1 day is"
        raise IncompleteExportError(f"{are} not loaded ({named}): {error.message}", hint=error.hint)

    def _next(self) -> WindowRows | None:
        while True:
            self._fetch_ahead()
            if self._ahead is None:
                return None
            ahead, self._ahead = self._ahead, None
            fetched = ahead.result()
            try:
                if isinstance(fetched.body, IncompleteExportError):
                    raise fetched.body
                with fetched.body as body:
                    self._fetch_ahead()
                    rows = self._read(fetched, body)
            except IncompleteExportError as error:
                self._incomplete.append((fetched.asked.window, error))
                if not self._skip_incomplete:
                    self.raise_incomplete()
                continue
            if rows is not None:
                return rows

    def _read(self, fetched: _Fetched, body: ExportBody) -> WindowRows | None:
        """None where the window is asked for once more, or in parts."""
        asked = fetched.asked
        try:
            rows = read_export(
                body, asked.window, self.project, fetched.exported_at, self.filter.events, self._connection
            )
        except StrayTimesError:
            logger.info("%s holds rows without a usable time: asking for it day by day", asked.window)
            first, *others = asked.window.split()
            self._todo.extendleft(_Asked(day) for day in reversed(others))
            self._todo.appendleft(_Asked(first, fetched.requests))
            return None
        if not body.decompressed_bytes and not asked.again and any(map(self._rows_before.get, asked.window.days)):
            # Nothing in a body tells an empty day from one that Mixpanel could not read; a second one is believed.
            logger.warning("the export of %s is empty, and was not before: asking again", asked.window)
            rows.close()
            self._todo.appendleft(replace(asked, requests=fetched.requests, again=True))
            return None
        rows.requests = fetched.requests
        rows.attempts = body.attempts
        self._lags.update(rows.lags)
        return rows

    def _fetch_ahead(self) -> None:
        if self._ahead is None and self._todo:
            self._ahead = self._pool.submit(self._fetch, self._todo.popleft())

    def _fetch(self, asked: _Asked) -> _Fetched:
        received = self.progress.received if self.progress else None
        exported_at = datetime.now(UTC)
        try:
            body = self._client.export(
                asked.window, events=self.filter.events or None, where=self.filter.where, on_bytes=received
            )
        except IncompleteExportError as error:
            return _Fetched(asked, 0, exported_at, error)
        return _Fetched(asked, asked.requests + body.attempts, exported_at, body)

    def loaded(self, window: Window, rows: Mapping[date, int], size: int) -> None:
        """The rows that each day of `window` has now, and the bytes of their properties."""
        for day in window.days:
            before = self._rows_before.get(day, 0)
            if rows.get(day, 0) < before / 2:
                self._shrunk.append(f"{day} has {rows.get(day, 0):,} events now, and had {before:,}")
        if self.progress:
            self.progress.loaded(window, sum(rows.values()), size)

    def warnings(self) -> list[str]:
        """What to tell the user of the rows so far."""
        return [*self._shrunk, *_other_kind(self._lags, self.project)]

    def close(self) -> None:
        self._connection.close()
        self._client.close()  # so that what is under way ends soon
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._ahead is not None and not self._ahead.cancelled() and self._ahead.exception() is None:
            body = self._ahead.result().body
            if isinstance(body, ExportBody):
                body.close()
        self._ahead, self._todo = None, deque()


@dataclass(frozen=True)
class _Asked:
    window: Window
    requests: int = 0
    """Spent on it before."""
    again: bool = False
    """Whether the answer was doubted once."""


@dataclass(frozen=True)
class _Fetched:
    asked: _Asked
    requests: int
    exported_at: datetime
    body: ExportBody | IncompleteExportError


def read_export(
    body: ExportBody,
    window: Window,
    project: Project,
    exported_at: datetime,
    events: Sequence[str] = (),
    connection: duckdb.DuckDBPyConnection | None = None,
) -> WindowRows:
    """The rows of a body known to be whole, of `events` alone where some are named.

    `connection` is as for EventParser. Raises StrayTimesError for several days that have to be split.
    """
    parser = parsing.EventParser(window, project.local_zone, connection)
    held = HeldTables(spool_folder())
    rejected = HeldTables(spool_folder(), _REJECTED_IN_MEMORY_BYTES)
    duplicates = Duplicates()
    first: parsing.RejectedLine | None = None
    unreadable = 0
    lags: Counter[int] = Counter()
    lines = 0
    try:
        for block in body.blocks():
            parsed = parser.parse(block)
            table = parsed.rows
            if events:  # whatever else came is not in what is replaced, and would be there twice after the next load
                table = table.filter(pc.is_in(table.column("event_name"), pa.array(events)))
            if project.kept_out is not None:
                table = project.kept_out.rows(table)
                parsed.rejected = project.kept_out.lines(parsed.rejected)
            if len(window) > 1 and (parsed.strays or parsed.rejected):  # a line kept aside is replaced with its day
                raise StrayTimesError
            lines += parsed.lines
            if parsed.rejected:
                rejected.add(parsing.rejected_table(parsed.rejected))
                without_row = [line for line in parsed.rejected if not line.loaded]
                first = first or next(iter(without_row), None)
                unreadable += len(without_row)
            duplicates.see(table)
            lags.update(_lags(table))
            held.add(table)
        if first and unreadable > max(settings.MAX_REJECTED_FREE, project.max_rejected * lines):
            raise IncompleteExportError(
                f"{unreadable} of {lines} lines of the export of {window} are unreadable; "
                f"the first is line {first.line_number}: {first.reason}",
                hint="nothing of it was loaded; try again later, or raise max_rejected to keep such lines aside",
            )
        return WindowRows(window, held, duplicates.resolve(), rejected, unreadable, lags, exported_at)
    except BaseException:
        held.close()
        rejected.close()
        raise
    finally:
        parser.close()


def _lags(table: pa.Table) -> dict[int, int]:
    """How many rows were processed how many quarters of an hour after they happened."""
    lag = pc.subtract(table.column("processed_at").cast(pa.int64()), table.column("event_time").cast(pa.int64()))
    known = lag.drop_null().to_numpy()
    quarters, counts = np.unique(np.rint(known / (_QUARTER_HOUR_MS * 1000)).astype(np.int64), return_counts=True)
    return dict(zip(quarters.tolist(), counts.tolist(), strict=True))


def _other_kind(lags: Counter[int], project: Project) -> list[str]:
    """A warning where most rows look processed hours before or after they happened: the sign of a wrong setting.

    Mixpanel processes most rows within minutes, and `mp_processing_time_ms` is true UTC in both kinds of project.
    """
    rows = lags.total()
    if rows < 100:
        return []
    quarters, count = lags.most_common(1)[0]
    if quarters == 0 or abs(quarters) > 14 * 4 or count < 0.5 * rows:
        return []
    hours = f"{abs(quarters) / 4:g} hours {'after' if quarters > 0 else 'before'}"
    if project.legacy_local_time:
        advice = "made on or after 2023-01-01, set legacy_local_time = false"
    else:
        advice = "made before 2023-01-01, set legacy_local_time = true and project_timezone"
    return [
        f"most events seem to have been processed {hours} they happened: the project looks like the other kind. "
        f"If it was {advice}, and load again with refresh"
    ]
