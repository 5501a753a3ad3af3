"""The DuckDB file that loads fill: opening it, asking it, and listing its tables. Imports no dlt."""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import duckdb

from mixpanel_source import settings
from mixpanel_source.errors import ConfigError, QueryError, TableExistsError, TableNotFoundError, WarehouseError

if TYPE_CHECKING:
    from mixpanel_source.destinations import Target

fcntl: ModuleType | None
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

FetchType = Literal["events", "profiles"]
OnWait = Callable[[float, str], None]
"""Told of a wait: seconds, and why."""

FETCHES = "fetches"
"""The table that tells of the snapshots there are."""

TRACES = "traces"
"""Among what is kept of the pipeline: dlt's traces of the last load packages."""

LOCK_WAIT_S = 3.0
"""How long a query waits for a load that holds the file: its last step takes about as long."""

_STORAGE_VERSION = "v1.2.0"
"""The oldest storage of DuckDB's that has zstd."""

_STEM_CHARS = 60
_MAGIC, _MAGIC_AT = b"DUCK", 8
_OTHER_DATABASE = re.compile(r":|\w{2,}:")
"""`:memory:`, `md:name`, `postgres:...`: DuckDB takes them for other things than files."""
_TAKEN_NAMES = (settings.DATASET, f"{settings.DATASET}_staging", settings.TYPED_DATASET, "information_schema")
_NAME_BYTES = 235
"""A file system takes 255, and what DuckDB puts beside the file has longer names."""

_FETCH_ROWS = 2048
"""As many as DuckDB works out at a time."""

_DAMAGED = "the file is damaged: put a copy of it in its place, or move it away and load again"
_HINTS = {
    "Permission denied": "choose another file with --db, or another folder with MP_DATA_DIR",
    "Read-only file system": "choose another file with --db, or another folder with MP_DATA_DIR",
    "No space left": "free some space on its disk",
    "version number": "a newer DuckDB has written it: update duckdb",
    "Could not read enough bytes": _DAMAGED,
    "Corrupt": _DAMAGED,
    "INTERNAL Error": _DAMAGED,
}
"""By a part of what is said."""


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
    # dlt puts the folder into SQL and into a template, where a quote and a percent sign mean something.
    name = re.sub(r"[^\w.-]", "_", database.stem)[:_STEM_CHARS]
    return settings.data_folder() / "pipelines" / f"{name}-{key}"


def file_and_other(into: Path | Target) -> tuple[Path, Target | None]:
    """The DuckDB file; or what the records of another destination are named by, and that one."""
    if isinstance(into, Path):
        return into, None
    return into.path, None if into.is_file else into


def kept_folder(database: Path) -> Path:
    """Where loads into `database` keep exports until what they hold is in it."""
    return settings.data_folder() / "spool" / pipelines_folder(database).name


def kept_bytes(database: Path) -> int:
    """What loads into `database` keep in that folder, or have under way."""
    total = 0
    with suppress(OSError):
        for path in kept_folder(database).iterdir():
            with suppress(OSError):
                total += path.stat().st_size
    return total


