"""Typed properties: in `mixpanel_typed` a table for each event, one for profiles, and the catalog of their columns.

In a lake they are in `<dataset>_typed`.
All of it is made of the `properties` of `events` and `profiles`, and can be made anew from them. `typed_days` tells of
which load packages it was made: a day that stands in `event_days` with another one is not in step, whoever wrote it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mixpanel_source import settings
from mixpanel_source.errors import TableNotFoundError
from mixpanel_source.event_days import days_scope
from mixpanel_source.parsing.events import new_connection
from mixpanel_source.property_columns import (
    CATALOG,
    EVENT_COLUMNS,
    IN_SHARED_COLUMNS,
    PROFILE_COLUMNS,
    PROFILES,
    TYPED_DAYS,
    TYPED_TABLES,
    JsonType,
    PropertyColumn,
    table_name,
)
from mixpanel_source.warehouse import count_rows, fetched_tables, identifier, literal, opened, table_names

T = TypeVar("T")
Columns = dict[str, PropertyColumn]
"""By property."""
Rows: TypeAlias = "pa.Table | str"
"""Rows at hand, or a table or a query in brackets of SQL."""

_IDS: Final = frozenset({"distinct_id", "insert_id", "event_id", "device_id", "user_id"})
"""Columns of which it is known how to compress them best: DuckDB takes long to find that out for texts."""

BATCH_BYTES: Final = 1024 * 1024 * 1024
"""Of properties whose days are brought in step in one transaction: a stop loses no more."""
_READ_ROWS: Final = 20_000
"""So few that sorting them by event stays in the processor's cache."""
_FLUSH_BYTES: Final = 16 * 1024 * 1024
_HELD_BYTES: Final = 64 * 1024 * 1024

# --- what is there


@dataclass(frozen=True)
class _Database:
    """A DuckDB file, or the lake that `connection` uses."""

    connection: duckdb.DuckDBPyConnection
    dataset: str
    typed_dataset: str
    loaded: str
    """SQL: `dataset` in its catalog, as a cursor does not know which one its connection uses."""
    typed: str
    """`typed_dataset`, likewise."""
    is_lake: bool

    @classmethod
    def of(cls, connection: duckdb.DuckDBPyConnection, dataset: str) -> _Database:
        # No parameters: see `warehouse.connect`.
        [(name, type_)] = connection.execute(
            "SELECT database_name, type FROM duckdb_databases() WHERE database_name = current_database()"
        ).fetchall()
        catalog = identifier(name)
        typed_dataset = dataset + settings.TYPED_SUFFIX
        loaded, typed = (f"{catalog}.{identifier(one)}" for one in (dataset, typed_dataset))
        return cls(connection, dataset, typed_dataset, loaded, typed, type_ == "ducklake")

    def execute(self, sql: str) -> duckdb.DuckDBPyConnection:
        return self.connection.execute(sql)

    def typed_names(self) -> set[str]:
        return table_names(self.connection, self.typed_dataset)


def typed_columns(
    connection: duckdb.DuckDBPyConnection, event: str | None, dataset: str = settings.DATASET
) -> list[PropertyColumn]:
    """The properties of an event, of profiles for None, by column. Raises TableNotFoundError where it has no table."""
    db = _Database.of(connection, dataset)
    if event not in _tables(db):
        raise TableNotFoundError(
            f"there is no typed table of {'profiles' if event is None else f'the event {event!r}'}",
            hint="mpload tables --typed lists them",
        )
    found = _catalog(db).get(event, {})
    return sorted(found.values(), key=lambda column: (column.column, column.name))


def typed_tables(
    connection: duckdb.DuckDBPyConnection, dataset: str = settings.DATASET
) -> list[tuple[str, str | None, int]]:
    """Table, event (None for profiles) and rows of each typed table, by name."""
    db = _Database.of(connection, dataset)
    # What DuckDB and lakes say of a table's size counts deleted rows, too.
    return sorted((name, event, count_rows(connection, _table(db, event))) for event, name in _tables(db).items())


