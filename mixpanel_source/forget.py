"""Deleting people: their rows from every table, and their bytes from the files that were made of them.

DuckDB keeps the bytes of deleted rows in free blocks of its file. So the rows that stay are copied into a new file,
which then takes the old one's place in one step: whatever happens, one of the two is there, and whole.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from mixpanel_source import settings
from mixpanel_source.bodies import remove_stale
from mixpanel_source.errors import ConfigError, WarehouseError
from mixpanel_source.kept_out import (
    ANONYMOUS_ID,
    BEFORE_IDENTITY,
    FORGOTTEN,
    GIVEN,
    ID_COLUMNS,
    IDENTITY_EVENTS,
    execute_with,
    find_or_make_key,
    forms_of,
    keep_out,
    kept_out_of,
)
from mixpanel_source.load_record import record_path
from mixpanel_source.load_runs import LOAD_RUNS
from mixpanel_source.pipeline import DUCKDB_CONFIG, DUCKDB_PRAGMAS, locked
from mixpanel_source.property_columns import CATALOG
from mixpanel_source.warehouse import (
    FETCHES,
    OnWait,
    data_folder_error,
    first_line,
    hint_of,
    identifier,
    kept_folder,
    literal,
    opened,
    pipelines_folder,
    sync,
)

WRITE_WAIT_S: Final = 600.0
"""How long it waits for a program that has the database open."""

_COPY: Final = "mpload_copy"
_IDS: Final = "temp.main.mpload_ids"
_EVENTS: Final = "temp.main.mpload_events"
_LINES: Final = "temp.main.mpload_lines"
_STAGING: Final = f"{settings.DATASET}_staging"
_REJECTED: Final = (settings.DATASET, "rejected_lines")

_OPENING_S: Final = 0.1
"""Another program may have opened the old file just before it was replaced, and not yet seen that it is held."""
_SPARE_BYTES: Final = 64 * 1024 * 1024
_JUST_MADE_S: Final = 1.0
"""So young, a spool file may not yet be locked by its owner."""
_READ_ROWS: Final = 1000


@dataclass(frozen=True)
class ForgetResult:
    """What was removed. `ids` counts those given, `rows` the rows of each table that had some (`schema.table` beside
    those of the dataset); `kept_out` says whether they are left out of later loads."""

    ids: int
    rows: Mapping[str, int]
    kept_out: bool
    forgotten_at: datetime


@dataclass(frozen=True)
class _Table:
    schema: str
    name: str
    columns: frozenset[str]
    """In lower case."""

    @property
    def sql(self) -> str:
        return f"{identifier(self.schema)}.{identifier(self.name)}"

    @property
    def label(self) -> str:
        return self.name if self.schema == settings.DATASET else f"{self.schema}.{self.name}"


def forget(
    database: Path, ids: Iterable[str], *, keep_out: bool = False, on_wait: OnWait | None = None
) -> ForgetResult:
    """Remove everyone who has one of `ids` from a DuckDB file, and from what loads have left in the data folder.

    `keep_out` leaves them out of what is loaded and fetched later. Ids that nobody has are no error. `on_wait` is told
    of a wait for a program that has the database open.

    Raises ConfigError for what is no id, WarehouseError where the file cannot be written, a load works on it, or the
    disk has no room for a copy: nothing is changed then.
    """
    given = _checked(ids)
    with opened(database):  # that there is one
        pass
    with locked(database), opened(database, write=True, wait_s=WRITE_WAIT_S, on_wait=on_wait) as connection:
        _check_room(database)
        key = None
        if keep_out:
            kept_out_of(connection)  # that the key is the one of those who are kept out already
            key = find_or_make_key()
        forms = sorted({form for id_ in given for form in forms_of(id_)})
        with _own_errors(database):
            _remove_working_files(database, forms)
            done = _Forgetting(connection, database.resolve(), given, forms, key)
            return done.run()


def _checked(ids: Iterable[str]) -> list[str]:
    if isinstance(ids, str):
        ids = [ids]
    given = list(dict.fromkeys(ids))
    if not given:
        raise ConfigError("nobody is named", hint="give the distinct_id of who is to be forgotten")
    # Rows without an id are of nobody, or of many.
    if any(not forms_of(id_) for id_ in given):
        raise ConfigError("an id is empty", hint="leave it out: rows with an empty id may be anyone's")
    # As Python has bytes of the command line that are no UTF-8.
    if any("\ud800" <= char <= "\udfff" for id_ in given for char in id_):
        raise ConfigError("an id is not UTF-8 text", hint="give it as Mixpanel has it, with --file if need be")
    return given


class _Forgetting:
    """One run, by a connection that keeps all others out of the file."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        database: Path,
        given: list[str],
        forms: list[str],
        key: bytes | None,
    ) -> None:
        self._connection = connection
        self._database = database
        self._given = given
        self._forms = forms
        self._key = key
        self._at = datetime.now(UTC)
        [(name, tags)] = self._ask(
            "SELECT database_name, tags['storage_version'] FROM duckdb_databases()"
            " WHERE database_name = current_database()"
        )
        self._old = identifier(name)
        # `v1.2.0+`, or from one to another.
        self._storage = re.findall(r"v[0-9.]+", str(tags))[:1]
        self._tables = _tables(connection)

    def run(self) -> ForgetResult:
        file = self._database.with_name(f"{self._database.name}.forgetting")
        _remove_database(file)  # of one that was killed
        try:
            for name, value in DUCKDB_CONFIG.items():
                self._connection.execute(f"SET {name} = '{value}'")
            self._connection.execute("CHECKPOINT")  # what is left of the log is then in the file
            self._find()
            self._attach(file)
            self._copy()
            self._detach()
            self._attach(file)  # and what is on the disk counts
            removed = self._verified()
            self._keep_in_step(removed)
            self._detach()
            shutil.copymode(self._database, file)
            sync(file)
            _replace(file, self._database)
            sync(self._database.parent)
            time.sleep(_OPENING_S)
        finally:
            _remove_database(file)
        return ForgetResult(len(self._given), removed, self._key is not None, self._at)

    # --- what goes

    def _find(self) -> None:
        """The ids, the events and the lines to be removed, as tables of this connection."""
        for name, columns in (
            (_IDS, "id VARCHAR"),
            (_EVENTS, "event_id VARCHAR, event_date DATE, event_name VARCHAR, _dlt_load_id VARCHAR, size BIGINT"),
            (_LINES, "place BIGINT, from_date DATE, to_date DATE, loaded BOOLEAN, _dlt_load_id VARCHAR"),
        ):
            self._connection.execute(f"CREATE TEMP TABLE {name.rpartition('.')[2]} ({columns})")
        ids = pa.table({"id": pa.array(self._forms, pa.string())})
        execute_with(self._connection, f"INSERT INTO {_IDS} FROM {GIVEN}", ids)
        events = self._tables.get((settings.DATASET, "events"))
        if events is not None and "_dlt_load_id" in events.columns:  # else it is a snapshot
            self._connection.execute(
                f"INSERT INTO {_EVENTS} SELECT event_id, event_date, event_name, _dlt_load_id, strlen(properties)"
                f" FROM {self._old}.{events.sql} WHERE {self._goes(events)}"
            )
        if _REJECTED in self._tables:
            execute_with(
                self._connection,
                f"INSERT INTO {_LINES} SELECT rowid, from_date, to_date, loaded, _dlt_load_id"
                f" FROM {self._old}.{self._tables[_REJECTED].sql} WHERE rowid IN (SELECT place FROM {GIVEN})",
                self._rejected_places(),
            )

    def _rejected_places(self) -> pa.Table:
        """The rows of `rejected_lines` whose raw line holds an id."""
        found: list[int] = []
        spelt = _Spelt(self._forms)
        cursor = self._connection.cursor()
        cursor.execute(f"SELECT rowid AS place, raw FROM {self._old}.{self._tables[_REJECTED].sql}")
        for batch in cursor.to_arrow_reader(_READ_ROWS):
            lines = [raw or b"" for raw in batch.column("raw").to_pylist()]
            found += [batch.column("place")[number].as_py() for number in spelt.places(lines)]
        cursor.close()
        return pa.table({"place": pa.array(found, pa.int64())})

    def _goes(self, table: _Table) -> str:
        """SQL that is true of the rows of `table` that are removed."""
        if table.schema == _STAGING and not table.name.startswith("_dlt"):  # what dlt had just written, once more
            return "true"
        columns: list[str] = [name for name in ID_COLUMNS if name in table.columns]
        if (table.schema, table.name) in _SEGMENTS and "segment" in table.columns:
            columns.append("segment")
        goes = [f"CAST({identifier(name)} AS VARCHAR) IN (SELECT id FROM {_IDS})" for name in columns]
        if (table.schema, table.name) == (settings.DATASET, "insights") and "path" in table.columns:
            goes.append(_has_one_of("TRY_CAST(path AS JSON)"))
        if table.schema == settings.TYPED_DATASET and "event_id" in table.columns:
            goes.append(f"event_id IN (SELECT event_id FROM {_EVENTS})")
        if (table.schema, table.name) == _REJECTED:
            goes.append(f"rowid IN (SELECT place FROM {_LINES})")
        if (table.schema, table.name) == (settings.DATASET, LOAD_RUNS) and {"message", "warnings"} <= table.columns:
            goes.append(_IS_NAMED_BY_A_LOAD)
        if {"event_name", "properties"} <= table.columns:
            goes.append(_IS_NAMED_IN_PROPERTIES)
        return "coalesce(" + (" OR ".join(f"coalesce({one}, false)" for one in goes) or "false") + ", false)"

    # --- the copy

    def _attach(self, file: Path) -> None:
        storage = f" (STORAGE_VERSION '{self._storage[0]}')" if self._storage else ""
        self._connection.execute(f"ATTACH {literal(str(file))} AS {_COPY}{storage}")

    def _detach(self) -> None:
        self._connection.execute(f"CHECKPOINT {_COPY}")
        self._connection.execute(f"DETACH {_COPY}")

    def _copy(self) -> None:
        """Everything but the rows that are removed, compressed as loads and typed tables have it."""
        self._connection.execute(f"COPY FROM DATABASE {self._old} TO {_COPY} (SCHEMA)")
        of_loads = [table for table in self._tables.values() if table.schema == settings.DATASET]
        others = [table for table in self._tables.values() if table.schema != settings.DATASET]
        for tables, settings_ in ((of_loads, DUCKDB_PRAGMAS), (others, ["force_compression='auto'"])):
            for setting in settings_:
                self._connection.execute(f"SET {setting}")
            for table in tables:
                self._connection.execute(
                    f"INSERT INTO {_COPY}.{table.sql} FROM {self._old}.{table.sql} WHERE NOT {self._goes(table)}"
                )
            self._connection.execute(f"CHECKPOINT {_COPY}")

    def _verified(self) -> dict[str, int]:
        """The rows that are gone from each table, once the copy is known to have all others, to the letter."""
        removed: dict[str, int] = {}
        for table in self._tables.values():
            goes = self._goes(table)
            rows = "count(*), sum(hash(one_row)::HUGEINT)"
            [expected] = self._ask(f"SELECT {rows} FROM {self._old}.{table.sql} AS one_row WHERE NOT {goes}")
            [copied] = self._ask(f"SELECT {rows} FROM {_COPY}.{table.sql} AS one_row")
            if copied != expected:
                raise WarehouseError(
                    f"the copy of the table {table.label} is not the same: nothing was changed",
                    hint="check the disk, and call again",
                )
            [(before,)] = self._ask(f"SELECT count(*) FROM {self._old}.{table.sql}")
            if before > copied[0] and table.schema != _STAGING:
                removed[table.label] = before - copied[0]
        return removed

    def _keep_in_step(self, removed: Mapping[str, int]) -> None:
        """What tells of the rows that are there; and that it happened."""
        dataset = f"{_COPY}.{identifier(settings.DATASET)}"
        self._connection.execute("BEGIN")
        if (settings.DATASET, "event_days") in self._tables:
            self._connection.execute(_EVENT_DAYS.format(days=f"{dataset}.event_days"))
            self._connection.execute(_REJECTED_OF_DAYS.format(days=f"{dataset}.event_days"))
        if (settings.DATASET, FETCHES) in self._tables:
            for name, count in removed.items():
                self._connection.execute(
                    f"UPDATE {dataset}.{FETCHES} SET row_count = row_count - {count} WHERE table_name = {literal(name)}"
                )
        self._recount_properties(removed)
        self._connection.execute(f"CREATE SCHEMA IF NOT EXISTS {dataset}")
        if self._key is not None:
            keep_out(self._connection, dataset, self._key, self._forms)
        self._connection.execute(
            f"CREATE TABLE IF NOT EXISTS {dataset}.{FORGOTTEN}"
            " (forgotten_at TIMESTAMPTZ, ids BIGINT, kept_out BOOLEAN, rows JSON)"
        )
        self._connection.execute(
            f"INSERT INTO {dataset}.{FORGOTTEN} VALUES (TIMESTAMPTZ '{self._at.isoformat()}', {len(self._given)},"
            f" {self._key is not None}, {literal(json.dumps(removed))})"
        )
        self._connection.execute("COMMIT")

    def _recount_properties(self, removed: Mapping[str, int]) -> None:
        """`rows` of `properties_catalog` for the typed tables that have lost some."""
        if (settings.TYPED_DATASET, CATALOG) not in self._tables:
            return
        catalog = f"{_COPY}.{identifier(settings.TYPED_DATASET)}.{CATALOG}"
        for table in self._tables.values():
            if table.schema != settings.TYPED_DATASET or table.label not in removed:
                continue
            of_table = f"table_name = {literal(table.name)} AND sql_type IS NOT NULL"
            columns = [name for (name,) in self._ask(f"SELECT column_name FROM {catalog} WHERE {of_table}")]
            if not columns:
                continue
            counts = ", ".join(f"count({identifier(name)})" for name in columns)
            [found] = self._ask(f"SELECT {counts} FROM {_COPY}.{table.sql}")
            counted = pa.table({"name": pa.array(columns, pa.string()), "rows": pa.array(found, pa.int64())})
            execute_with(
                self._connection,
                f"UPDATE {catalog} SET rows = counted.rows FROM {GIVEN} AS counted"
                f" WHERE {of_table} AND column_name = counted.name",
                counted,
            )

    def _ask(self, sql: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql).fetchall()


