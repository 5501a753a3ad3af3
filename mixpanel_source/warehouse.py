"""The DuckDB file that loads fill: opening it, asking it, and saying what it holds. Imports no dlt."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from mixpanel_source import settings
from mixpanel_source.errors import ConfigError, QueryError, TableNotFoundError, WarehouseError

if TYPE_CHECKING:
    from mixpanel_source.rate_limit import RequestLedger

LOCK_WAIT_S = 3.0
"""How long a query waits for a load that holds the file: its last step takes about as long."""

_STORAGE_VERSION = "v1.2.0"
"""The oldest storage of DuckDB's that has zstd."""


_FETCH_ROWS = 2048
"""As many as DuckDB works out at a time."""


class DatabaseBusyError(WarehouseError):
    """Another process holds the file."""


@dataclass(frozen=True)
class QueryResult:
    """Column names and rows as Python values (JSON columns as text)."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


@dataclass(frozen=True)
class RowStream:
    """An answer whose rows are worked out as they are read, once: read them before the connection is used again."""

    columns: list[str]
    types: list[Any]
    """DuckDB's own, one for each column."""
    rows: Iterator[tuple[Any, ...]]


def database_path(project_id: str) -> Path:
    """Where the data of a project are kept unless told otherwise. Raises ConfigError for what is no project id."""
    if not (project_id.isascii() and project_id.isdigit()):
        raise ConfigError(f"project_id is a number such as 12345, not {project_id[:40]!r}")
    return settings.data_folder() / f"{project_id}.duckdb"


def pipelines_folder(database: Path) -> Path:
    """Where dlt keeps the working folder of the pipeline that fills `database`."""
    key = hashlib.sha256(str(database.resolve()).encode()).hexdigest()[:8]
    return settings.data_folder() / "pipelines" / f"{database.stem}-{key}"


def prepare_database(path: Path, wait_s: float = 0.0) -> None:
    """Make the file where there is none, and see that it can be written. Raises WarehouseError."""
    # DuckDB calls the database what stands before the first dot, in any case.
    if path.name.split(".")[0].casefold() == settings.DATASET:
        raise WarehouseError(
            f"the file {path.name} is named like its dataset, which makes names in it ambiguous to DuckDB",
            hint=f"choose another name, such as {path.with_stem(settings.DATASET + '_data').name}",
        )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise WarehouseError(f"cannot make the folder {path.parent}: {error.strerror}") from error
    config = {} if path.exists() else {"storage_compatibility_version": _STORAGE_VERSION}
    _open(path, read_only=False, config=config, wait_s=wait_s).close()


@contextmanager
def opened(path: Path, *, write: bool = False, wait_s: float = LOCK_WAIT_S) -> Iterator[duckdb.DuckDBPyConnection]:
    """The database at `path`, its tables found without the dataset's name. Raises WarehouseError."""
    if not path.exists():
        raise WarehouseError(f"there is no database {path}", hint="load some data first: mpload load, or mpload demo")
    connection = _open(path, read_only=not write, wait_s=wait_s)
    try:
        connection.execute("SET TimeZone = 'UTC'")
        # No parameters: DuckDB imports pandas to see whether one is a DataFrame, which takes longer than all the rest.
        if connection.execute(
            "SELECT 1 FROM duckdb_schemas()"
            f" WHERE schema_name = '{settings.DATASET}' AND database_name = current_database()"
        ).fetchall():
            connection.execute(f"SET search_path = '{settings.DATASET},main'")
        yield connection
    finally:
        connection.close()


def query(connection: duckdb.DuckDBPyConnection, sql: str) -> QueryResult:
    """The answer of `sql`, several statements allowed: the last one's. Raises QueryError with DuckDB's own words."""
    stream = query_stream(connection, sql)
    return QueryResult(stream.columns, list(stream.rows))


def query_stream(connection: duckdb.DuckDBPyConnection, sql: str) -> RowStream:
    """As `query`, for an answer of any size. Reading the rows may raise QueryError as well."""
    try:
        connection.execute(sql)
        description = connection.description or []
    except duckdb.Error as error:
        raise _query_error(error) from None
    return RowStream([column[0] for column in description], [column[1] for column in description], _fetched(connection))


def only_value(answer: RowStream) -> tuple[Any, Any]:
    """The value of an answer of one row and one column, and its type. Raises QueryError for any other."""
    rows = list(islice(answer.rows, 2))
    if len(rows) != 1 or len(answer.columns) != 1:
        shape = (
            f"{len(answer.columns)} columns"
            if len(answer.columns) != 1
            else ("more than one row" if rows else "no row")
        )
        raise QueryError(f"the answer is not one value: it has {shape}", hint="leave out --scalar to see all of it")
    return rows[0][0], answer.types[0]


