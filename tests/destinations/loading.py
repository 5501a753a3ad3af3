"""Loads of days into a destination that the environment describes, one load after the other.

    python loading.py URL DESTINATION KILL_AT FROM:TO...

A step is whatever dlt does to a file or to the database. The process kills itself before step `KILL_AT` of all of them;
with 0 it does not, and prints how many there were.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import date
from importlib import import_module
from typing import Any

from dlt.common.storages.file_storage import FileStorage

from mixpanel_source import settings
from mixpanel_source.credentials import Credentials
from mixpanel_source.destinations import target_of
from mixpanel_source.load import LoadResult, load
from mixpanel_source.project import Project
from mixpanel_source.windows import DateRange

_FILES = ("save", "save_atomic", "atomic_rename", "rename_tree", "delete", "delete_folder")
_SQL = ("execute_sql", "execute_query", "execute_many", "begin_transaction", "commit_transaction")
_CLIENTS = {
    "postgres": ("dlt.destinations.impl.postgres.sql_client", "Psycopg2SqlClient"),
    "ducklake": ("dlt.destinations.impl.duckdb.sql_client", "DuckDbSqlClient"),
    "sqlalchemy": ("dlt.destinations.impl.sqlalchemy.db_api_client", "SqlalchemyClient"),
}


def use_extensions() -> None:
    """Has DuckDB find the extensions that lakes need, from packages: nothing is downloaded."""
    from duckdb_extensions import import_extension

    for name in ("ducklake", "postgres_scanner", "sqlite_scanner"):
        import_extension(name)


def project_at(url: str) -> Project:
    for family in settings.LIMITS:
        settings.LIMITS[family] = ((100_000, 1.0),)
    return Project(Credentials("sandbox", "sandbox", "1", "us"), base_url=url, retries=0, max_rejected=1.0)


def load_into(
    destination: str, url: str, first: date, last: date, *resources: str, lock_wait_s: float = 0.0
) -> LoadResult:
    """All days of the range, whether they are there or not."""
    asked = DateRange(first, last, refresh=True)
    target = target_of(destination)
    result = load(project_at(url), target, resources or ("events",), asked=asked, lock_wait_s=lock_wait_s)
    if result.error is not None:
        raise result.error
    return result


def _count_steps(destination: str, kill_at: int) -> list[int]:
    counted = [0]

    def stepping(original: Any) -> Any:
        function = original.__func__ if isinstance(original, staticmethod) else original

        def step(*args: Any, **kwargs: Any) -> Any:
            counted[0] += 1
            if counted[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return staticmethod(step) if isinstance(original, staticmethod) else step

    module, name = _CLIENTS[destination]
    client = getattr(import_module(module), name)
    for class_, names in ((FileStorage, _FILES), (client, _SQL)):
        for method in names:
            if method in vars(class_):
                setattr(class_, method, stepping(vars(class_)[method]))
    return counted


def main(url: str, destination: str, kill_at: int, ranges: list[str]) -> None:
    if destination == "ducklake":
        use_extensions()
    steps = _count_steps(destination, kill_at)
    for days in ranges:
        first, last = map(date.fromisoformat, days.split(":"))
        load_into(destination, url, first, last)
    print(steps[0])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