def _tables(db: _Database) -> dict[str | None, str]:
    """The typed tables that are there, by event, None being profiles."""
    names = db.typed_names()
    return {event: name for event, name in _made_tables(db).items() if name in names}


def _made_tables(db: _Database) -> dict[str | None, str]:
    """Those that were made, even if someone dropped them."""
    if TYPED_TABLES not in db.typed_names():
        return {}
    return dict(db.execute(f"SELECT event, table_name FROM {db.typed}.{TYPED_TABLES}").fetchall())


def _catalog(db: _Database) -> dict[str | None, Columns]:
    catalog: dict[str | None, Columns] = {}
    found = db.execute(f"SELECT event, property, json_types, rows FROM {db.typed}.{CATALOG}").fetchall()
    for event, name, json_types, rows in found:
        catalog.setdefault(event, {})[name] = PropertyColumn(event, name, tuple(json_types), rows)
    return catalog


# --- bringing it in step


@dataclass(frozen=True)
class TypedUpdate:
    """What was brought in step: export days, and the rows that were written for it."""

    days: int = 0
    event_rows: int = 0
    profile_rows: int = 0


def update_typed(database: str | Path) -> TypedUpdate:
    """Bring the typed tables of a DuckDB file in step with what was loaded into its dataset `mixpanel`.

    `mpload load` does so by itself; call it after a `pipeline.run`. Raises WarehouseError where the file is held.
    """
    with opened(Path(database), write=True) as connection:
        return bring_in_step(connection)


def bring_in_step(
    connection: duckdb.DuckDBPyConnection, dataset: str = settings.DATASET, *, a_batch: bool = False
) -> TypedUpdate:
    """As `update_typed`, by a connection that may write, to a file or a lake.

    Some days at a time, each of them whole or not at all; with `a_batch`, no more days than the first of these.
    """
    db = _Database.of(connection, dataset)
    if _is_in_step(db):
        return TypedUpdate()
    loaded = _loaded(db)
    update = TypedUpdate()
    with nullcontext() if db.is_lake else _compressed_for_queries(connection):
        _make_own_tables(db)
        while "events" in loaded and (days := _stale_days(db)):
            written = _days_in_step(db, *days)
            update = replace(update, days=update.days + len(days[0]), event_rows=update.event_rows + written)
            if a_batch:
                return update
        if "profiles" in loaded and _are_profiles_stale(db):
            update = replace(update, profile_rows=_profiles_in_step(db))
    return update


