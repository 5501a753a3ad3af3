"""What a database holds, what is missing in it, and what may still be asked. Makes no file and no folder."""

from __future__ import annotations

import platform
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb

from mixpanel_source import __version__, settings
from mixpanel_source.errors import WarehouseError
from mixpanel_source.event_days import LOADED_DAYS_SQL, loaded_days, recorded_otherwise
from mixpanel_source.load_record import LoadRecord, read_records
from mixpanel_source.project import Project
from mixpanel_source.rate_limit import RequestLedger
from mixpanel_source.warehouse import (
    TRACES,
    DatabaseBusyError,
    fetched_tables,
    kept_bytes,
    opened,
    pipelines_folder,
    table_names,
    tables,
)
from mixpanel_source.windows import ONE_DAY, LoadedDay, Window, days_between, settles_at, windows_over

_LOCK_WAIT_S = 0.5


@dataclass(frozen=True)
class LoadStatus:
    """What a database holds; days are those of whole events, `parts` aside."""

    days: int = 0
    """Complete ones, as `first_day` and `last_day`."""
    first_day: date | None = None
    last_day: date | None = None
    missing_days: Sequence[Window] = ()
    """From the first day on, yesterday included."""
    incomplete_days: Sequence[Window] = ()
    """Loaded before they were over."""
    unsettled_days: Sequence[Window] = ()
    """Complete, and exported again by the next load."""
    suspect_days: Sequence[Window] = ()
    """With more or fewer rows than their loads recorded: something else has changed them."""
    parts: Mapping[str, Sequence[Window]] = field(default_factory=dict)
    """By `filter` of `event_days`, the days of which only that is loaded."""
    days_behind: int | None = None
    """Days that are over in the project's calendar and later than the last complete one."""
    rows: int = 0
    newest_event: datetime | None = None
    rejected_lines: int = 0
    profiles: int | None = None
    """None before profiles are loaded."""
    profiles_loaded_at: datetime | None = None
    last_load: datetime | None = None
    """When a load wrote something for the last time."""


@dataclass(frozen=True)
class Budget:
    """The requests of one API family in the last hour, by the ledger."""

    api: str
    spent: int
    allowed: int
    """The limit that is used, by `request_share`."""
    next_free_s: float


@dataclass(frozen=True)
class Status:
    """`loaded` is None where `problem` says why nobody can tell now."""

    database: Path
    running: LoadRecord | None
    last_run: LoadRecord | None
    loaded: LoadStatus | None
    problem: str | None
    requests: list[Budget]
    requests_problem: str | None = None
    """Why nobody can tell of `requests` now."""
    kept_bytes: int = 0
    """Of exports on the disk that are not in the database yet."""
    wrong: Sequence[str] = ()
    """What somebody should look at, in words."""


def status(
    database: Path,
    project: Project | None,
    now: datetime | None = None,
    *,
    max_days_behind: int = settings.MAX_DAYS_BEHIND,
) -> Status:
    """Answers while a load holds the database, too. Without a project, days are UTC and no budget is known.

    More than `max_days_behind` days without events at the end are wrong.
    """
    now = now or datetime.now(UTC)
    loaded: LoadStatus | None = LoadStatus()
    problem = None
    running, last_run = read_records(database)
    try:
        if database.exists():
            with opened(database, wait_s=_LOCK_WAIT_S) as connection:
                loaded = load_status(connection, project, now)
        else:
            problem = f"nothing is loaded yet: there is no {database}"
    except DatabaseBusyError as busy:
        loaded, problem = None, f"the database is busy: {busy.message}"
    budgets: list[Budget] = []
    requests_problem = None
    try:
        budgets = _budgets(project.ledger() if project else None)
    except WarehouseError as error:
        requests_problem = error.message
    found = Status(database, running, last_run, loaded, problem, budgets, requests_problem, kept_bytes(database))
    return replace(found, wrong=tuple(_wrong(found, project, now, max_days_behind)))


def _wrong(found: Status, project: Project | None, now: datetime, max_days_behind: int) -> Iterator[str]:
    if found.last_run is not None and found.running is None and found.last_run.outcome != "done":
        yield f"the last load {'failed' if found.last_run.outcome == 'failed' else 'was stopped'}"
    if found.loaded is None:  # it is busy
        return
    if found.problem:
        yield found.problem
    loaded = found.loaded
    between = [window for window in loaded.missing_days if loaded.last_day and window.last < loaded.last_day]
    over = [window for window in loaded.incomplete_days if now >= settles_at(window.first, 0, _calendar(project))]
    for windows, problem in (
        (between, "missing between others"),
        (over, "loaded before they were over, and not since"),
        (loaded.suspect_days, "not as their loads left them: see mpload verify --repair"),
    ):
        if windows:
            yield f"days {problem}: {', '.join(map(str, windows))}"
    if loaded.days_behind is not None and loaded.days_behind > max_days_behind:
        yield f"the last {loaded.days_behind} days are not loaded"


def _calendar(project: Project | None) -> ZoneInfo:
    return project.calendar if project else ZoneInfo("UTC")


