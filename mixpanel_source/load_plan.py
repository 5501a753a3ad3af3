"""What a load of events would ask for, and how long that takes. Nothing is exported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mixpanel_source.day_counts import counts_of
from mixpanel_source.event_days import LOADED_DAYS_SQL, last_exports, loaded_days
from mixpanel_source.exports import EventFilter
from mixpanel_source.kept_exports import KeptExports
from mixpanel_source.planner import Forecast, seconds_to_ask
from mixpanel_source.project import Project
from mixpanel_source.rate_limit import Spent
from mixpanel_source.sweep import due_in
from mixpanel_source.warehouse import check_database, file_and_other, opened, table_names
from mixpanel_source.windows import DateRange, LoadedDay, Window, windows_over

if TYPE_CHECKING:
    from mixpanel_source.destinations import Target

SizeSource = Literal["loaded", "counted", "neighbours", "unknown"]
"""What tells how many events a day has: what was loaded of it, Mixpanel's counts, the days near it, or nothing."""


@dataclass(frozen=True)
class LoadPlan:
    """`days` would be asked for; those of `there` lie between them, or in the range asked for, and are complete."""

    database: Path
    """Of another destination what its records are named by."""
    days: Sequence[Window]
    there: Sequence[Window]
    forecast: Forecast
    sizes: Mapping[SizeSource, int]
    """How many of the days to ask for are known by what."""
    is_counted: bool
    """Whether Mixpanel was to be asked for counts; it may have had none."""
    spent: Spent
    """The export requests of the last hour, by the ledger."""
    kept: Sequence[Window] = ()
    """Days whose exports a stopped load has left on the disk: they are loaded, too, and not asked for."""
    sweep_requests: int = 0
    """Exports that look for late events of settled days, before the others; days that hold some come on top."""
    destination: str | None = None
    """In words, where it is none of DuckDB files."""

    @property
    def where(self) -> str:
        return self.destination or str(self.database)

    @property
    def seconds(self) -> float:
        """Until the last request may be sent, where nobody else asks."""
        return seconds_to_ask(self.sweep_requests + self.forecast.requests, self.spent)

    @property
    def seconds_at_most(self) -> float:
        return seconds_to_ask(self.sweep_requests + self.forecast.requests_at_most, self.spent)


def plan_load(
    project: Project,
    into: Path | Target,
    *,
    asked: DateRange = DateRange(),
    filter_: EventFilter = EventFilter(),
    count: bool = False,
) -> LoadPlan:
    """What `load` would ask for of the events.

    `count` allows what a load does where nothing tells of the days' sizes: to ask for their counts, with two requests
    of the Query API at most. Raises as `load` before it asks, and WarehouseError where the database cannot be read.
    Nothing is made, in no destination.
    """
    database, target = file_and_other(into)
    if target is None:
        check_database(database)
    else:
        project = replace(project, sweep_days=0)  # as a load into it has them
    rows = _loaded_rows(into)
    loaded = _loaded(rows, filter_)
    sweeps = _sweeps_due(project, database, asked, filter_, loaded)
    plan = project.plan(asked, loaded)
    exports = KeptExports(database, project, filter_).tell(plan, last_exports(rows), refresh=asked.refresh)
    kept = [day for window in exports for day in window.days]
    counts = counts_of(plan, project, filter_) if count else {}
    plan.tell(counts)
    forecast = plan.forecast()
    days = [day for planned in forecast.windows for day in planned.window.days]
    known = {day.day for day in loaded if day.complete}
    sizes: Counter[SizeSource] = Counter({"loaded": 0, "counted": 0, "neighbours": 0, "unknown": 0})
    sizes.update(_source(day, known, counts) for day in days)
    there = _ranges(_there(asked, known, {*days, *kept}))
    spent = project.ledger().spent("export")
    return LoadPlan(
        database,
        _ranges(days),
        there,
        forecast,
        sizes,
        count,
        spent,
        _ranges(kept),
        sweeps,
        None if target is None else str(target),
    )


def _sweeps_due(
    project: Project, database: Path, asked: DateRange, filter_: EventFilter, loaded: Sequence[LoadedDay]
) -> int:
    if not (project.sweep_days and loaded and asked == DateRange() and filter_ == EventFilter()):
        return 0
    with opened(database) as connection:
        return len(due_in(project, connection, loaded, datetime.now(UTC)))


def loaded_days_in(into: Path | Target, filter_: EventFilter) -> list[LoadedDay]:
    """As `source.loaded_days_of`, without a pipeline."""
    return _loaded(_loaded_rows(into), filter_)


def _loaded(rows: Sequence[Sequence[Any]], filter_: EventFilter) -> list[LoadedDay]:
    return [] if filter_.where is not None else loaded_days(rows, filter_.labels)


def _loaded_rows(into: Path | Target) -> Sequence[Sequence[Any]]:
    database, target = file_and_other(into)
    if target is not None:
        from mixpanel_source.destination_sql import asked

        with asked(target) as ask:
            return (ask and ask(LOADED_DAYS_SQL)) or ()
    if not database.exists():
        return ()
    with opened(database) as connection:
        if not {"event_days", "_dlt_loads"} <= table_names(connection):
            return ()
        return connection.execute(LOADED_DAYS_SQL).fetchall()


def _source(day: date, loaded: Collection[date], counted: Collection[date]) -> SizeSource:
    if day in loaded:
        return "loaded"
    if day in counted:
        return "counted"
    return "neighbours" if loaded or counted else "unknown"


def _there(asked: DateRange, complete: set[date], days: set[date]) -> list[date]:
    first = asked.from_date or min(complete, default=date.max)
    last = asked.to_date or date.max
    return [day for day in complete.difference(days) if first <= day <= last]


def _ranges(days: Sequence[date]) -> list[Window]:
    return windows_over(days, max_days=date.max.toordinal())