def is_in_step(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether the typed tables of a file hold what `events` and `profiles` do. Changes nothing."""
    return _is_in_step(_Database.of(connection, settings.DATASET))


def _is_in_step(db: _Database) -> bool:
    loaded = _loaded(db)
    if not loaded:
        return True
    if TYPED_DAYS not in db.typed_names():
        return False
    return not (("events" in loaded and _stale_days(db)) or ("profiles" in loaded and _are_profiles_stale(db)))


def _loaded(db: _Database) -> set[str]:
    """Which of `events` and `profiles` are there, as loads have made them."""
    names = table_names(db.connection, db.dataset)
    snapshots = set() if db.is_lake else fetched_tables(db.connection).keys()
    loaded = {"events", "profiles"} & names - snapshots
    return loaded if {"event_days", "_dlt_loads"} <= names else loaded - {"events"}


def _make_own_tables(db: _Database) -> None:
    db.execute(f"CREATE SCHEMA IF NOT EXISTS {db.typed}")
    for name, columns in (
        (CATALOG, "event VARCHAR, property VARCHAR, json_types VARCHAR[], rows BIGINT, column_name VARCHAR,"
         " sql_type VARCHAR, table_name VARCHAR"),
        (TYPED_TABLES, "event VARCHAR, table_name VARCHAR"),
        (TYPED_DAYS, "day DATE, filter VARCHAR, _dlt_load_id VARCHAR"),
    ):  # fmt: skip
        db.execute(f"CREATE TABLE IF NOT EXISTS {db.typed}.{name} ({columns})")


def _current_days(db: _Database) -> str:
    return f"""
    SELECT day, filter, loaded._dlt_load_id FROM {db.loaded}.event_days AS loaded
    JOIN {db.loaded}._dlt_loads AS loads ON loads.load_id = loaded._dlt_load_id WHERE status = 0"""


def _stale_days(db: _Database) -> tuple[list[date], list[date]] | None:
    """The next days to bring in step, up to BATCH_BYTES, and those after them; None where all are."""
    stale = db.execute(f"""
    WITH current_days AS ({_current_days(db)}), known_days AS (FROM {db.typed}.{TYPED_DAYS}), stale AS (
        SELECT DISTINCT day FROM (
            (FROM current_days EXCEPT FROM known_days) UNION ALL (FROM known_days EXCEPT FROM current_days)))
    SELECT day, (SELECT coalesce(sum(bytes), 0) FROM {db.loaded}.event_days AS loaded WHERE loaded.day = stale.day)
    FROM stale ORDER BY day""").fetchall()
    if not stale:
        return None
    count = size = 0
    for _, bytes_ in stale:
        size += bytes_
        if count and size > BATCH_BYTES:
            break
        count += 1
    days = [day for day, _ in stale]
    return days[:count], days[count:]


def _days_in_step(db: _Database, days: Sequence[date], later: Sequence[date]) -> int:
    scope, again = days_scope("event_date", days), days_scope("day", days)
    with _transaction(db.connection):
        events = _Events(db, scope)
        for event, rows, found in _one_ahead(_slices(db, scope)):
            events.add(event, rows, found)
        events.finish(f"NOT ({days_scope('event_date', later)})" if later else "true")
        db.execute(f"DELETE FROM {db.typed}.{TYPED_DAYS} WHERE {again}")
        db.execute(f"INSERT INTO {db.typed}.{TYPED_DAYS} {_current_days(db)} AND ({again})")
    return events.written


class _Events:
    """The typed tables of events within one transaction, in which the rows that `scope` is true of are replaced."""

    def __init__(self, db: _Database, scope: str) -> None:
        self.written = 0
        self._db = db
        self._scope = scope
        self._known = _catalog(db)
        self._tables = {event for event in _tables(db) if event is not None}
        self._old_rows = {event: last for event in self._tables if (last := self._lose(event)) is not None}
        """The last row of each table that is to be replaced, by rowid: those of this transaction come after it."""
        self._changed = set(self._old_rows)
        self._rebuilt = {event for event in _made_tables(db) if event is not None} - self._tables
        """Events all of whose rows are written anew: the type of a column has become wider, or the table is gone."""

    def _lose(self, event: str) -> int | None:
        """Take the rows that are to be replaced from what is known, and find the last of them, if there are any."""
        last, counts = self._count(event, self._scope)
        for name, count in counts.items():
            column = self._known[event][name]
            self._known[event][name] = replace(column, rows=column.rows - count)
        return last

    def _count(self, event: str, scope: str) -> tuple[int | None, dict[str, int]]:
        """The last row that `scope` is true of, and how many of them have each property."""
        columns = [column for column in self._known.get(event, {}).values() if column.type is not None]
        counts = ", ".join(["max(rowid)", *(f"count({identifier(column.column)})" for column in columns)])
        sql = f"SELECT {counts} FROM {_table(self._db, event)} WHERE {scope}"
        [(last, *found)] = self._db.execute(sql).fetchall()
        return last, dict(zip((column.name for column in columns), found, strict=True))

    def add(self, event: str, rows: pa.Table, found: Columns) -> None:
        """Write some rows and the properties `found` in them, to which the table is fitted before."""
        before = self._known.get(event, {})
        after = self._known[event] = _together(before, found)
        self._changed.add(event)
        if event in self._rebuilt or _has_widened(before, after):
            self._rebuilt.add(event)
            return
        if event not in self._tables:
            _create(self._db, event, EVENT_COLUMNS, after.values())
            self._tables.add(event)
        else:
            for name in found:
                if after[name].type is not None and (name not in before or before[name].type is None):
                    self._db.execute(f"ALTER TABLE {_table(self._db, event)} ADD COLUMN {_definition(after[name])}")
        self.written += _insert(self._db, event, EVENT_COLUMNS, [after[name] for name in found], rows)

    def finish(self, in_step: str) -> None:
        """`in_step` is true of the rows of `events` that belong into the tables now."""
        for event in self._rebuilt:
            columns = self._known.get(event, {}).values()
            _create(self._db, event, EVENT_COLUMNS, columns)
            rows = f"(FROM {self._db.loaded}.events WHERE event_name = {literal(event)} AND {in_step})"
            self.written += _insert(self._db, event, EVENT_COLUMNS, columns, rows)
            for name, count in self._count(event, "true")[1].items():
                self._known[event][name] = replace(self._known[event][name], rows=count)
            self._changed.add(event)
        # Last, as DuckDB alters no table that it has deleted from in the same transaction.
        for event, last in self._old_rows.items():
            if event not in self._rebuilt:
                self._db.execute(f"DELETE FROM {_table(self._db, event)} WHERE ({self._scope}) AND rowid <= {last}")
        _note(self._db, {event: self._known.get(event, {}) for event in self._changed})


_PACKAGES: Final = "SELECT _dlt_load_id, count(*) FROM {} GROUP BY ALL ORDER BY ALL"


def _are_profiles_stale(db: _Database) -> bool:
    """Whether some came or went: a load gives the package that it came with to each."""
    if None not in _tables(db):
        return True
    tables = (_table(db, None), f"{db.loaded}.profiles")
    typed, loaded = (db.execute(_PACKAGES.format(table)).fetchall() for table in tables)
    return typed != loaded


def _profiles_in_step(db: _Database) -> int:
    """All of them anew."""
    profiles = f"{db.loaded}.profiles"
    known = {name: replace(column, rows=0) for name, column in _catalog(db).get(None, {}).items()}
    columns = _together(known, _properties(db.connection, None, profiles))
    with _transaction(db.connection):
        _create(db, None, PROFILE_COLUMNS, columns.values())
        written = _insert(db, None, PROFILE_COLUMNS, columns.values(), profiles)
        _note(db, {None: columns})
    return written


# --- tables


def _table(db: _Database, event: str | None) -> str:
    return f"{db.typed}.{identifier(_name(event))}"


def _name(event: str | None) -> str:
    return PROFILES if event is None else table_name(event)


def _definition(column: PropertyColumn) -> str:
    return f"{identifier(column.column)} {column.type}"


def _has_widened(before: Columns, after: Columns) -> bool:
    return any(column.type not in (None, after[name].type) for name, column in before.items())


def _together(before: Columns, found: Columns) -> Columns:
    """What is known of the properties of one event, and what more was found."""
    columns = dict(before)
    for name, column in found.items():
        known = before.get(name)
        if known is not None:
            types = {*known.json_types, *column.json_types}
            column = replace(column, json_types=tuple(sorted(types)), rows=known.rows + column.rows)
        columns[name] = column
    return columns


def _create(
    db: _Database,
    event: str | None,
    shared: Sequence[tuple[str, str]],
    columns: Iterable[PropertyColumn],
) -> None:
    """The typed table of an event, without rows."""
    typed = sorted(_definition(column) for column in columns if column.type is not None)
    of_event = "event IS NULL" if event is None else f"event = {literal(event)}"
    db.execute(f"DROP TABLE IF EXISTS {_table(db, event)}")
    fast = set() if db.is_lake else _IDS  # a lake's files are Parquet
    first = [f"{name} {type_}{' USING COMPRESSION fsst' if name in fast else ''}" for name, type_ in shared]
    db.execute(f"CREATE TABLE {_table(db, event)} ({', '.join([*first, *typed])})")
    db.execute(f"DELETE FROM {db.typed}.{TYPED_TABLES} WHERE {of_event}")
    name = "NULL" if event is None else literal(event)
    db.execute(f"INSERT INTO {db.typed}.{TYPED_TABLES} VALUES ({name}, {literal(_name(event))})")


def _insert(
    db: _Database,
    event: str | None,
    shared: Sequence[tuple[str, str]],
    columns: Iterable[PropertyColumn],
    rows: Rows,
) -> int:
    """Write `rows`, which have the columns of `events` or `profiles`; how many there are."""
    typed = [column for column in columns if column.type is not None]
    values = [name for name, _ in shared]
    for number, column in enumerate(typed, 1):
        value = f"found[{number}]" if column.type == "VARCHAR" else f"CAST(found[{number}] AS {column.type})"
        values.append(f"{value} AS {identifier(column.column)}")
    found = f"json_extract_string(properties, {_pointers(column.name for column in typed)})" if typed else "NULL"
    some = f"SELECT {', '.join(values)} FROM (SELECT *, {found} AS found FROM rows)"
    sql = f"INSERT INTO {_table(db, event)} BY NAME {some}"
    [(count,)] = _ask(db.connection, sql, rows).fetchall()
    return int(count)


_CATALOG_SCHEMA: Final = pa.schema(
    [
        ("event", pa.string()),
        ("property", pa.string()),
        ("json_types", pa.list_(pa.string())),
        ("rows", pa.int64()),
        ("column_name", pa.string()),
        ("sql_type", pa.string()),
        ("table_name", pa.string()),
    ]
)


def _note(db: _Database, events: Mapping[str, Columns] | Mapping[None, Columns]) -> None:
    """Write what is known of these events into the catalog."""
    rows = [
        (event, column.name, list(column.json_types), column.rows, column.column, column.type, _name(event))
        for event, columns in events.items()
        for column in columns.values()
    ]
    noted = [dict(zip(_CATALOG_SCHEMA.names, row, strict=True)) for row in rows]
    is_changed = f"EXISTS (FROM rows WHERE rows.event IS NOT DISTINCT FROM {CATALOG}.event)"
    changed = f"DELETE FROM {db.typed}.{CATALOG} WHERE {is_changed}"
    _ask(db.connection, changed, pa.table({"event": pa.array(list(events), pa.string())}))
    sql = f"INSERT INTO {db.typed}.{CATALOG} FROM rows ORDER BY event, column_name"
    _ask(db.connection, sql, pa.Table.from_pylist(noted, _CATALOG_SCHEMA))


# --- rows


def _ask(connection: duckdb.DuckDBPyConnection, sql: str, rows: Rows) -> duckdb.DuckDBPyConnection:
    """`sql`, in which `rows` is a table: DuckDB finds the variable, or it is what SQL says.

    One that is registered within a transaction would be kept in memory until its end.
    """
    return connection.execute(sql if isinstance(rows, pa.Table) else f"WITH rows AS (FROM {rows}) {sql}")


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """`items`, of which a thread works out the next one while one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="mixpanel-typed") as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item