def load_status(connection: duckdb.DuckDBPyConnection, project: Project | None, now: datetime) -> LoadStatus:
    """Read from the tables of `connection`; what is not there yet is empty."""
    names = {table.name for table in tables(connection)} - fetched_tables(connection).keys()
    known: dict[str, Any] = {}
    if "event_days" in names:
        rows = _ask(connection, LOADED_DAYS_SQL)
        known |= _days(rows, project, now)
        if "events" in names:
            known["suspect_days"] = _suspect(connection, rows)
    if "events" in names:
        [(known["rows"], known["newest_event"])] = _ask(connection, "SELECT count(*), max(event_time) FROM events")
    if "rejected_lines" in names:
        [(known["rejected_lines"],)] = _ask(connection, "SELECT count(*) FROM rejected_lines WHERE NOT loaded")
    if "profiles" in names:
        [(known["profiles"], known["profiles_loaded_at"])] = _ask(
            connection,
            "SELECT count(*), max(inserted_at) FROM profiles LEFT JOIN _dlt_loads ON load_id = profiles._dlt_load_id",
        )
    if "_dlt_loads" in table_names(connection):
        [(known["last_load"],)] = _ask(connection, "SELECT max(inserted_at) FROM _dlt_loads WHERE status = 0")
    return LoadStatus(**known)


def _days(rows: Sequence[tuple[Any, ...]], project: Project | None, now: datetime) -> dict[str, Any]:
    calendar = _calendar(project)
    lookback_days = project.lookback_days if project else settings.LOOKBACK_DAYS
    whole = loaded_days([row for row in rows if row[1] is None], [None])
    complete = [day.day for day in whole if day.complete]
    settled = {day.day for day in whole if day.is_settled(lookback_days, calendar)}
    known: dict[str, Any] = {
        "days": len(complete),
        "incomplete_days": _windows(day.day for day in whole if not day.complete),
        "unsettled_days": _windows(set(complete) - settled),
        "parts": _parts(rows, complete),
    }
    if complete:
        yesterday = now.astimezone(calendar).date() - ONE_DAY
        first, last = complete[0], complete[-1]
        known |= {
            "first_day": first,
            "last_day": last,
            "missing_days": _windows(_missing(whole, min(first, (project and project.start_date) or first), yesterday)),
            "days_behind": max(0, (yesterday - last).days),
        }
    return known


def _suspect(connection: duckdb.DuckDBPyConnection, rows: Sequence[tuple[Any, ...]]) -> list[Window]:
    recorded: dict[date, dict[str | None, int]] = defaultdict(dict)
    for day, label, _, _, count, _ in rows:
        recorded[day][label] = count
    there: dict[date, dict[str, int]] = defaultdict(dict)
    counts = _ask(connection, "SELECT event_date, event_name, count(*) FROM events GROUP BY ALL")
    for day, name, count in counts:
        there[day][name] = count
    return _windows(day for day, of_day in recorded.items() if recorded_otherwise(of_day, there[day]))


def _missing(whole: Sequence[LoadedDay], first: date, last: date) -> set[date]:
    return set(days_between(first, last)) - {day.day for day in whole}


def _parts(rows: Sequence[tuple[Any, ...]], complete: Sequence[date]) -> dict[str, list[Window]]:
    days: dict[str, set[date]] = defaultdict(set)
    for day, label, *_ in rows:
        if label is not None:
            days[label].add(day)
    parts = {label: _windows(of_label.difference(complete)) for label, of_label in sorted(days.items())}
    return {label: windows for label, windows in parts.items() if windows}


def _windows(days: Iterable[date]) -> list[Window]:
    return windows_over(days, max_days=date.max.toordinal())


def _ask(connection: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[Any, ...]]:
    return connection.execute(sql).fetchall()


def _budgets(ledger: RequestLedger | None) -> list[Budget]:
    """Of the families that have a limit by the hour."""
    if ledger is None:
        return []
    spent = [(api, ledger.spent(api)) for api in settings.HOURLY]
    return [Budget(api, one.used, one.allowed, round(one.next_free_s, 1)) for api, one in spent]


def _sync_command(database: Path, folder: Path) -> str:
    """Has to name the destination: dlt forgets it with the local state, which it drops first."""
    named = {
        "DESTINATION_TYPE": "duckdb",
        "DATASET_NAME": settings.DATASET,
        "DESTINATION__DUCKDB__CREDENTIALS": str(database.absolute()),
    }
    environment = " ".join(f"{name}={shlex.quote(value)}" for name, value in named.items())
    return f"{environment} dlt -y pipeline --pipelines-dir {shlex.quote(str(folder))} {settings.PIPELINE} sync"


def info(database: Path, project_id: str | None) -> dict[str, Any]:
    """Where everything is, and the versions in use."""
    folder = pipelines_folder(database)
    return {
        "database": str(database.resolve()),
        "size_bytes": database.stat().st_size if database.exists() else None,
        "dataset": settings.DATASET,
        "project_id": project_id,
        "data_folder": str(settings.data_folder()),
        "pipeline_folder": str(folder),
        "dlt_command": f"dlt pipeline --pipelines-dir {shlex.quote(str(folder))} {settings.PIPELINE} info",
        "dlt_sync_command": _sync_command(database, folder),
        "traces": str(folder / TRACES),
        "versions": {
            "mpload": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in ("dlt", "duckdb", "pyarrow", "requests", "typer")},
        },
        "python": sys.executable,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
