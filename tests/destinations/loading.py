"""Loads of days into a destination that the environment describes, one load after the other.

    python -m destinations.loading URL DESTINATION KILL_AT FROM:TO...

A step is whatever dlt does to a file, to the database or to a table. The process kills itself before step `KILL_AT` of
all of them, or before it calls the function of `typed` that has this name; with 0 it does not, and prints how many
there were. DESTINATION may be followed by a slash and the dataset.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from datetime import date
from importlib import import_module
from typing import Any

from dlt.common.storages.file_storage import FileStorage
from killed_load import count_steps

from mixpanel_source import settings, typed
from mixpanel_source.credentials import Credentials
from mixpanel_source.destinations import Target, target_of
from mixpanel_source.load import LoadResult, load
from mixpanel_source.pipeline import locked
from mixpanel_source.project import Project
from mixpanel_source.windows import DateRange

_FILES = ("save", "save_atomic", "atomic_rename", "rename_tree", "delete", "delete_folder")
_SQL = ("execute_sql", "execute_query", "execute_many", "begin_transaction", "commit_transaction")
_TABLES = ("load_open_table", "get_open_table_location", "update_stored_schema", "_write_to_json_file")
CLIENTS = {
    "postgres": ("dlt.destinations.impl.postgres.sql_client", "Psycopg2SqlClient"),
    "ducklake": ("dlt.destinations.impl.duckdb.sql_client", "DuckDbSqlClient"),
    "sqlalchemy": ("dlt.destinations.impl.sqlalchemy.db_api_client", "SqlalchemyClient"),
    "filesystem": ("dlt.destinations.impl.filesystem.filesystem", "FilesystemClient"),
}


def use_extensions() -> None:
    """Has DuckDB find the extensions that lakes and S3 need, from packages: nothing is downloaded."""
    from duckdb_extensions import import_extension

    for name in ("ducklake", "postgres_scanner", "sqlite_scanner", "httpfs"):
        import_extension(name)


def project_at(url: str) -> Project:
    for family in settings.LIMITS:
        settings.LIMITS[family] = ((100_000, 1.0),)
    return Project(Credentials("sandbox", "sandbox", "1", "us"), base_url=url, retries=0, max_rejected=1.0)


def load_into(
    destination: str | Target, url: str, first: date, last: date, *resources: str, lock_wait_s: float = 0.0
) -> LoadResult:
    """All days of the range, whether they are there or not."""
    asked = DateRange(first, last, refresh=True)
    target = target_of(destination) if isinstance(destination, str) else destination
    with locked(target.path, lock_wait_s, what=target):
        result = load(project_at(url), target, resources or ("events",), asked=asked, is_locked=True)
    if result.error is not None:
        raise result.error
    return result


def client_class(destination: str) -> Any:
    """What dlt sends SQL with, or asks for tables."""
    module, name = CLIENTS[destination]
    return getattr(import_module(module), name)


def _steps(destination: str) -> Iterator[tuple[type, str]]:
    for class_, names in ((FileStorage, _FILES), (client_class(destination), (*_SQL, *_TABLES))):
        yield from ((class_, name) for name in names if name in vars(class_))


def main(url: str, destination: str, kill_at: str, ranges: list[str]) -> None:
    destination, _, dataset = destination.partition("/")
    if destination == "ducklake":
        use_extensions()
    if not kill_at.isdecimal():
        setattr(typed, kill_at, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        kill_at = "0"
    steps = count_steps(int(kill_at), list(_steps(destination)))
    for days in ranges:
        first, last = map(date.fromisoformat, days.split(":"))
        load_into(target_of(destination, dataset or settings.DATASET), url, first, last)
    print(steps[0])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