def _slices(db: _Database, scope: str) -> Iterator[tuple[str, pa.Table, Columns]]:
    """The rows of `events` that `scope` is true of, as (event, some of its rows, the properties found in them)."""
    names = ", ".join([*(name for name, _ in EVENT_COLUMNS), "properties"])
    held: dict[str, list[pa.Table]] = {}
    sizes: dict[str, int] = {}
    with db.connection.cursor() as cursor, new_connection() as reading:
        cursor.execute(f"SELECT {names} FROM {db.loaded}.events WHERE {scope}")
        for batch in cursor.to_arrow_reader(_READ_ROWS):
            for event, rows in _by_event(batch):
                held.setdefault(event, []).append(rows)
                sizes[event] = sizes.get(event, 0) + rows.nbytes
            # Together as far as memory allows: each slice costs some queries.
            is_full = sum(sizes.values()) > _HELD_BYTES
            for event in [event for event, size in sizes.items() if is_full or size > _FLUSH_BYTES]:
                rows = pa.concat_tables(held.pop(event))
                yield event, rows, _properties(reading, event, rows)
                del sizes[event]
        for event, tables in held.items():
            rows = pa.concat_tables(tables)
            yield event, rows, _properties(reading, event, rows)


def _by_event(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.Table]]:
    names = batch.column("event_name").dictionary_encode()
    order = pc.sort_indices(names.indices)
    rows = pa.Table.from_batches([batch.take(order)])
    first = 0
    counts = pc.value_counts(names.indices.take(order)).to_pylist()
    for count in counts:
        yield names.dictionary[count["values"]].as_py(), rows.slice(first, count["counts"])
        first += count["counts"]