def sync(path: Path) -> None:
    """Have it on the disk. Of a folder, the names of its files."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock_path(database: Path) -> Path:
    """The file that a load holds locked."""
    return database.with_name(database.name + ".lock")


def is_held(lock: Path) -> bool:
    """Whether a process has this lock file locked. Makes none."""
    if fcntl is None:
        return True
    # Shared, and for no longer than it takes: who wants it in between would be told that another one has it.
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def check_database(path: Path) -> None:
    """See that a load can fill `path`, as far as its name and what is there tell. Touches nothing.

    Raises ConfigError for a name that cannot be, WarehouseError for a file that is no database.
    """
    # DuckDB calls the database what stands before the first dot or question mark, in any case.
    if re.split(r"[.?]", path.name.lstrip("."))[0].casefold() in _TAKEN_NAMES:
        raise ConfigError(
            f"the file {path.name} is named like a schema, which makes names in it ambiguous to DuckDB",
            hint=f"choose another name, such as {settings.DATASET}_data.duckdb",
        )
    if len(os.fsencode(path.name)) > _NAME_BYTES:
        raise ConfigError(
            f"the name of the database is too long: {path.name[:20]}...", hint=f"up to {_NAME_BYTES} bytes are possible"
        )
    # A question mark ends the path for DuckDB; dlt puts its folder into SQL, a pattern of files and a template.
    for folder, refused, setting in (
        (path.absolute().parent, "?", "--db"),
        (settings.data_folder().absolute(), "?*['%", "MP_DATA_DIR"),
    ):
        odd = next((char for char in refused if char in str(folder)), None)
        if odd is not None:
            raise ConfigError(f"a load cannot work in {folder}: its name holds {odd}", hint=f"{setting} moves it")
    _check_file(path)


def _check_file(path: Path) -> None:
    """See that `path` is a DuckDB file, or nothing yet. Raises ConfigError or WarehouseError."""
    if not path.is_absolute() and _OTHER_DATABASE.match(str(path)):
        raise ConfigError(f"{path} is not a file", hint="give a DuckDB file, such as events.duckdb")
    try:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder", hint=f"give a file, such as {path / 'events.duckdb'}")
        if not path.exists():
            return
        if not path.is_file():
            raise ConfigError(f"{path} is not a file", hint="give a DuckDB file, or a name that is free")
        if _is_open_here(path):
            return
        with path.open("rb") as file:
            head = file.read(_MAGIC_AT + len(_MAGIC))
    except OSError as error:
        raise WarehouseError(f"cannot read {path}: {error.strerror}", hint=hint_of(error.strerror)) from None
    if not head:
        raise WarehouseError(
            f"{path} is empty, and no DuckDB database", hint="remove it, or choose another name with --db"
        )
    # DuckDB itself would fetch an extension from the internet to read what other programs have written.
    if head[_MAGIC_AT:] != _MAGIC:
        kind = "an SQLite database" if head.startswith(b"SQLite") else "another file, or the rest of a damaged one"
        raise WarehouseError(f"{path} is not a DuckDB database: it is {kind}", hint="choose another name with --db")


def _is_open_here(path: Path) -> bool:
    """Whether this process has the file open: then DuckDB's lock on it would end as soon as we had read it.

    POSIX ends all locks of a process on a file with the first of its descriptors that is closed.
    """
    wanted = path.stat()
    with suppress(OSError):  # no /dev/fd: Windows, where locks are of another kind
        for entry in Path("/dev/fd").iterdir():
            with suppress(OSError):
                if os.path.samestat(os.fstat(int(entry.name)), wanted):
                    return True
    return False


def prepare_database(path: Path) -> None:
    """Make the file where there is none, and see that it can be written. Raises WarehouseError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise WarehouseError(f"cannot make the folder {path.parent}: {error.strerror}") from error
    config = {} if path.exists() else {"storage_compatibility_version": _STORAGE_VERSION}
    _open(path, read_only=False, config=config).close()


@contextmanager
def connected(path: Path, *, wait_s: float, on_wait: OnWait) -> Iterator[duckdb.DuckDBPyConnection]:
    """Keeps every other process out. `on_wait` is told of a wait. Raises DatabaseBusyError after `wait_s`."""
    connection = _open(path, read_only=False, wait_s=wait_s, on_wait=on_wait)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def opened(
    path: Path, *, write: bool = False, wait_s: float = LOCK_WAIT_S, on_wait: OnWait | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """As `connect`, for a while. Raises WarehouseError for what goes wrong in it, too."""
    connection = connect(path, write=write, wait_s=wait_s, on_wait=on_wait)
    try:
        yield connection
    except duckdb.Error as error:
        raise _cannot_read(path, error) from None
    finally:
        connection.close()


def connect(
    path: Path, *, write: bool = False, wait_s: float = LOCK_WAIT_S, on_wait: OnWait | None = None
) -> duckdb.DuckDBPyConnection:
    """The database at `path`, its tables found without the dataset's name. Raises WarehouseError.

    Where another process holds it, `on_wait` is told, and DatabaseBusyError raised after `wait_s`.
    """
    if not path.exists():
        raise WarehouseError(f"there is no database {path}", hint="load some data first: mpload load, or mpload demo")
    connection = _open(path, read_only=not write, wait_s=wait_s, on_wait=on_wait)
    try:
        connection.execute("SET TimeZone = 'UTC'")
        # No parameters: DuckDB imports pandas to see whether one is a DataFrame, which takes longer than all the rest.
        schemas = connection.execute(
            "SELECT schema_name FROM duckdb_schemas() WHERE database_name = current_database()"
        ).fetchall()
        path_ = [name for name in (settings.DATASET, settings.TYPED_DATASET) if (name,) in schemas]
        if path_:
            connection.execute(f"SET search_path = '{','.join([*path_, 'main'])}'")
    except duckdb.Error as error:
        connection.close()
        raise _cannot_read(path, error) from None
    return connection


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
    path: Path,
    *,
    read_only: bool,
    config: dict[str, Any] | None = None,
    wait_s: float = 0.0,
    on_wait: OnWait | None = None,
) -> duckdb.DuckDBPyConnection:
    _check_file(path)
    until = time.monotonic() + wait_s
    while True:
        try:
            connection = duckdb.connect(str(path.absolute()), read_only=read_only, config=config or {})
        except duckdb.IOException as error:
            holder = re.search(r"PID (\d+)", str(error))
            if holder is None or "lock" not in str(error):
                raise _cannot_open(path, error) from None
            busy = f"another process (PID {holder[1]}) holds {path}"
            if time.monotonic() >= until:
                hint = "wait for it to end, or close the program that has the file open"
                raise DatabaseBusyError(busy, hint=hint) from None
            if on_wait is not None:
                on_wait(wait_s, f"at most, as {busy}")
                on_wait = None
            time.sleep(0.1)
        except duckdb.Error as error:
            raise _cannot_open(path, error) from None
        else:
            connection.execute("SET enable_progress_bar = false")  # it goes to stdout, among the data
            return connection


