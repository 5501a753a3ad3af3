"""Exports read into rows: where the client and the parser meet. No dlt.

`Exports` gives the rows of one window after the other, each handed on only when it is whole and read.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mixpanel_source import settings
from mixpanel_source.bodies import DamagedError, ExportBody
from mixpanel_source.client import MixpanelClient, compact
from mixpanel_source.closing import Closing
from mixpanel_source.discovery import NOT_TOLD, Discovery, by_request
from mixpanel_source.downloads import Asked, Downloads, Fetched
from mixpanel_source.errors import ConfigError, IncompleteExportError, MixpanelDataError, ServerError
from mixpanel_source.parsing import events as parsing
from mixpanel_source.parsing.duplicates import Duplicates, Resolution
from mixpanel_source.parsing.held import HeldTables
from mixpanel_source.planner import Plan
from mixpanel_source.progress import Stage
from mixpanel_source.project import Project, spool_folder
from mixpanel_source.windows import LoadedDay, Window

if TYPE_CHECKING:
    from mixpanel_source.kept_exports import KeptExports

logger = logging.getLogger(__name__)

_QUARTER_HOUR_MS = 15 * 60 * 1000
_REJECTED_IN_MEMORY_BYTES = 8 * 1024 * 1024
_NAMED = 5
_PARTS_FAILED = 12
"""So many exports of parts of days that fail in a row show that asking for less does not help."""


@dataclass(frozen=True)
class EventFilter:
    """What an export is narrowed to: some events, or an expression (Mixpanel docs: Segmentation expressions)."""

    events: Sequence[str] = ()
    where: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.events, str):
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
        """So many bytes of exports came so far, those of attempts that failed among them."""

    def loaded(self, window: Window, rows: int, size: int) -> None:
        """A window is in the load package: its rows, and the bytes of their properties."""

    def spent(self, stage: Stage, seconds: float) -> None: ...


@dataclass
class WindowRows(Closing):
    """One window's export, read, proven whole and rid of duplicates. Close it when its tables are written.

    `rejected` has tables of parsing.REJECTED_SCHEMA; `unreadable` counts the lines among them that are no rows.
    `is_odd` tells that some of them, or a row without a usable time, can only be kept with a day of their own.
    """

    window: Window
    filter: EventFilter
    held: HeldTables
    resolution: Resolution
    rejected: HeldTables
    unreadable: int
    lags: Counter[int]
    by_day: Counter[date]
    """Rows, duplicates included."""
    is_odd: bool
    exported_at: datetime
    requests: int = 0
    attempts: int = 0
    read_s: float = 0.0

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
    """The rows of each window of `plan`. The next exports are fetched while one is read and written.

    Fetched, not read: two threads reading at once cost more CPU than they save time. `loaded` are the days that the
    destination holds. Closing ends what is under way. An error ends it, and every later call raises the same one.

    Several are fetched at once where that takes no more requests than one by one: what came tells how large the next
    windows may be, and a window that has to be asked for in parts how long.

    A window that never comes whole is asked for in shorter ones, and a day that does not by its events, where the
    filter names some. With `skip_incomplete` what never comes whole is left out, and the others still come. Of a day
    that is not in `loaded` as a whole the events come then whose names Mixpanel tells: parts, which do not make it up.

    With `kept` what came outlives this process until `committed` is called; `here` is what an earlier one has left.
    """

    def __init__(
        self,
        client: MixpanelClient,
        project: Project,
        plan: Plan,
        filter_: EventFilter = EventFilter(),
        progress: Progress | None = None,
        loaded: Sequence[LoadedDay] = (),
        skip_incomplete: bool = False,
        kept: KeptExports | None = None,
        here: Iterable[tuple[Fetched, ExportBody]] = (),
    ) -> None:
        self.project = project
        self.filter = filter_
        self.progress = progress
        self._lags: Counter[int] = Counter()
        """Rows by the quarters of an hour from when they happened to when Mixpanel processed them."""
        self._shrunk: list[str] = []
        self._skip_incomplete = skip_incomplete
        self._incomplete: dict[date, IncompleteExportError] = {}
        self._days_in_part: set[date] = set()
        """Of these some events came, in exports of their own."""
        self._parts_failed = 0
        """In a row."""
        # Of parts of days nothing is known where a whole day holds them.
        self._rows_before = {day.day: day.rows for day in loaded} if filter_ == EventFilter() else {}
        self._days_there = {day.day for day in loaded if day.complete}
        self._client = client
        self._plan = plan
        self._first: deque[Asked] = deque()
        """What is asked for before the plan goes on."""
        self._spent = 0
        """Requests for a window that the plan gives next, in parts."""
        self._error: MixpanelDataError | None = None
        received = progress.received if progress else None
        self._kept = kept
        self._handed_on: list[Window] = []
        """Windows that `committed` is still to be called for."""
        self._downloads = Downloads(
            client,
            project.concurrent_exports,
            project.max_spool_bytes,
            on_arrival=self._learn,
            on_bytes=received,
            keep=kept.keep if kept else None,
            kept_bytes=(lambda: kept.bytes) if kept else lambda: 0,
            check_room=project.disk.check if project.disk else lambda: None,
        )
        for fetched, body in here:
            self._downloads.put(fetched, body)
        self._connection = parsing.new_connection()

    @property
    def is_done(self) -> bool:
        return self._plan.is_done and not (self._first or self._downloads or self._error)

    def next(self) -> WindowRows | None:
        """The next rows, for the caller to close; None after the last.

        A window of several days with a row that does not say its day by itself is asked for again in halves. Raises
        what `MixpanelClient.export` raises.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._next()
        except MixpanelDataError as error:
            self._error = error
            raise

    def committed(self) -> None:
        """All that `next` gave so far is in the database."""
        handed_on, self._handed_on = self._handed_on, []
        for window in handed_on:
            self._drop(window)

    def is_held_up(self, for_s: float) -> bool:
        """Whether the next export will not be here within `for_s`, or not before a long wait for the request limit."""
        return self._downloads.is_held_up(for_s)

    def raise_incomplete(self) -> None:
        """Raises IncompleteExportError where a day never came whole."""
        in_part = self._incomplete.keys() & self._days_in_part if self._skip_incomplete else set()
        told = [
            f"{_days_are(days)} {what} ({_named(days)})"
            for days, what in ((self._incomplete.keys() - in_part, "not loaded"), (in_part, "loaded in part only"))
            if days
        ]
        if told:
            error = next(iter(self._incomplete.values()))
            hint = error.hint
            if in_part and self.filter == EventFilter():
                hint = (
                    "events whose names Mixpanel did not tell are missing: load the day again, or name them (--event)"
                )
            raise IncompleteExportError(f"{', '.join(told)}: {error.message}", hint=hint)

    def _next(self) -> WindowRows | None:
        while True:
            self._ask_ahead()
            if not self._downloads:
                return None
            fetched = self._downloads.take()
            if not isinstance(fetched.body, ExportBody):
                if not self._ask_for_less(fetched, fetched.body):
                    self._leave_out(fetched.asked, fetched.body)
                continue
            with fetched.body as body:
                self._ask_ahead()
                try:
                    rows = self._read(fetched, body)
                except IncompleteExportError as error:
                    self._drop(fetched.asked.window)
                    self._leave_out(fetched.asked, error)
                    continue
                except DamagedError:
                    self._drop(fetched.asked.window)
                    if not fetched.is_kept:
                        raise
                    logger.warning("the export of %s that was kept is damaged: asking again", fetched.asked.window)
                    self._first.append(replace(fetched.asked, requests=fetched.requests))
                    continue
            if rows is None:
                self._drop(fetched.asked.window)
                continue
            if self._is_planned(fetched.asked):
                self._handed_on.append(fetched.asked.window)
            self._ask_ahead()  # it may be some time until the next call
            return rows

    def _read(self, fetched: Fetched, body: ExportBody) -> WindowRows | None:
        """None where the window is asked for once more, or in parts."""
        asked = fetched.asked
        try:
            rows = read_export(body, asked.window, self.project, fetched.exported_at, asked.filter, self._connection)
        except StrayTimesError:
            logger.info("%s holds rows without a usable time: asking for it in halves", asked.window)
            self._plan.split(asked.window)
            self._spent += fetched.requests
            return None
        if self._is_planned(asked):
            emptied = [day for day in asked.window.days if self._rows_before.get(day) and not rows.by_day[day]]
            if emptied and not asked.again:
                # Nothing in a body tells an empty day from one that Mixpanel could not read; a second one is believed.
                logger.warning("%s is empty, and was not before: asking again", _named(emptied))
                rows.close()
                self._first.appendleft(replace(asked, requests=fetched.requests, again=True))
                return None
            self._plan.read(asked.window, is_odd=rows.is_odd)
        else:
            self._days_in_part.add(asked.window.first)
            self._parts_failed = 0
        rows.requests = fetched.requests
        rows.attempts = body.attempts
        self._lags.update(rows.lags)
        return rows

    def _drop(self, window: Window) -> None:
        if self._kept is not None:
            self._kept.drop(window)

    def _is_planned(self, asked: Asked) -> bool:
        """Whether it is for all that is asked for of its days."""
        return asked.filter == self.filter

    def _ask_for_less(self, fetched: Fetched, error: IncompleteExportError | ServerError) -> bool:
        """Put what never came whole before all else, in parts. False where there are none."""
        asked = fetched.asked
        if len(asked.window) > 1:
            logger.warning("%s does not come whole: asking for fewer days at once", asked.window)
            self._plan.cut(asked.window)
            self._spent += fetched.requests
            return True
        self._plan.failed(asked.window.first)
        parts = self._parts_of(asked)
        if not parts and self._may_ask_by_name(asked) and isinstance(error, IncompleteExportError):
            parts = [EventFilter(tuple(names)) for names in self._names()]
            if parts:  # what has another name is missing
                self._incomplete.setdefault(asked.window.first, error)
        if parts:
            logger.warning("%s does not come whole: asking for its events by their names", asked.window)
            # Behind the other parts: these may come, and then the day is worth more requests.
            self._first.extend(Asked(asked.window, part) for part in parts)
            self._first[-len(parts)] = replace(self._first[-len(parts)], requests=fetched.requests)
        return bool(parts)

    def _parts_of(self, asked: Asked) -> list[EventFilter]:
        """Halves of the events asked for; none where there are not two, or where nothing helps."""
        if not self._is_planned(asked):
            self._parts_failed += 1
            if self._parts_failed >= _PARTS_FAILED:
                self._first = deque(other for other in self._first if self._is_planned(other))
                return []
        names = asked.filter.events
        half = len(names) // 2
        return [replace(asked.filter, events=some) for some in (names[:half], names[half:]) if half]

    def _may_ask_by_name(self, asked: Asked) -> bool:
        # An expression cannot exclude events by name (Mixpanel docs: Segmentation Expressions): the rest stays unknown.
        is_of_use = self._skip_incomplete and asked.window.first not in self._days_there
        return is_of_use and asked.filter == EventFilter() and self._parts_failed < _PARTS_FAILED

    def _names(self) -> list[list[str]]:
        """The names of events that Mixpanel tells, by the export to ask for them in; none where it refuses."""
        try:
            names = Discovery(self._client, wait=self.project.wait).events()
        except NOT_TOLD as error:
            logger.warning("the names of events are not known: %s", error.message)
            return []
        names = [name for name in names if name]
        half = len(names) // 2
        return [chunk for some in (names[:half], names[half:]) for chunk in by_request(some)]

    def _leave_out(self, asked: Asked, error: MixpanelDataError) -> None:
        if not isinstance(error, IncompleteExportError):
            raise error
        for day in asked.window.days:
            self._incomplete.setdefault(day, error)
        if not self._skip_incomplete:
            self.raise_incomplete()

    def _ask_ahead(self) -> None:
        """Begin as many exports as may be under way."""
        while self._downloads.may_begin():
            asked = self._next_asked()
            if asked is None:
                return
            self._downloads.begin(asked)

    def _learn(self, fetched: Fetched, body: ExportBody) -> None:
        if self._is_planned(fetched.asked):
            self._plan.came(fetched.asked.window, body.lines, body.decompressed_bytes)

    def _next_asked(self) -> Asked | None:
        """None after the last, and where it is better to wait for what is under way."""
        coming = self._downloads.coming
        if not all(map(self._is_planned, coming)):  # what becomes of a part decides what else is asked for
            return None
        if self._first:
            is_part = not self._is_planned(self._first[0])
            return None if is_part and coming else self._first.popleft()
        waiting = self._downloads.waiting
        window = self._plan.next([asked.window for asked in coming], [asked.window for asked in waiting])
        if window is None:
            return None
        spent, self._spent = self._spent, 0
        return Asked(window, self.filter, self._plan.expected(window), spent)

    def loaded(self, rows: WindowRows, by_day: Mapping[date, int], size: int) -> None:
        """The rows that each day of a window has now, and the bytes of their properties."""
        if rows.filter == self.filter:
            for day in rows.window.days:
                before = self._rows_before.get(day, 0)
                if by_day.get(day, 0) < before / 2:
                    self._shrunk.append(f"{day} has {by_day.get(day, 0):,} events now, and had {before:,}")
        if self.progress:
            self.progress.loaded(rows.window, sum(by_day.values()), size)

    def warnings(self) -> list[str]:
        """What to tell the user of the rows so far."""
        return [*self._shrunk, *_other_kind(self._lags, self.project)]

    def close(self) -> None:
        self._connection.close()
        self._downloads.close()
        self._first.clear()


