"""Snapshots: events or profiles as they are now, in a table of their own that no load touches."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb

from mixpanel_source import settings
from mixpanel_source.disk_room import room_for
from mixpanel_source.engage import TABLES
from mixpanel_source.errors import ConfigError, TableExistsError, TableNotFoundError, WarehouseError
from mixpanel_source.exports import EventFilter, Exports
from mixpanel_source.kept_out import FORGOTTEN, KEPT_OUT, KeptOut, kept_out_of
from mixpanel_source.listings import LISTINGS
from mixpanel_source.load_runs import LOAD_RUNS
from mixpanel_source.parquet_file import ParquetFile
from mixpanel_source.parsing import profiles as profile_parsing
from mixpanel_source.parsing.events import SCHEMA as EVENTS_SCHEMA
from mixpanel_source.progress import LoadProgress, NoProgress
from mixpanel_source.project import Project, spool_folder
from mixpanel_source.resources.profiles import tables_of
from mixpanel_source.sweep import EVENT_SWEEPS
from mixpanel_source.warehouse import (
    FETCHES,
    FetchType,
    OnWait,
    check_database,
    fetched_tables,
    literal,
    opened,
    prepare_database,
    table_names,
)
from mixpanel_source.windows import DateRange

WRITE_WAIT_S = 600.0
"""How long a snapshot that is ready waits for a program that has the database open."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_LOADED_TABLES = frozenset(
    {"events", "profiles", "event_days", "rejected_lines", "report_days", FORGOTTEN, KEPT_OUT, LOAD_RUNS, EVENT_SWEEPS}
    | {*TABLES, *settings.REPORT_TABLES, *LISTINGS}
)
_SCHEMA = f'"{settings.DATASET}"'


@dataclass(frozen=True)
class FetchResult:
    """A snapshot that was made. `date_range` has both days, and is None for profiles."""

    table: str
    type: FetchType
    rows: int
    date_range: tuple[date, date] | None
    fetched_at: datetime
    duration_seconds: float
    filters: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()


def fetch_events(
    project: Project,
    database: Path,
    name: str | None = None,
    *,
    from_date: date,
    to_date: date,
    filter_: EventFilter = EventFilter(),
    progress: LoadProgress | None = None,
) -> FetchResult:
    """The events of some days in the table `name`, `events` unless given, with the columns that a load's have.

    Whole or not at all: an error leaves no table. Raises TableExistsError before anything is asked, ConfigError for a
    name or dates that cannot be, and what `MixpanelClient.export` raises.
    """
    told = progress or NoProgress()
    plan = project.plan(DateRange(from_date, to_date, refresh=True), ())
    with _snapshot(database, name, "events", told) as snapshot:
        told.planned(forecast := plan.forecast())
        room = room_for(database, spool_folder(), project.min_free_mb)
        room.check_forecast(forecast, ())
        snapshot.file.write(EVENTS_SCHEMA.empty_table())
        warnings: list[str] = []
        project = replace(project, kept_out=snapshot.kept_out, disk=room)
        with project.client() as client, Exports(client, project, plan, filter_, told) as exports:
            while (rows := exports.next()) is not None:
                with rows:
                    size = count = 0
                    for table, _ in rows.tables():
                        snapshot.file.write(table)
                        count += len(table)
                        size += table.nbytes
                    if rows.unreadable:
                        warnings.append(f"{rows.unreadable} lines of the export of {rows.window} are unreadable")
                told.loaded(rows.window, count, size)
            warnings += exports.warnings()
        filters = {"events": list(filter_.events), "where": filter_.where}
        done = snapshot.write((from_date, to_date), {key: value for key, value in filters.items() if value})
    return replace(done, warnings=tuple(warnings))


def fetch_profiles(
    project: Project,
    database: Path,
    name: str | None = None,
    *,
    where: str | None = None,
    progress: LoadProgress | None = None,
) -> FetchResult:
    """The profiles, or those that match `where`, in the table `name`, `profiles` unless given.

    Whole or not at all, as `fetch_events`.
    """
    if where == "":
        raise ConfigError("where is empty", hint="leave it out for all profiles")
    told = progress or NoProgress()
    with _snapshot(database, name, "profiles", told) as snapshot:
        room_for(database, spool_folder(), project.min_free_mb)
        snapshot.file.write(profile_parsing.SCHEMA.empty_table())
        with project.client() as client, client.profiles(where=where, on_page=told.profiles) as pages:
            for table in tables_of(pages, snapshot.kept_out):
                snapshot.file.write(table)
        return snapshot.write(None, {"where": where} if where else {})