def _cannot_open(path: Path, error: duckdb.Error) -> WarehouseError:
    text = first_line(error)
    return WarehouseError(f"cannot open {path}: {text}", hint=hint_of(text))


def _cannot_read(path: Path, error: duckdb.Error) -> WarehouseError:
    text = first_line(error)
    return WarehouseError(f"cannot read {path}: {text}", hint=hint_of(text))


def hint_of(problem: str | None) -> str | None:
    """What to do about what the operating system or DuckDB says, where that is known."""
    return next((hint for sign, hint in _HINTS.items() if sign in (problem or "")), None)


def data_folder_error(error: OSError) -> WarehouseError:
    """What was to be written in the data folder, other than the database, cannot be."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space there, or set MP_DATA_DIR to a folder on another disk"
    else:
        hint = "set MP_DATA_DIR to a folder you can write to"
    return WarehouseError(f"cannot write in the data folder {settings.data_folder()}: {error.strerror}", hint=hint)


def _query_error(error: duckdb.Error) -> QueryError | TableNotFoundError | WarehouseError:
    text = first_line(error)
    missing = re.match(r"Catalog Error: Table with name (\S+) does not exist", text)
    if missing:
        return TableNotFoundError(f"there is no table {missing[1]}", hint="mpload tables lists the tables there are")
    if "read-only mode" in str(error):
        return QueryError("the database is opened read-only", hint="add --write to change it")
    if isinstance(error, (duckdb.IOException, duckdb.InternalException, duckdb.FatalException)):
        return WarehouseError(text, hint=hint_of(text))
    return QueryError(" ".join(line.strip() for line in str(error).split("\n\n")[0].splitlines()))


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclass(frozen=True)
class TableInfo:
    name: str
    rows: int
    columns: int


def tables(connection: duckdb.DuckDBPyConnection, dataset: str = settings.DATASET) -> list[TableInfo]:
    """The tables of the dataset but dlt's own, by name."""
    found = connection.execute(
        "SELECT table_name, column_count FROM duckdb_tables() WHERE database_name = current_database()"
        f" AND schema_name = {literal(dataset)} AND NOT starts_with(table_name, '_dlt') ORDER BY table_name"
    ).fetchall()
    return [TableInfo(name, count_rows(connection, identifier(name)), columns) for name, columns in found]


def table_names(connection: duckdb.DuckDBPyConnection, dataset: str = settings.DATASET) -> set[str]:
    """Every table and view of a dataset, dlt's own included."""
    found = connection.execute(
        "SELECT table_name FROM information_schema.tables WHERE table_catalog = current_database()"
        f" AND table_schema = {literal(dataset)}"
    ).fetchall()
    return {name for (name,) in found}


def fetched_tables(connection: duckdb.DuckDBPyConnection) -> dict[str, FetchType]:
    """The snapshots in the database, by name, with what they are of."""
    if FETCHES not in table_names(connection):
        return {}
    sql = f'SELECT table_name, type FROM "{settings.DATASET}".{FETCHES} ORDER BY 1'
    return dict(connection.execute(sql).fetchall())


def refuse_snapshots(connection: duckdb.DuckDBPyConnection, resources: Sequence[str]) -> None:
    """Raises TableExistsError where a resource's table is one that `fetch` made."""
    for name in fetched_tables(connection):
        if name.lower() in resources:
            raise TableExistsError(
                f"the table {name} is a snapshot, which a load cannot add to",
                hint=f"drop it, or load into another file with --db: mpload drop {name}",
            )


def schema(connection: duckdb.DuckDBPyConnection, table: str, dataset: str = settings.DATASET) -> list[tuple[str, str]]:
    """Name and type of each column of `table`, in order. Raises TableNotFoundError."""
    columns = connection.execute(
        "SELECT column_name, data_type FROM duckdb_columns() WHERE database_name = current_database()"
        f" AND schema_name = {literal(dataset)} AND table_name = {literal(table)} ORDER BY column_index"
    ).fetchall()
    if not columns:
        raise TableNotFoundError(
            f"there is no table {table}", hint="mpload tables lists the tables there are, with --typed those of events"
        )
    return [(name, type_) for name, type_ in columns]


def literal(text: str) -> str:
    """`text` as a string of SQL."""
    quoted = "'" + text.replace("'", "''") + "'"
    return quoted if "\0" not in text else f"({quoted.replace(chr(0), _ZERO)})"


_ZERO = "' || chr(0) || '"


def identifier(name: str) -> str:
    """`name` as a name of SQL."""
    return '"' + name.replace('"', '""') + '"'


def count_rows(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    """Those of a table, which SQL names `table`."""
    rows = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(rows[0][0])