_SEGMENTS: Final = frozenset((settings.DATASET, table) for table in settings.REPORT_TABLES)

_EVENT_DAYS: Final = f"""
    UPDATE {{days}} AS known SET rows = known.rows - gone.rows, bytes = known.bytes - gone.bytes FROM (
        SELECT days.day, days.filter, days._dlt_load_id, count(*) AS rows, sum(size)::BIGINT AS bytes
        FROM {{days}} AS days JOIN {_EVENTS} AS events
        ON events.event_date = days.day AND events._dlt_load_id = days._dlt_load_id
            AND coalesce(json_extract_string(days.filter, '$.event'), events.event_name) = events.event_name
        GROUP BY ALL) AS gone
    WHERE known.day = gone.day AND known.filter IS NOT DISTINCT FROM gone.filter
        AND known._dlt_load_id = gone._dlt_load_id"""
"""Each row counts what came with its own load package."""
_REJECTED_OF_DAYS: Final = f"""
    UPDATE {{days}} AS known SET rejected = known.rejected - gone.rejected FROM (
        SELECT days.day, days.filter, days._dlt_load_id, count(*) AS rejected
        FROM {{days}} AS days JOIN {_LINES} AS lines
        ON days.day BETWEEN lines.from_date AND lines.to_date AND lines._dlt_load_id = days._dlt_load_id
        WHERE NOT lines.loaded GROUP BY ALL) AS gone
    WHERE known.day = gone.day AND known.filter IS NOT DISTINCT FROM gone.filter
        AND known._dlt_load_id = gone._dlt_load_id"""


