"""Delta and Iceberg tables of dlt's `filesystem`, whose rows are replaced in one commit of the table's own.

dlt merges into them row by row, which keeps rows that are gone (dlt 1.31). Here its load jobs take the scope of
`replacing` instead: what it is true of goes with the commit that the new rows come with.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from typing import Any, Final

import dlt
import duckdb
import sqlglot
from dlt.common.destination import Destination
from dlt.common.destination.exceptions import DestinationUndefinedEntity
from sqlglot import exp

PACKAGES: Final = {"delta": "deltalake", "iceberg": "pyiceberg"}
"""What each of the formats needs."""

_FORMAT: Final = "preferred_table_format"
_STRATEGY: Final = "delete-insert"
"""dlt's name of what the resources ask for. It has it for no table of a filesystem: what has it, is ours."""
_PARTITIONED_BY: Final = "event_date"
"""Where a table has it: then days come and go as whole files."""
_SCOPE: Final = "x-merge-destination-scope"


def table_format_of(destination: Destination[Any, Any]) -> str | None:
    """Of PACKAGES: an argument of `dlt.destinations.filesystem`, or in dlt's config. None where it is plain files."""
    chosen = destination.caps_params.get(_FORMAT) or dlt.config.get(
        f"destination.{destination.destination_name}.{_FORMAT}"
    )
    return chosen if chosen in PACKAGES else None


def has_catalog() -> bool:
    """Whether dlt's config names a catalog of Iceberg tables. Without one dlt takes the newest file for the table.

    Raises whatever the catalog raises where it cannot be opened.
    """
    from dlt.common.libs.pyiceberg import get_catalog, is_ephemeral_catalog

    with closing(get_catalog()) as catalog:
        return not is_ephemeral_catalog(catalog)


def replace_by_commits(destination: Destination[Any, Any]) -> None:
    """Has dlt load into tables of its format, and replace rows in them as the scope of each table says."""
    strategies = destination.capabilities().supported_merge_strategies or []
    destination.caps_params |= {
        _FORMAT: table_format_of(destination),
        "preferred_loader_file_format": "parquet",
        "supported_merge_strategies": [*strategies, *({_STRATEGY} - set(strategies))],
    }
    _teach_dlt()


@functools.cache
def _teach_dlt() -> None:
    from dlt.destinations.impl.filesystem import sql_client

    filesystem: Any = import_module("dlt.destinations.impl.filesystem.filesystem")
    jobs = {
        filesystem.DeltaLoadFilesystemJob: _replace_in_delta,
        filesystem.IcebergLoadFilesystemJob: _replace_in_iceberg,
    }
    for class_, replace in jobs.items():
        class_.run = _run_of(class_.run, replace)
    verify = filesystem.verify_schema_merge_disposition
    select = sql_client.FilesystemSqlClient.create_view_select

    def verify_others(schema: Any, load_tables: Any, *args: Any, **kwargs: Any) -> Any:
        """dlt refuses scopes that ask the staged rows, as it has no place for them."""
        return verify(schema, [table for table in load_tables if not _is_ours(table)], *args, **kwargs)

    def create_view_select(self: Any, table_schema: Any, schema: Any = None) -> Any:
        """dlt's own has DuckDB download an extension."""
        client, name = self.remote_client, table_schema["name"]
        table_format = table_schema.get("table_format")
        ours = _STRATEGY in client.capabilities.supported_merge_strategies and table_format in PACKAGES
        if not ours or client.is_dlt_table(name):
            return select(self, table_schema, schema)
        self._conn.register(f"{name}__rows", _rows_there(client.load_open_table(table_format, name)))
        return client.get_open_table_location(table_format, name), f'SELECT * FROM "{name}__rows"'

    filesystem.verify_schema_merge_disposition = verify_others
    sql_client.FilesystemSqlClient.create_view_select = create_view_select  # type: ignore[method-assign]
    warnings.filterwarnings("ignore", "Delete operation did not match any records")


def _is_ours(table: Any) -> bool:
    return table["write_disposition"] == "merge" and table.get("x-merge-strategy") == _STRATEGY and _SCOPE in table


def _run_of(run: Any, replace: Any) -> Any:
    def run_or_replace(job: Any) -> None:
        if not _is_ours(job._load_table):
            run(job)
            return
        columns = job._load_table["columns"]
        if _PARTITIONED_BY in columns:
            columns[_PARTITIONED_BY]["partition"] = True
        replace(job, run)

    return run_or_replace


