"""The load package a resource is being read into."""

from __future__ import annotations

import logging

import pyarrow as pa
from dlt.common.configuration.container import Container
from dlt.common.pipeline import PipelineContext
from dlt.common.storages.exceptions import CurrentLoadPackageStateNotAvailable
from dlt.common.storages.load_package import load_package_state


def with_load_id(table: pa.Table) -> pa.Table:
    """`table` with its `_dlt_load_id`, which dlt adds to Arrow tables only where its config says so."""
    try:
        load_id = load_package_state()["load_id"]
    except CurrentLoadPackageStateNotAvailable:  # read without a pipeline
        return table
    return table.append_column("_dlt_load_id", pa.repeat(pa.scalar(load_id, pa.string()), len(table)))


def replace_in_one_transaction() -> None:
    """Has dlt delete and write the rows of a table in one transaction, where the destination can do that.

    dlt's DuckDB destination says of its transactions only that they may hold DDL, and so gets none for the two
    statements of a merge (dlt 1.31): killed between them, a load would leave days empty that were there before.
    """
    context = Container()[PipelineContext]
    destination = getattr(context.pipeline(), "destination", None) if context.is_active() else None
    if destination is None:
        return
    capabilities = destination.capabilities()
    if capabilities.supports_ddl_transactions and not capabilities.supports_transactions:
        destination.caps_params["supports_transactions"] = True


def _is_news(record: logging.LogRecord) -> bool:
    """False for what dlt warns of in every run: that JSON columns are text in Arrow, which is what they have to be."""
    return "several column hints were different" not in str(record.msg)


logging.getLogger("dlt").addFilter(_is_news)