def _has_one_of(json_list: str) -> str:
    return f"list_has_any(TRY_CAST({json_list} AS VARCHAR[]), (SELECT list(id) FROM {_IDS}))"


def _property(name: str) -> str:
    return f"json_extract_string(properties, '/{name}')"


def _named(event: str, name: str) -> str:
    is_one = f"{_property(name)} IN (SELECT id FROM {_IDS})"
    has_one = _has_one_of(f"json_extract(properties, '/{name}')")
    return f"(event_name = '{event}' AND (coalesce({is_one}, false) OR coalesce({has_one}, false)))"


_NAMED: Final = " OR ".join(
    _named(event, property_) for event, name in IDENTITY_EVENTS.items() for property_ in (name, ANONYMOUS_ID)
)
_IS_NAMED_BY_A_LOAD: Final = f"""(
    SELECT bool_or(regexp_matches(concat_ws(' ', message, CAST(warnings AS VARCHAR)),
        '(^|[^0-9A-Za-z])' || regexp_escape(id) || '([^0-9A-Za-z]|$)')) FROM {_IDS})"""
"""In what it told of an error, or warned of."""
_IS_NAMED_IN_PROPERTIES: Final = f"""CASE
    WHEN contains(CAST(properties AS VARCHAR), '{BEFORE_IDENTITY}')
        OR event_name IN ({", ".join(map(literal, IDENTITY_EVENTS))})
    THEN coalesce({_property(BEFORE_IDENTITY)} IN (SELECT id FROM {_IDS}), false) OR {_NAMED} END"""