def _fetched(connection: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    try:
        while connection.description is not None and (rows := connection.fetchmany(_FETCH_ROWS)):
            yield from rows
    except duckdb.Error as error:
        raise _query_error(error) from None


def _open(
    path: Path, *, read_only: bool, config: dict[str, Any] | None = None, wait_s: float = 0.0
) -> duckdb.DuckDBPyConnection:
    until = time.monotonic() + wait_s
    while True:
        try:
            return duckdb.connect(str(path), read_only=read_only, config=config or {})
        except duckdb.IOException as error:
            holder = re.search(r"PID (\d+)", str(error))
            if holder is None or "lock" not in str(error):
                raise WarehouseError(f"cannot open {path}: {first_line(error)}") from None
            if time.monotonic() >= until:
                raise DatabaseBusyError(
                    f"another process (PID {holder[1]}) holds {path}",
                    hint="wait for it to end, or close the program that has the file open",
                ) from None
            time.sleep(0.1)
        except duckdb.Error as error:
            raise WarehouseError(f"cannot open {path}: {first_line(error)}") from None


def _query_error(error: duckdb.Error) -> QueryError | TableNotFoundError | WarehouseError:
    text = first_line(error)
    missing = re.match(r"Catalog Error: Table with name (\S+) does not exist", text)
    if missing:
        return TableNotFoundError(f"there is no table {missing[1]}", hint="mpload tables lists the tables there are")
    if "read-only mode" in str(error):
        return QueryError("the database is opened read-only", hint="add --write to change it")
    if isinstance(error, duckdb.IOException):
        return WarehouseError(text)
    return QueryError(" ".join(line.strip() for line in str(error).split("\n\n")[0].splitlines()))


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclass(frozen=True)
class TableInfo:
    name: str
    rows: int
    columns: int


def tables(connection: duckdb.DuckDBPyConnection) -> list[TableInfo]:
    """The tables of the dataset but dlt's own, by name."""
    found = connection.execute(
        "SELECT table_name, column_count FROM duckdb_tables() WHERE database_name = current_database()"
        f" AND schema_name = '{settings.DATASET}' AND NOT starts_with(table_name, '_dlt') ORDER BY table_name"
    ).fetchall()
    return [TableInfo(name, _count(connection, name), columns) for name, columns in found]


def schema(connection: duckdb.DuckDBPyConnection, table: str) -> list[tuple[str, str]]:
    """Name and type of each column of `table`, in order. Raises TableNotFoundError."""
    columns = connection.execute(
        "SELECT column_name, data_type FROM duckdb_columns() WHERE database_name = current_database()"
        f" AND schema_name = '{settings.DATASET}' AND table_name = {_literal(table)} ORDER BY column_index"
    ).fetchall()
    if not columns:
        raise TableNotFoundError(f"there is no table {table}", hint="mpload tables lists the tables there are")
    return [(name, type_) for name, type_ in columns]


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    quoted = table.replace('"', '""')
    rows = connection.execute(f'SELECT count(*) FROM "{quoted}"').fetchall()
    return int(rows[0][0])


@dataclass(frozen=True)
class LoadStatus:
    """What a database holds of the events. `missing` are days between the first and the last that are not complete."""

    days: int
    first_day: date | None
    last_day: date | None
    missing: Sequence[date]
    rows: int
    newest_event: datetime | None
    last_load: datetime | None
    rejected_lines: int


def load_status(connection: duckdb.DuckDBPyConnection) -> LoadStatus:
    """Read from `event_days`, `events` and dlt's `_dlt_loads`; all empty before the first load."""
    names = {table.name for table in tables(connection)}
    if "event_days" not in names:
        return LoadStatus(0, None, None, [], 0, None, None, 0)
    days, first, last, missing = connection.execute(
        """
        WITH complete AS (
            SELECT DISTINCT day FROM event_days JOIN _dlt_loads ON load_id = event_days._dlt_load_id
            WHERE status = 0 AND complete AND filter IS NULL),
        span AS (SELECT min(day) AS first, max(day) AS last, count(*) AS days FROM complete)
        SELECT days, first, last, (
            SELECT coalesce(list(day::DATE ORDER BY day), []) FROM (
                SELECT unnest(generate_series(first, last, INTERVAL 1 DAY))::DATE AS day FROM span WHERE days > 0)
            WHERE day NOT IN (SELECT day FROM complete))
        FROM span
        """
    ).fetchall()[0]
    rows, newest = connection.execute("SELECT count(*), max(event_time) FROM events").fetchall()[0]
    last_load = connection.execute("SELECT max(inserted_at) FROM _dlt_loads WHERE status = 0").fetchall()[0][0]
    rejected = connection.execute("SELECT count(*) FROM rejected_lines WHERE NOT loaded").fetchall()[0][0]
    return LoadStatus(days, first, last, missing, rows, newest, last_load, rejected)


@dataclass(frozen=True)
class Budget:
    """The requests of one API family in the last hour, by the ledger of this machine."""

    api: str
    spent: int
    allowed: int
    next_free_s: float


@dataclass(frozen=True)
class Status:
    """What is loaded, and what may still be asked. `loaded` is None where `problem` says why nobody can tell now."""

    database: Path
    loaded: LoadStatus | None
    problem: str | None
    days_behind: int | None
    """Days that are over in the project's calendar and later than the last one loaded."""
    requests: list[Budget]


def status(database: Path, ledger: RequestLedger | None, today: date) -> Status:
    """Answers while a load holds the database, too. `today` is a day of the project's calendar."""
    loaded, problem = LoadStatus(0, None, None, [], 0, None, None, 0), None
    try:
        if database.exists():
            with opened(database, wait_s=0.5) as connection:
                loaded = load_status(connection)
        else:
            problem = f"nothing is loaded yet: there is no {database}"
    except DatabaseBusyError as busy:
        return Status(database, None, f"the database is busy: {busy.message}", None, _budgets(ledger))
    behind = None if loaded.last_day is None else max(0, (today - loaded.last_day).days - 1)
    return Status(database, loaded, problem, behind, _budgets(ledger))


def _budgets(ledger: RequestLedger | None) -> list[Budget]:
    """Of the families that have a limit by the hour."""
    if ledger is None:
        return []
    hourly = [api for api, limits in settings.LIMITS.items() if max(period for _, period in limits) >= 3600]
    return [Budget(api, *ledger.spent(api)) for api in hourly]
