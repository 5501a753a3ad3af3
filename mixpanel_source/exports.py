"""Exports read into rows: where the client and the parser meet. No dlt.

`Exports` gives the rows of one window after the other, each handed on only when it is whole and read.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mixpanel_source import settings
from mixpanel_source.bodies import ExportBody
from mixpanel_source.client import MixpanelClient
from mixpanel_source.errors import IncompleteExportError, MixpanelDataError
from mixpanel_source.parsing import events as parsing
from mixpanel_source.parsing.duplicates import Duplicates, Resolution
from mixpanel_source.parsing.held import HeldTables
from mixpanel_source.project import Project, spool_folder
from mixpanel_source.windows import Window

logger = logging.getLogger(__name__)

_QUARTER_HOUR_MS = 15 * 60 * 1000


@dataclass(frozen=True)
class EventFilter:
    """What an export is narrowed to: some events, or an expression (Mixpanel docs: Segmentation expressions)."""

    events: tuple[str, ...] = ()
    where: str | None = None

    def __post_init__(self) -> None:
        # A name given twice is one part of a day, and has one row in `event_days`.
        object.__setattr__(self, "events", tuple(dict.fromkeys(self.events)))

    @property
    def labels(self) -> list[str | None]:
        """The values of `filter` in `event_days`: None for whole days, one for each event, or one for `where`."""
        if self.where is not None:
            asked: dict[str, Any] = {"where": self.where}
            if self.events:
                asked["events"] = list(self.events)
            return [_compact(asked)]
        return [_compact({"event": event}) for event in self.events] or [None]


class Progress(Protocol):
    """Told how far a load of events is. Called from several threads."""

    def received(self, compressed_bytes: int) -> None:
        """So much of the export under way is here; less than before where it had to be begun again."""

    def loaded(self, window: Window, rows: int, size: int) -> None:
        """A window is in the load package: its rows, and the bytes of their properties."""


@dataclass
class WindowRows:
    """One window's export, read, proven whole and rid of duplicates. Close it when its tables are written."""

    window: Window
    held: HeldTables
    resolution: Resolution
    rejected: list[parsing.RejectedLine]
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


class StrayTimesError(Exception):
    """A window of several days holds rows whose `time` does not say which of the days they belong to."""