# --- properties

_TYPES: Final[Mapping[str, JsonType]] = {
    "VARCHAR": "string",
    "NULL": "null",
    "BOOLEAN": "boolean",
    "ARRAY": "array",
    "OBJECT": "object",
}
"""By what DuckDB's json_type says of a value. Of numbers `_number_types` tells more."""
_NUMBERS: Final = ("UBIGINT", "BIGINT", "DOUBLE")
_EXACT_CHARS: Final = 15
"""Whole numbers of so many characters are `integer`: a double has room for all their digits."""
_BIGINT_CHARS: Final = 18
"""Those of so many fit a BIGINT, and some of up to _MOST_BIGINT_CHARS."""
_MOST_BIGINT_CHARS: Final = 20
_PLAIN_DOUBLE_CHARS: Final = 300
"""Without an exponent, a number of so few characters is none that a double cannot hold."""
_FIRST_OF_NUMBERS: Final = np.frombuffer(b"-0123456789NnIi", np.uint8)


def _properties(connection: duckdb.DuckDBPyConnection, event: str | None, rows: Rows) -> Columns:
    """The properties that `rows` hold, with their types; `rows` without those that are null."""
    keys = _ask(connection, "SELECT DISTINCT unnest(json_keys(properties)) FROM rows", rows).fetchall()
    names = sorted(name for (name,) in keys if event is None or name not in IN_SHARED_COLUMNS)
    if not names:
        return {}
    counts = _type_counts(connection, rows, names)
    numbers = [name for name in names if not counts[name].keys().isdisjoint(_NUMBERS)]
    types: dict[str, set[JsonType]] = _number_types(connection, rows, numbers) if numbers else {}
    for name in names:
        types.setdefault(name, set()).update(_TYPES[type_] for type_ in counts[name] if type_ in _TYPES)
    return {
        name: PropertyColumn(event, name, tuple(sorted(types[name])), counts[name].total() - counts[name]["NULL"])
        for name in names
    }