def read_export(
    body: ExportBody,
    window: Window,
    project: Project,
    exported_at: datetime,
    filter_: EventFilter = EventFilter(),
    connection: duckdb.DuckDBPyConnection | None = None,
) -> WindowRows:
    """The rows of a body known to be whole, of the filter's events alone where it names some.

    `connection` is as for EventParser. Raises StrayTimesError for several days that have to be split.
    """
    began = time.monotonic()
    parser = parsing.EventParser(window, project.local_zone, connection)
    held = HeldTables(spool_folder())
    rejected = HeldTables(spool_folder(), _REJECTED_IN_MEMORY_BYTES)
    duplicates = Duplicates()
    first: parsing.RejectedLine | None = None
    unreadable = 0
    lags: Counter[int] = Counter()
    by_day: Counter[date] = Counter()
    is_odd = False
    lines = 0
    try:
        for block in body.blocks():
            parsed = parser.parse(block)
            table = parsed.rows
            if filter_.events:  # whatever else came is not in what is replaced, and would be there twice later
                table = table.filter(pc.is_in(table.column("event_name"), pa.array(filter_.events)))
            if project.kept_out is not None:
                table = project.kept_out.rows(table)
                parsed.rejected = project.kept_out.lines(parsed.rejected)
            if parsed.strays or parsed.rejected:  # a line kept aside is replaced with its day
                if len(window) > 1:
                    raise StrayTimesError
                is_odd = True
            lines += parsed.lines
            if parsed.rejected:
                rejected.add(parsing.rejected_table(parsed.rejected))
                without_row = [line for line in parsed.rejected if not line.loaded]
                first = first or next(iter(without_row), None)
                unreadable += len(without_row)
            duplicates.see(table)
            lags.update(_lags(table))
            by_day.update(_rows_by_day(table))
            held.add(table)
        if first and unreadable > max(settings.MAX_REJECTED_FREE, project.max_rejected * lines):
            raise IncompleteExportError(
                f"{unreadable} of {lines} lines of the export of {window} are unreadable; "
                f"the first is line {first.line_number}: {first.reason}",
                hint="nothing of it was loaded; try again later, or raise max_rejected to keep such lines aside",
            )
        resolution = duplicates.resolve()
        rows = WindowRows(window, filter_, held, resolution, rejected, unreadable, lags, by_day, is_odd, exported_at)
        rows.read_s = time.monotonic() - began
        return rows
    except BaseException:
        held.close()
        rejected.close()
        raise
    finally:
        parser.close()


def _days_are(days: Collection[date]) -> str:
    return f"{len(days)} days are" if len(days) > 1 else "1 day is"


def _named(days: Iterable[date]) -> str:
    found = sorted(days)
    return ", ".join(map(str, found[:_NAMED])) + (" ..." if len(found) > _NAMED else "")


def _rows_by_day(table: pa.Table) -> dict[date, int]:
    counts = pc.value_counts(table.column("event_date"))
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))


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