"""As `KeptOut.rows` has it."""


def _tables(connection: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], _Table]:
    """Every table of the file, in the order they were made."""
    found = connection.execute(
        "SELECT schema_name, table_name, (SELECT list(lower(column_name)) FROM duckdb_columns() AS columns"
        " WHERE columns.database_oid = tables.database_oid AND columns.table_oid = tables.table_oid)"
        " FROM duckdb_tables() AS tables WHERE database_name = current_database() ORDER BY table_oid"
    ).fetchall()
    return {(schema, name): _Table(schema, name, frozenset(columns)) for schema, name, columns in found}


class _Spelt:
    """Ids as they stand in raw bytes, in every way that JSON may spell them, with no letter or digit beside them."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._spelt = {
            text.encode("utf-8", "surrogatepass")
            for id_ in ids
            for text in (id_, json.dumps(id_)[1:-1], json.dumps(id_, ensure_ascii=False)[1:-1])
        }

    def places(self, texts: list[bytes]) -> Iterator[int]:
        """Which of `texts` hold one."""
        together = b"\n".join(texts)
        found = [spelt for spelt in self._spelt if spelt in together]
        if found:
            one = re.compile(rb"(?<![0-9A-Za-z])(?:" + b"|".join(map(re.escape, found)) + rb")(?![0-9A-Za-z])")
            yield from (number for number, text in enumerate(texts) if one.search(text))


# --- files


def _remove_working_files(database: Path, forms: list[str]) -> None:
    """What loads have left in the data folder: all of it may be removed between loads."""
    folder = settings.data_folder()
    remove_stale(folder / "spool", _JUST_MADE_S)
    for path in (
        pipelines_folder(database),
        kept_folder(database),
        folder / "discovery",  # answers, which values of properties are among
        database.with_name(f"{database.name}.tmp"),  # of a DuckDB that was killed
    ):
        if path.exists():
            shutil.rmtree(path)
    record = record_path(database)
    with suppress(FileNotFoundError):
        if any(_Spelt(forms).places([record.read_bytes()])):
            record.unlink()


def _check_room(database: Path) -> None:
    size = database.stat().st_size + _SPARE_BYTES
    free = shutil.disk_usage(database.resolve().parent).free
    if free < size:
        raise WarehouseError(
            f"there is no room for a copy of {database}: {size >> 20} MB are needed, {free >> 20} MB are free",
            hint="free some space on its disk",
        )


def _replace(file: Path, database: Path) -> None:
    file.replace(database)


def _remove_database(path: Path) -> None:
    for one in (path, path.with_name(f"{path.name}.wal")):
        one.unlink(missing_ok=True)


@contextmanager
def _own_errors(database: Path) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        problem = first_line(error)
        raise WarehouseError(f"cannot copy {database}: {problem}", hint=hint_of(problem)) from None
    except OSError as error:
        if error.filename is not None and Path(error.filename).is_relative_to(settings.data_folder()):
            raise data_folder_error(error) from None
        raise WarehouseError(
            f"cannot write beside {database}: {error.strerror}", hint=hint_of(error.strerror)
        ) from error
