"""SQL that a destination is asked, or a lake is told. Opening one makes nothing there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import dlt
import duckdb
from dlt.common.destination import Destination
from dlt.common.destination.exceptions import DestinationException
from dlt.destinations.exceptions import DatabaseUndefinedRelation

from mixpanel_source import settings
from mixpanel_source.destinations import (
    Target,
    catalog_of,
    client_of,
    file_of,
    postgres_cursor,
    postgres_url,
    safe_line,
    target_of,
    told,
    type_of,
)
from mixpanel_source.errors import ConfigError, WarehouseError

Ask = Callable[[str], Sequence[Sequence[Any]] | None]
"""Answers SQL; None where a table of it is not there."""


@contextmanager
def asked(target: Target) -> Iterator[Ask | None]:
    """Answers SQL about a destination's tables, found by their bare names; None where there is no dataset.

    Nothing is made there. Values are as the destination gives them: see `event_days.day_of`. Raises WarehouseError
    where it cannot be asked.
    """
    with told(target):
        client = _reader(target) if _is_made(target) else None
    if client is None:
        yield None
        return

    def ask(sql: str) -> Sequence[Sequence[Any]] | None:
        with told(target):
            return answer_of(client, sql)

    with told(target):
        client.open_connection()
    try:
        with told(target):
            is_there = client.has_dataset()
        yield ask if is_there else None
    finally:
        client.close_connection()


def answer_of(client: Any, sql: str) -> Sequence[Sequence[Any]] | None:
    """That of dlt's SQL client; None where a table is not there."""
    try:
        return client.execute_sql(sql) or ()
    except DatabaseUndefinedRelation:
        return None


@contextmanager
def lake_opened(target: Target, *, write: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB with the lake attached, the tables found without the dataset's name, and changed only with `write`.

    Raises ConfigError where the destination is none, WarehouseError where it cannot be opened.
    """
    if not target.is_lake:
        raise ConfigError("SQL is asked of DuckDB files and of ducklake alone", hint="use the destination's own client")
    nothing = WarehouseError(f"nothing is loaded into {target}", hint="load some data first: mpload load")
    if not write and not _is_made(target):
        raise nothing
    client = client_of(target).sql_client
    if not write:
        _have_read_only(client)
    try:
        connection = client.open_connection()
        connection.execute("SET TimeZone = 'UTC'")
        if not client.has_dataset():
            raise nothing
        with suppress(duckdb.Error):  # there are no typed tables
            datasets = (client.dataset_name, client.dataset_name + settings.TYPED_SUFFIX)
            connection.execute(f"SET search_path = '{','.join(map(client.escape_column_name, datasets))}'")
    except (duckdb.Error, DestinationException) as error:
        raise WarehouseError(f"cannot open {target}: {safe_line(error)}") from None
    try:
        yield connection
    finally:
        client.close_connection()


@contextmanager
def lake_asked(
    destination: str | Destination[Any, Any], dataset: str
) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
    """As `lake_opened`, to be asked alone, and the schema that has the name of `dataset` there. Raises as it."""
    target = target_of(destination, dataset, to_read=True)
    with lake_opened(target) as connection:
        yield connection, target.schema


def _reader(target: Target) -> Any:
    """dlt's SQL client, of tables in a filesystem by the schema that is stored with them; None without one."""
    assert target.destination is not None
    if type_of(target.destination) != "filesystem":
        client = client_of(target).sql_client
        if target.is_lake:
            _have_read_only(client)
        return client
    stored = client_of(target).get_stored_schema(settings.PIPELINE)
    if stored is None:
        return None
    return client_of(target, dlt.Schema.from_dict(json.loads(stored.schema), validate_schema=False)).sql_client


def _is_made(target: Target) -> bool:
    """Whether there is anything: to open a lake or a file that is not there makes it."""
    assert target.destination is not None
    if (file := file_of(target.destination, target.schema)) is not None:
        return file.exists()
    if target.is_lake and (url := postgres_url(target.destination)) is not None:
        with told(target), postgres_cursor(url) as cursor:
            cursor.execute(
                "SELECT 1 FROM information_schema.tables WHERE table_schema = %s AND table_name = 'ducklake_metadata'",
                (catalog_of(target.destination),),
            )
            return cursor.fetchone() is not None
    return True


def _have_read_only(client: Any) -> None:
    """Of a lake: nothing can be written, and none is made."""
    client._attach_statement = client.attach_statement.rstrip().removesuffix(";").removesuffix(")") + ", READ_ONLY)"
