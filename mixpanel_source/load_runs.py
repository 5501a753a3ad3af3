"""`load_runs`: a row for each load that is over, in the dataset of what it loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import duckdb

from mixpanel_source import settings
from mixpanel_source.errors import MixpanelDataError
from mixpanel_source.warehouse import LOCK_WAIT_S, first_line, identifier, literal, opened, refuse_snapshots

if TYPE_CHECKING:
    from mixpanel_source.load_record import LoadRecord

logger = logging.getLogger(__name__)

LOAD_RUNS: Final = "load_runs"

COLUMNS: Final[Mapping[str, str]] = {
    "run_id": "VARCHAR",
    "began_at": "TIMESTAMPTZ",
    "ended_at": "TIMESTAMPTZ",
    "pid": "BIGINT",
    "version": "VARCHAR",
    "resources": "VARCHAR[]",
    "from_date": "DATE",
    "to_date": "DATE",
    "outcome": "VARCHAR",
    "error": "VARCHAR",
    "message": "VARCHAR",
    "warnings": "VARCHAR[]",
    "rows": "BIGINT",
    "days": "BIGINT",
    "received_bytes": "BIGINT",
    "property_bytes": "BIGINT",
    "requests": "BIGINT",
    "requests_by_api": "JSON",
    "retries": "BIGINT",
    "waits": "BIGINT",
    "waited_s": "DOUBLE",
    "download_s": "DOUBLE",
    "convert_s": "DOUBLE",
    "write_s": "DOUBLE",
    "typed_s": "DOUBLE",
    "load_ids": "VARCHAR[]",
}
"""In order. A table that an earlier version made gets those it lacks."""


def write_runs(database: Path, records: Sequence[LoadRecord], wait_s: float = LOCK_WAIT_S) -> bool:
    """Add the rows of loads that are over, those that are there already aside; whether that worked.

    It waits so long for another process that holds the database. What keeps them out is told to the log alone: by then
    what was loaded is loaded.
    """
    if not records or not database.exists():
        return not records
    try:
        with opened(database, write=True, wait_s=wait_s) as connection:
            refuse_snapshots(connection, [LOAD_RUNS])
            connection.execute("BEGIN")
            _make_table(connection)
            for record in records:
                _insert(connection, record)
            connection.execute("COMMIT")
    except (MixpanelDataError, duckdb.Error) as error:
        logger.warning("the run is not in %s yet: %s", LOAD_RUNS, first_line(error))
        return False
    return True


def _make_table(connection: duckdb.DuckDBPyConnection) -> None:
    found = connection.execute(
        "SELECT column_name FROM duckdb_columns() WHERE database_name = current_database()"
        f" AND schema_name = '{settings.DATASET}' AND table_name = '{LOAD_RUNS}'"
    ).fetchall()
    if not found:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {identifier(settings.DATASET)}")
        columns = ", ".join(f"{identifier(name)} {type_}" for name, type_ in COLUMNS.items())
        connection.execute(f"CREATE TABLE {_TABLE} ({columns})")
    else:
        for name in (name for name in COLUMNS if (name,) not in found):
            connection.execute(f"ALTER TABLE {_TABLE} ADD COLUMN {identifier(name)} {COLUMNS[name]}")


def _insert(connection: duckdb.DuckDBPyConnection, record: LoadRecord) -> None:
    row = _row(record)
    values = ", ".join(_LITERALS[COLUMNS[name]](row[name]) if row[name] is not None else "NULL" for name in COLUMNS)
    connection.execute(
        f"INSERT INTO {_TABLE} ({', '.join(map(identifier, COLUMNS))}) SELECT {values}"
        f" WHERE NOT EXISTS (SELECT 1 FROM {_TABLE} WHERE run_id = {literal(record.run_id)})"
    )


def _row(record: LoadRecord) -> dict[str, Any]:
    error, _, message = (record.error or "").partition(": ")
    figures = vars(record.metrics) if record.metrics is not None else {}
    known = {**vars(record), **figures, "error": error or None, "message": message or None}
    return {name: known.get(name) for name in COLUMNS}


def _list(values: Iterable[str]) -> str:
    return f"[{', '.join(map(literal, values))}]::VARCHAR[]"


def _moment(moment: datetime) -> str:
    return f"TIMESTAMPTZ '{moment.isoformat()}'"


def _day(day: date) -> str:
    return f"DATE '{day.isoformat()}'"


_TABLE: Final = f"{identifier(settings.DATASET)}.{LOAD_RUNS}"
_LITERALS: Final[Mapping[str, Callable[[Any], str]]] = {
    "VARCHAR": literal,
    "VARCHAR[]": _list,
    "TIMESTAMPTZ": _moment,
    "DATE": _day,
    "BIGINT": str,
    "DOUBLE": str,
    "JSON": lambda value: literal(json.dumps(value)),
}
