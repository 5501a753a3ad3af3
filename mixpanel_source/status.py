"""What a database holds, what is missing in it, and what may still be asked. Makes no file and no folder."""

from __future__ import annotations

import platform
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from mixpanel_source import __version__, settings
from mixpanel_source.errors import WarehouseError
from mixpanel_source.event_days import LOADED_DAYS_SQL, day_of, loaded_days, moment_of, recorded_otherwise
from mixpanel_source.load_record import LoadRecord, read_records
from mixpanel_source.project import Project
from mixpanel_source.rate_limit import RequestLedger
from mixpanel_source.warehouse import (
    TRACES,
    DatabaseBusyError,
    fetched_tables,
    file_and_other,
    kept_bytes,
    opened,
    pipelines_folder,
    table_names,
)
from mixpanel_source.windows import ONE_DAY, LoadedDay, Window, days_between, settles_at, windows_over

if TYPE_CHECKING:
    from mixpanel_source.destinations import Target

_LOCK_WAIT_S = 0.5
_LAST_LOAD_SQL = "SELECT max(inserted_at) FROM _dlt_loads WHERE status = 0"

_Ask = Callable[[str, str], Sequence[Sequence[Any]] | None]
"""The answer of SQL that destinations have in common, and the table it is about: None where there is no such table."""


@dataclass(frozen=True)
class LoadStatus:
    """What a database or another destination holds; days are those of whole events, `parts` aside."""

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
    """Of another destination what its records are named by."""
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
    destination: str | None = None
    """In words, where it is none of DuckDB files."""

    @property
    def where(self) -> str:
        return self.destination or str(self.database)


def status(
    into: Path | Target,
    project: Project | None,
    now: datetime | None = None,
    *,
    max_days_behind: int = settings.MAX_DAYS_BEHIND,
) -> Status:
    """Answers while a load holds the database, too. Without a project, days are UTC and no budget is known.

    More than `max_days_behind` days without events at the end are wrong. Nothing is made or written, in no destination;
    raises WarehouseError where one cannot be asked.
    """
    now = now or datetime.now(UTC)
    database, target = file_and_other(into)
    loaded: LoadStatus | None
    running, last_run = read_records(database)
    try:
        loaded, problem = _of_file(database, project, now) if target is None else _of_target(target, project, now)
    except DatabaseBusyError as busy:
        loaded, problem = None, f"the database is busy: {busy.message}"
    budgets: list[Budget] = []
    requests_problem = None
    try:
        budgets = _budgets(project.ledger() if project else None)
    except WarehouseError as error:
        requests_problem = error.message
    found = Status(
        database,
        running,
        last_run,
        loaded,
        problem,
        budgets,
        requests_problem,
        kept_bytes(database),
        destination=None if target is None else str(target),
    )
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
        (
            loaded.suspect_days,
            "not as their loads left them: "
            + ("load them again with --refresh" if found.destination else "see mpload verify --repair"),
        ),
    ):
        if windows:
            yield f"days {problem}: {', '.join(map(str, windows))}"
    if loaded.days_behind is not None and loaded.days_behind > max_days_behind:
        yield f"the last {loaded.days_behind} days are not loaded"


def _calendar(project: Project | None) -> ZoneInfo:
    return project.calendar if project else ZoneInfo("UTC")


def _of_file(database: Path, project: Project | None, now: datetime) -> tuple[LoadStatus, str | None]:
    """What it holds, and why that is nothing. Raises DatabaseBusyError."""
    if not database.exists():
        return LoadStatus(), f"nothing is loaded yet: there is no {database}"
    with opened(database, wait_s=_LOCK_WAIT_S) as connection:
        names = table_names(connection) - fetched_tables(connection).keys()
        return _load_status(
            lambda table, sql: connection.execute(sql).fetchall() if table in names else None, project, now
        ), None


def _of_target(target: Target, project: Project | None, now: datetime) -> tuple[LoadStatus | None, str | None]:
    """As `_of_file`. While a load writes a package, its days are neither there nor missing: then nobody can tell."""
    from mixpanel_source.destination_sql import asked

    busy = None, f"another load writes to {target.where}"
    if target.is_written(_LOCK_WAIT_S):
        return busy
    with asked(target) as ask:
        last = ask and ask(_LAST_LOAD_SQL)
        if ask is None or not last or last[0][0] is None:
            return LoadStatus(), f"nothing is loaded yet into {target}"
        found = _load_status(lambda _, sql: ask(sql), project, now)
        return busy if target.is_written(0) or ask(_LAST_LOAD_SQL) != last else (found, None)


def _load_status(ask: _Ask, project: Project | None, now: datetime) -> LoadStatus:
    """What is not there yet is empty."""
    known: dict[str, Any] = {}
    rows = ask("event_days", LOADED_DAYS_SQL)
    counts = ask("events", "SELECT event_date, event_name, count(*) FROM events GROUP BY event_date, event_name")
    if rows is not None:
        rows = [(day_of(row[0]), *row[1:]) for row in rows]
        known |= _days(rows, project, now)
        if counts is not None:
            known["suspect_days"] = _suspect(rows, counts)
    for row in ask("events", "SELECT count(*), max(event_time) FROM events") or ():
        known |= {"rows": row[0], "newest_event": _moment(row[1])}
    for row in ask("rejected_lines", "SELECT count(*) FROM rejected_lines WHERE NOT loaded") or ():
        known["rejected_lines"] = row[0]
    for row in (
        ask(
            "profiles",
            "SELECT count(*), max(inserted_at) FROM profiles LEFT JOIN _dlt_loads ON load_id = profiles._dlt_load_id",
        )
        or ()
    ):
        known |= {"profiles": row[0], "profiles_loaded_at": _moment(row[1])}
    for row in ask("_dlt_loads", _LAST_LOAD_SQL) or ():
        known["last_load"] = _moment(row[0])
    return LoadStatus(**known)


def _moment(value: Any) -> datetime | None:
    return None if value is None else moment_of(value)


def _days(rows: Sequence[Sequence[Any]], project: Project | None, now: datetime) -> dict[str, Any]:
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


def _suspect(rows: Sequence[Sequence[Any]], counts: Sequence[Sequence[Any]]) -> list[Window]:
    """`counts` are of `events`, by day and name."""
    recorded: dict[date, dict[str | None, int]] = defaultdict(dict)
    for day, label, _, _, count, _ in rows:
        recorded[day][label] = count
    there: dict[date, dict[str, int]] = defaultdict(dict)
    for day, name, count in counts:
        there[day_of(day)][name] = count
    return _windows(day for day, of_day in recorded.items() if recorded_otherwise(of_day, there[day]))


def _missing(whole: Sequence[LoadedDay], first: date, last: date) -> set[date]:
    return set(days_between(first, last)) - {day.day for day in whole}


def _parts(rows: Sequence[Sequence[Any]], complete: Sequence[date]) -> dict[str, list[Window]]:
    days: dict[str, set[date]] = defaultdict(set)
    for day, label, *_ in rows:
        if label is not None:
            days[label].add(day)
    parts = {label: _windows(of_label.difference(complete)) for label, of_label in sorted(days.items())}
    return {label: windows for label, windows in parts.items() if windows}


def _windows(days: Iterable[date]) -> list[Window]:
    return windows_over(days, max_days=date.max.toordinal())


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