def _replace_in_delta(job: Any, _: Any) -> None:
    from deltalake import write_deltalake
    from dlt.common.libs.deltalake import deltalake_storage_options, ensure_delta_compatible_arrow_data
    from dlt.common.libs.pyarrow import get_local_dataset_reader

    client, config = job._job_client, job._job_client.config
    partitions = job._partition_columns
    try:
        table = client.load_open_table("delta", job.load_table_name)
    except DestinationUndefinedEntity:
        with get_local_dataset_reader(job.file_paths) as rows:
            write_deltalake(
                client.get_open_table_location("delta", job.load_table_name),
                ensure_delta_compatible_arrow_data(rows, partitions),
                mode="error",  # of two that make the table at once, one fails, and replaces then
                partition_by=partitions or None,
                storage_options=deltalake_storage_options(config.credentials, config.deltalake_storage_options),
                configuration=config.deltalake_configuration,
            )
        return
    scope = _scope_of(job)
    anew = _asks_staged_rows(scope)
    with _rows_after(job, scope, table) if anew else get_local_dataset_reader(job.file_paths) as rows:
        write_deltalake(
            table,
            ensure_delta_compatible_arrow_data(rows, partitions),
            mode="overwrite",
            # Without a predicate Delta would not see that another writer's rows have come meanwhile.
            predicate="true" if anew else _condition(scope).sql("duckdb"),
            schema_mode="merge",
        )


def _replace_in_iceberg(job: Any, make_table_and_run: Any) -> None:
    from dlt.common.libs.pyiceberg import ensure_iceberg_compatible_arrow_data

    rows = job.arrow_dataset
    try:
        table = job._job_client.load_open_table("iceberg", job.load_table_name, schema=rows.schema)
    except DestinationUndefinedEntity:
        make_table_and_run(job)
        return
    scope = _scope_of(job)
    if _asks_staged_rows(scope):
        with _rows_after(job, scope, table) as after:
            table.overwrite(ensure_iceberg_compatible_arrow_data(after.read_all()))
        return
    table.overwrite(ensure_iceberg_compatible_arrow_data(rows.to_table()), _expression(_condition(scope)))


def _scope_of(job: Any) -> str:
    """As `replacing` was given it, but for the names in it."""
    return str(job._load_table[_SCOPE]).format(table=_THERE, staging_table=_CAME)


_THERE: Final = "rows_that_are_there"
_CAME: Final = "rows_that_came"


def _asks_staged_rows(scope: str) -> bool:
    return _CAME in scope


def _rows_there(table: Any) -> Any:
    """What DuckDB can ask, of a Delta table without having all of it in memory."""
    return table.to_pyarrow_dataset() if hasattr(table, "to_pyarrow_dataset") else table.scan().to_arrow()


@contextmanager
def _rows_after(job: Any, scope: str, table: Any) -> Iterator[Any]:
    """All rows that the table is to have: no predicate of a commit can ask other rows."""
    with closing(duckdb.connect()) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register(_THERE, _rows_there(table))
        connection.register(_CAME, job.arrow_dataset)
        yield connection.execute(
            f"SELECT * FROM {_THERE} WHERE ({scope}) IS NOT TRUE UNION ALL BY NAME SELECT * FROM {_CAME}"
        ).to_arrow_reader()


def _condition(scope: str) -> Any:
    """`scope` as sqlglot has it, each of the literals that `literals` puts together in one piece."""
    return sqlglot.parse_one(scope, read="duckdb").transform(
        lambda node: exp.Literal.string(_text(node)) if isinstance(node, exp.DPipe) else node
    )


def _text(node: Any) -> str:
    if isinstance(node, exp.DPipe):
        return _text(node.left) + _text(node.right)
    return chr(int(node.expressions[0].this)) if isinstance(node, exp.Chr) else str(node.this)


def _expression(node: Any) -> Any:
    """A `_condition` as pyiceberg has it."""
    from pyiceberg import expressions as iceberg

    match node:
        case exp.Paren():
            return _expression(node.this)
        case exp.And():
            return iceberg.And(_expression(node.left), _expression(node.right))
        case exp.Or():
            return iceberg.Or(_expression(node.left), _expression(node.right))
        case exp.Not():
            return iceberg.Not(_expression(node.this))
        case exp.In():
            return iceberg.In(node.this.name, [literal.to_py() for literal in node.expressions])
        case exp.EQ(this=exp.Literal()):
            return iceberg.AlwaysTrue() if node.left == node.right else iceberg.AlwaysFalse()
        case exp.EQ():
            return iceberg.EqualTo(node.left.name, node.right.to_py())
        case exp.GTE():
            return iceberg.GreaterThanOrEqual(node.left.name, node.right.to_py())
        case exp.LTE():
            return iceberg.LessThanOrEqual(node.left.name, node.right.to_py())
    raise NotImplementedError(f"no scope of ours has {node.sql()}")
