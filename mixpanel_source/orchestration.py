"""Loads as an orchestrator asks for them: exactly the days of a data interval, one writer of the file at a time.

`pipelines/airflow_dag.py` and `pipelines/dagster_assets.py` call this; nothing here knows either of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from pathlib import Path

from mixpanel_source import settings
from mixpanel_source.destinations import Target, target_of
from mixpanel_source.errors import AuthenticationError, ConfigError, PlanError, WarehouseError
from mixpanel_source.exports import EventFilter
from mixpanel_source.load import LoadResult, load
from mixpanel_source.load_plan import loaded_days_in, plan_load
from mixpanel_source.pipeline import locked
from mixpanel_source.planner import PlannedWindow
from mixpanel_source.project import Project, parse_day
from mixpanel_source.status import LoadStatus, status
from mixpanel_source.verify import Verification, verify
from mixpanel_source.warehouse import database_path
from mixpanel_source.windows import ONE_DAY, DateRange, LoadedDay, Window, windows_over

LOAD_WAIT_S = 4 * 3600.0
"""How long a load waits for another one that works on the same file, as DuckDB has one writer, or on the same dataset
from the same data folder."""

FAILS_AGAIN = (AuthenticationError, ConfigError, PlanError)
"""Errors that no retry helps."""


@dataclass(frozen=True)
class DaysLoad:
    """What a load of some days did, and what is there of them now."""

    days: Sequence[LoadedDay]
    requests: int
    """Exports that were asked for."""
    warnings: Sequence[str] = ()

    @property
    def rows(self) -> int:
        return sum(day.rows for day in self.days)

    @property
    def bytes(self) -> int:
        """Of the rows' properties."""
        return sum(day.bytes for day in self.days)


def database_of(project: Project) -> Path:
    """The file to load into: `MP_DB`, else the project's in the data folder, wherever a worker happens to run."""
    named = os.environ.get("MP_DB")
    return Path(named).expanduser().absolute() if named else database_path(project.credentials.project_id).absolute()


def target_for(project: Project, destination: str | None = None, dataset: str = settings.DATASET) -> Target:
    """The file of `database_of`, or `dataset` of a destination by dlt's name of it. Raises as `target_of`."""
    return target_of(destination, dataset) if destination else Target(database_of(project))


def days_of(project: Project, start: datetime | None, end: datetime | None) -> Window:
    """The export days from `start` to `end`, which is not included, as intervals of orchestrators are.

    Raises ConfigError where that is none, is not over, or is not whole days of the calendar of exports: a run that
    loads nothing, or a part of a day, would look as if all were well.
    """
    if start is None or end is None:
        raise ConfigError("the run has no data interval", hint="start it for a date, or by a schedule of intervals")
    calendar = project.calendar
    first, after = start.astimezone(calendar), end.astimezone(calendar)
    if after <= first:
        raise ConfigError(
            f"the data interval {start} to {end} is empty", hint="schedule by intervals: a cron trigger has none"
        )
    if first.time() != time() or after.time() != time():
        raise ConfigError(
            f"the data interval {start} to {end} is not whole days in {calendar.key}, the calendar of exports",
            hint="schedule by days, in that time zone",
        )
    if end > datetime.now(UTC):
        raise ConfigError(f"the data interval ends at {end}, which is not over", hint="run it after that")
    return Window(first.date(), after.date() - ONE_DAY)


def days_between(from_date: str | date, to_date: str | date) -> Window:
    """Days as they are typed, both included. Raises ConfigError."""
    first, last = parse_day("from_date", from_date), parse_day("to_date", to_date)
    if first is None or last is None:
        raise ConfigError("a backfill needs its days", hint="give from_date and to_date")
    if first > last:
        raise ConfigError(f"the range ends ({last}) before it begins ({first})", hint="swap the dates")
    return Window(first, last)


def windows_to_load(project: Project, target: Target, days: Window, *, refresh: bool = False) -> list[PlannedWindow]:
    """The export requests that a load of `days` would make, as `mpload plan --count` tells: a task each, say.

    Days that are complete are left out, unless `refresh`. A window whose events are known is to be loaded `at_once`;
    where nothing tells of them, its load decides on the requests.
    """
    asked = DateRange(days.first, days.last, refresh)
    with _alone(target):
        plan = plan_load(project, target, asked=asked, count=project.count_events)
    return list(plan.forecast.windows)


def load_days(
    project: Project,
    target: Target,
    days: Window,
    *,
    since: datetime | None = None,
    refresh: bool = False,
    at_once: bool = False,
) -> DaysLoad:
    """Load the events of `days`, and of no others: what is not complete, and what is not settled, once more.

    With `refresh` settled days, too. `since` is when the run began that this is an attempt of (now, without): what was
    exported after it, be it loaded or only on the disk, is not asked for again, so that a retry goes on where the one
    before stopped. `at_once` asks for days that follow each other in one request, as planned. Waits as LOAD_WAIT_S
    says. Raises what `load` does, and the error of `events`.
    """
    if at_once:
        project = replace(project, window_days=len(days))
    since = since or datetime.now(UTC)
    requests = 0
    warnings: list[str] = []
    # Held throughout: what another run has loaded meanwhile is not asked for again, and nobody writes while this reads.
    with _alone(target):
        for window, is_again in _to_ask(project, _loaded(target, days), days, since, refresh):
            asked = DateRange(window.first, window.last, is_again)
            result = load(project, target, ["events"], asked=asked, since=since, is_locked=True)
            requests += result.metrics.requests_by_api.get("export", 0)
            warnings += result.warnings
            if result.error is not None:
                raise result.error
        return DaysLoad(_loaded(target, days), requests, warnings)


def load_table(project: Project, target: Target, table: str) -> LoadResult:
    """Load a table without days, or the days of a table of reports that are new or not settled.

    Waits as LOAD_WAIT_S says. Raises what `load` does, and the error of the table: PlanError, too, where the project's
    plan does not include it.
    """
    with _alone(target):
        result = load(project, target, [table], is_locked=True)
    if result.error is not None:
        raise result.error
    if any(loaded.is_left_out for loaded in result.tables):
        raise PlanError("; ".join(result.warnings))
    return result


def status_of(project: Project, target: Target) -> LoadStatus:
    """What it holds. Raises WarehouseError where it cannot be told."""
    with _alone(target):
        told = status(target, project)
    if told.loaded is None or told.problem is not None:
        raise WarehouseError(told.problem or f"nothing can be told of {target}")
    return told.loaded


def verify_of(project: Project, target: Target) -> Verification:
    """As `verify` of all that is loaded, once no load works on it. Raises ConfigError for neither a file nor a lake."""
    with _alone(target):
        return verify(project, target)


def _alone(target: Target) -> AbstractContextManager[None]:
    return locked(target.path, LOAD_WAIT_S, what=target)


def _loaded(target: Target, days: Window) -> list[LoadedDay]:
    return [day for day in loaded_days_in(target, EventFilter()) if day.day in days]


def _to_ask(
    project: Project, loaded: Sequence[LoadedDay], days: Window, since: datetime, refresh: bool
) -> list[tuple[Window, bool]]:
    """The days to export, and whether those that are complete are among them, or nothing older will do."""
    complete = {day.day: day for day in loaded if day.complete}

    def is_again(day: date) -> bool:
        known = complete.get(day)
        if known is None or known.exported_at >= since:
            return False
        return refresh or not known.is_settled(project.lookback_days, project.calendar)

    asked = [day for day in days.days if day not in complete or is_again(day)]
    windows = windows_over(asked, max_days=len(days))
    return [(window, refresh or any(map(is_again, window.days))) for window in windows]