# In Arrow, as DuckDB takes longer to plan hundreds of sums than to work them out.


def _type_counts(connection: duckdb.DuckDBPyConnection, rows: Rows, names: Sequence[str]) -> dict[str, Counter[str]]:
    """How many values of each property are of which of DuckDB's types."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    found = _ask(connection, f"SELECT json_type(properties, {_pointers(names)}) FROM rows", rows)
    for batch in found.to_arrow_reader(_READ_ROWS):
        types = batch.column(0).flatten().dictionary_encode()
        codes = types.indices.fill_null(-1).to_numpy().reshape(-1, len(names))
        for code, type_ in enumerate(types.dictionary.to_pylist()):
            for name, count in zip(names, (codes == code).sum(axis=0).tolist(), strict=True):
                if count:
                    counts[name][type_] += count
    return counts


def _number_types(connection: duckdb.DuckDBPyConnection, rows: Rows, names: Sequence[str]) -> dict[str, set[JsonType]]:
    """Which types the numbers among the values of each property are of."""
    types: dict[str, set[JsonType]] = {name: set() for name in names}
    found = _ask(connection, f"SELECT json_extract(properties, {_pointers(names)}) FROM rows", rows)
    for batch in found.to_arrow_reader(_READ_ROWS):
        which = np.tile(np.arange(len(names)), len(batch))
        for type_, places in _numbers(batch.column(0).flatten().cast(pa.string())):
            for number in np.unique(which[places]):
                types[names[number]].add(type_)
    return types


def _numbers(values: pa.Array) -> Iterator[tuple[JsonType, npt.NDArray[np.int64]]]:
    """Where among JSON values the numbers of each type are, infinities and NaN included."""
    offsets = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1]
    text = np.frombuffer(values.buffers()[2] or b"\0", np.uint8)
    size = np.diff(offsets)
    first = np.where(size > 0, text[np.minimum(offsets[:-1], len(text) - 1)], 0)
    is_number = np.isin(first, _FIRST_OF_NUMBERS) & ~((first == ord("n")) & (size == len("null")))
    is_whole = is_number & _flags(pc.ascii_is_decimal(values))
    is_short = is_whole & (size <= _EXACT_CHARS)
    is_bigint = is_whole & ~is_short & (size <= _BIGINT_CHARS)
    has_point = is_number & ~is_whole & _flags(pc.match_substring(values, "."))
    is_double = has_point & (size <= _PLAIN_DOUBLE_CHARS) & ~_flags(pc.match_substring(values, "e"))
    yield "integer", np.flatnonzero(is_short)
    yield "bigint", np.flatnonzero(is_bigint)
    yield "double", np.flatnonzero(is_double)
    # What is left is rare: those below zero, long ones, those with an exponent, infinities and NaN.
    rest = np.flatnonzero(is_number & ~(is_short | is_bigint | is_double))
    by_type = [_rare_type(value) for value in values.take(pa.array(rest)).to_pylist()]
    for type_ in set(by_type):
        yield type_, rest[[known == type_ for known in by_type]]


def _rare_type(number: str) -> JsonType:
    if number.lstrip("-").isdigit():
        if len(number) <= _EXACT_CHARS:
            return "integer"
        # Python reads no whole number of more than 4300 digits.
        return "bigint" if len(number) <= _MOST_BIGINT_CHARS and -(2**63) <= int(number) < 2**63 else "bignumber"
    is_sent_as_infinity = "n" in number.lower()
    return "bignumber" if math.isinf(float(number)) and not is_sent_as_infinity else "double"


def _flags(mask: pa.BooleanArray) -> npt.NDArray[np.bool_]:
    flags: npt.NDArray[np.bool_] = mask.fill_null(False).to_numpy(zero_copy_only=False)
    return flags


def _pointers(properties: Iterable[str]) -> str:
    """SQL: JSON pointers (RFC 6901), as DuckDB's paths cannot spell every name."""
    return f"[{', '.join(literal('/' + name.replace('~', '~0').replace('/', '~1')) for name in properties)}]"


@contextmanager
def _transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    connection.begin()
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


@contextmanager
def _compressed_for_queries(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Lets DuckDB choose how to compress each column. Loads do not: zstd takes less time to write, and more to read."""
    [(before,)] = connection.execute("SELECT current_setting('force_compression')").fetchall()
    connection.execute("CHECKPOINT")  # what a load has written is compressed as the load says
    connection.execute("SET force_compression = 'auto'")
    try:
        yield
        connection.execute("CHECKPOINT")
    finally:
        connection.execute(f"SET force_compression = {literal(before)}")