def drop_tables(database: Path, names: Sequence[str]) -> None:
    """Remove snapshots, all or none.

    Raises TableNotFoundError, ConfigError for a table that loads keep, DatabaseBusyError where another process has the
    database open.
    """
    with _transaction(database) as connection:
        # DuckDB's names are the same in any case.
        fetched = {name.lower(): name for name in fetched_tables(connection)}
        for name in dict.fromkeys(name.lower() for name in names):
            if name not in fetched:
                if name in {known.lower() for known in table_names(connection)}:
                    raise ConfigError(f"{name} is no snapshot, but kept by loads", hint="drop takes what fetch made")
                raise TableNotFoundError(f"there is no table {name}", hint="mpload tables lists the tables there are")
            connection.execute(f'DROP TABLE {_SCHEMA}."{name}"')
            connection.execute(f"DELETE FROM {_SCHEMA}.{FETCHES} WHERE table_name = {literal(fetched[name])}")


def drop_all(database: Path, type_: FetchType | None = None) -> list[str]:
    """Remove every snapshot, or those of one type; their names."""
    with opened(database) as connection:
        names = [name for name, its_type in fetched_tables(connection).items() if type_ in (None, its_type)]
    if names:
        drop_tables(database, names)
    return names


class _Snapshot:
    kept_out: KeptOut | None = None
    """Of the database that it goes into."""

    def __init__(self, database: Path, name: str, type_: FetchType, file: ParquetFile, progress: LoadProgress) -> None:
        self.file = file
        self._progress = progress
        self._database = database
        self._name = name
        self._type: FetchType = type_
        self._began = time.monotonic()
        self._fetched_at = datetime.now(UTC)

    def write(self, days: tuple[date, date] | None, filters: dict[str, Any]) -> FetchResult:
        """Makes the table, and notes it in `fetches`."""
        self._progress.writing()
        path = self.file.finish()
        first, last = (f"DATE '{day}'" for day in days) if days else ("NULL", "NULL")
        noted = literal(json.dumps(filters, ensure_ascii=False)) if filters else "NULL"
        with _transaction(self._database, WRITE_WAIT_S, self._progress.waiting) as connection:
            # Once more: another fetch may have made it meanwhile.
            _refuse_existing(self._name, connection)
            _refuse_forgotten(self._fetched_at, connection)
            connection.execute(
                f'CREATE TABLE {_SCHEMA}."{self._name}" AS SELECT * FROM read_parquet({literal(str(path))})'
            )
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {_SCHEMA}.{FETCHES} (table_name VARCHAR, type VARCHAR,"
                " fetched_at TIMESTAMPTZ, from_date DATE, to_date DATE, row_count BIGINT, filters JSON)"
            )
            connection.execute(
                f"INSERT INTO {_SCHEMA}.{FETCHES} VALUES ({literal(self._name)}, '{self._type}',"
                f" TIMESTAMPTZ '{self._fetched_at.isoformat()}', {first}, {last}, {self.file.rows}, {noted})"
            )
        seconds = time.monotonic() - self._began
        return FetchResult(self._name, self._type, self.file.rows, days, self._fetched_at, seconds, filters or None)


@contextmanager
def _snapshot(database: Path, name: str | None, type_: FetchType, progress: LoadProgress) -> Iterator[_Snapshot]:
    name = type_ if name is None else name
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name[:80]!r} is no name for a table", hint="use letters, digits and _, up to 63, and no digit first"
        )
    lowered = name.lower()  # DuckDB's names are the same in any case
    if (lowered in _LOADED_TABLES and lowered != type_) or lowered == FETCHES or lowered.startswith("_dlt"):
        raise ConfigError(f"the name {name} is that of a table of loads", hint="choose another one")
    check_database(database)
    kept_out = None
    if database.exists():
        with opened(database) as connection:
            _refuse_existing(name, connection)
            kept_out = kept_out_of(connection)
    prepare_database(database)
    with ParquetFile(spool_folder()) as file:
        snapshot = _Snapshot(database, name, type_, file, progress)
        snapshot.kept_out = kept_out
        yield snapshot


def _refuse_existing(name: str, connection: duckdb.DuckDBPyConnection) -> None:
    if name.lower() in {known.lower() for known in table_names(connection)}:
        raise TableExistsError(
            f"there is a table {name} already",
            hint="name the snapshot otherwise, or drop it; mpload load keeps events and profiles up to date",
        )


def _refuse_forgotten(since: datetime, connection: duckdb.DuckDBPyConnection) -> None:
    """What came before people were forgotten may hold them."""
    if FORGOTTEN not in table_names(connection):
        return
    sql = f"SELECT 1 FROM {_SCHEMA}.{FORGOTTEN} WHERE forgotten_at >= TIMESTAMPTZ '{since.isoformat()}' LIMIT 1"
    if connection.execute(sql).fetchall():
        raise WarehouseError("people were forgotten while the snapshot was fetched", hint="fetch it again")


@contextmanager
def _transaction(
    database: Path, wait_s: float = 0.0, on_wait: OnWait | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    with opened(database, write=True, wait_s=wait_s, on_wait=on_wait) as connection:
        connection.execute("BEGIN")
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {_SCHEMA}")
        yield connection
        connection.execute("COMMIT")