class Exports:
    """The rows of each window. The next export is fetched while one is read and written.

    Fetched, not read: two threads reading at once cost more CPU than they save time. A context manager: closing ends
    what is under way. An error of a window ends it: every later call raises the same error.
    """

    def __init__(
        self,
        client: MixpanelClient,
        project: Project,
        windows: Sequence[Window],
        filter_: EventFilter = EventFilter(),
        progress: Progress | None = None,
    ) -> None:
        self.project = project
        self.filter = filter_
        self.progress = progress
        self.lags: Counter[int] = Counter()
        """Rows by the quarters of an hour from when they happened to when Mixpanel processed them."""
        self._client = client
        self._todo = deque((window, 0) for window in windows)
        """Windows with the requests already spent on them."""
        self._ahead: Future[_Fetched] | None = None
        self._error: MixpanelDataError | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mixpanel-export")

    @property
    def is_done(self) -> bool:
        return not (self._todo or self._ahead or self._error)

    def next(self) -> WindowRows:
        """The next rows, for the caller to close, while not `is_done`.

        A window of several days with a row that does not say its day by itself is asked for again day by day. Raises
        IncompleteExportError where too many lines are unreadable, and what `MixpanelClient.export` raises.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._next()
        except MixpanelDataError as error:
            self._error = error
            raise

    def _next(self) -> WindowRows:
        while True:
            self._fetch_ahead()
            assert self._ahead is not None
            fetched, self._ahead = self._ahead.result(), None
            with fetched.body as body:
                self._fetch_ahead()
                try:
                    rows = read_export(body, fetched.window, self.project, fetched.exported_at)
                except StrayTimesError:
                    logger.info("%s holds rows without a usable time: asking for it day by day", fetched.window)
                    first, *others = fetched.window.split()
                    self._todo.extendleft((day, 0) for day in reversed(others))
                    self._todo.appendleft((first, fetched.requests))
                    continue
            rows.requests = fetched.requests
            rows.attempts = body.attempts
            self.lags.update(rows.lags)
            return rows

    def _fetch_ahead(self) -> None:
        if self._ahead is None and self._todo:
            self._ahead = self._pool.submit(self._fetch, *self._todo.popleft())

    def _fetch(self, window: Window, requests: int) -> _Fetched:
        received = self.progress.received if self.progress else None
        exported_at = datetime.now(UTC)
        body = self._client.export(
            window, events=self.filter.events or None, where=self.filter.where, on_bytes=received
        )
        return _Fetched(window, requests + body.attempts, exported_at, body)

    def close(self) -> None:
        self._client.close()  # so that what is under way ends soon
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._ahead is not None and not self._ahead.cancelled() and self._ahead.exception() is None:
            self._ahead.result().body.close()
        self._ahead, self._todo = None, deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Fetched:
    window: Window
    requests: int
    exported_at: datetime
    body: ExportBody


def read_export(body: ExportBody, window: Window, project: Project, exported_at: datetime) -> WindowRows:
    """The rows of a body known to be whole. Raises StrayTimesError for several days that have to be split."""
    parser = parsing.EventParser(window, project.local_zone)
    held = HeldTables(spool_folder())
    duplicates = Duplicates()
    rejected: list[parsing.RejectedLine] = []
    lags: Counter[int] = Counter()
    lines = 0
    try:
        for block in body.blocks():
            parsed = parser.parse(block)
            if len(window) > 1 and (parsed.strays or parsed.rejected):  # a line kept aside is replaced with its day
                raise StrayTimesError
            lines += parsed.lines
            rejected += parsed.rejected
            duplicates.see(parsed.rows)
            lags.update(_lags(parsed.rows))
            held.add(parsed.rows)
        unreadable = [line for line in rejected if not line.loaded]
        if len(unreadable) > max(settings.MAX_REJECTED_FREE, project.max_rejected * lines):
            first = unreadable[0]
            raise IncompleteExportError(
                f"{len(unreadable)} of {lines} lines of the export of {window} are unreadable; "
                f"the first is line {first.line_number}: {first.reason}",
                hint="nothing of it was loaded; try again later, or raise max_rejected to keep such lines aside",
            )
        return WindowRows(window, held, duplicates.resolve(), rejected, lags, exported_at)
    except BaseException:
        held.close()
        raise
    finally:
        parser.close()


def _compact(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _lags(table: pa.Table) -> dict[int, int]:
    """How many rows were processed how many quarters of an hour after they happened."""
    lag = pc.subtract(table.column("processed_at").cast(pa.int64()), table.column("event_time").cast(pa.int64()))
    known = lag.drop_null().to_numpy()
    quarters, counts = np.unique(np.rint(known / (_QUARTER_HOUR_MS * 1000)).astype(np.int64), return_counts=True)
    return dict(zip(quarters.tolist(), counts.tolist(), strict=True))


def warn_of_other_kind(lags: Counter[int], project: Project, notify: Callable[[str], None]) -> None:
    """Say so where most rows look processed hours before or after they happened: the sign of a wrong setting.

    Mixpanel processes most rows within minutes, and `mp_processing_time_ms` is true UTC in both kinds of project.
    """
    rows = lags.total()
    if rows < 100:
        return
    quarters, count = lags.most_common(1)[0]
    if quarters == 0 or abs(quarters) > 14 * 4 or count < 0.5 * rows:
        return
    hours = f"{abs(quarters) / 4:g} hours {'after' if quarters > 0 else 'before'}"
    if project.legacy_local_time:
        advice = "made on or after 2023-01-01, set legacy_local_time = false"
    else:
        advice = "made before 2023-01-01, set legacy_local_time = true and project_timezone"
    notify(
        f"most events seem to have been processed {hours} they happened: the project looks like the other kind. "
        f"If it was {advice}, and load again with refresh"
    )
