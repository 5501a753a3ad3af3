"""The load package a resource is being read into."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Iterable
from typing import Any

import dlt
import pyarrow as pa
from dlt.common.configuration.container import Container
from dlt.common.pipeline import PipelineContext
from dlt.common.storages.exceptions import CurrentLoadPackageStateNotAvailable
from dlt.common.storages.load_package import load_package_state

from mixpanel_source.client import MixpanelClient
from mixpanel_source.destinations import fitted, keep_promises, support_of
from mixpanel_source.errors import ConfigError, MixpanelDataError
from mixpanel_source.rate_limit import SHORT_WAIT_S


def with_load_id(table: pa.Table) -> pa.Table:
    """`table` with its `_dlt_load_id`, which dlt adds to Arrow tables only where its config says so.

    And fit for the destination.
    """
    if (destination := _destination()) is not None:
        table = fitted(table, support_of(destination))
    try:
        load_id = load_package_state()["load_id"]
    except CurrentLoadPackageStateNotAvailable:  # read without a pipeline
        return table
    return table.append_column("_dlt_load_id", pa.repeat(pa.scalar(load_id, pa.string()), len(table)))


class InParts:
    """What is read part by part into load packages. An error of a single part leaves the others alone."""

    def __init__(self) -> None:
        self._failed: dict[Any, MixpanelDataError] = {}
        """By part."""
        self._stopped_by: MixpanelDataError | None = None
        """What ended it all."""

    def raise_failed(self) -> None:
        """Raises the error that ended it all, else the first one of a single part."""
        for error in (self._stopped_by, *self._failed.values()):
            if error is not None:
                raise error


def is_held_up(client: MixpanelClient, until: float, requests: int = 1) -> bool:
    """Whether it is time to write: `until` (as `time.monotonic`) is past, or so many requests of the Query API would
    not go out without a long wait."""
    used, allowed, next_free_s = client.ledger.spent("query")
    waits = next_free_s > SHORT_WAIT_S or (requests > 1 and used + requests > allowed)
    return time.monotonic() >= until or waits


def replacing(scope: str) -> Any:
    """The write disposition for new rows in the place of those that `scope` is true of, SQL in one line.

    With `replace_in_one_transaction` all of it or nothing happens, unlike with dlt's `replace`, which empties the table
    first.
    """
    return {"disposition": "merge", "strategy": "delete-insert", "destination_scope": scope}


def scoped(schema: pa.Schema, scope: str, name: str | None = None, columns: Any = None) -> Any:
    """An empty table: at the end of a resource it tells dlt which rows the new ones replace, even if there are none.

    `name` is that of another table than the resource's own. It starts from the hints that the resource has by then.
    """
    hints = dlt.mark.make_hints(table_name=name, columns=columns, write_disposition=replacing(scope))
    return dlt.mark.with_hints(with_load_id(schema.empty_table()), hints, create_table_variant=name is not None)


def keeping_history(schema: pa.Schema, name: str, scope: str, columns: Any = None) -> Any:
    """An empty table for `name`, which keeps what was: `valid_from` and `valid_to` of each version of a row.

    `schema` has a ROW_HASH. Of the rows that are valid now and that `scope` is true of, dlt ends those that do not come
    again, and begins those that are new.
    """
    disposition: Any = {
        "disposition": "merge",
        "strategy": "scd2",
        "validity_column_names": ["valid_from", "valid_to"],
        "row_version_column_name": ROW_HASH.name,
        "destination_scope": f"({scope})",  # dlt puts AND before it
    }
    hints = dlt.mark.make_hints(table_name=name, columns=columns, write_disposition=disposition)
    return dlt.mark.with_hints(with_load_id(schema.empty_table()), hints, create_table_variant=True)


ROW_HASH = pa.field("row_hash", pa.string(), nullable=False)
"""What a version of a row is known by: dlt works it out for itself in rows that are not Arrow's only."""


def hash_of(*parts: str) -> str:
    """The ROW_HASH of a row that consists of `parts`."""
    return hashlib.blake2b("".join(f"{len(part)}:{part}" for part in parts).encode(), digest_size=16).hexdigest()


def literals(texts: Iterable[str]) -> str:
    """`texts` as the literals of a scope, with commas between them."""
    return ", ".join(f"'{_DDL.sub(_APART, text.translate(_IN_LITERAL))}'" for text in texts)


# dlt formats the scope, so braces are doubled. It splits it at semicolons and line ends, and a scope that holds
# ALTER SCHEMA it runs without a transaction, and on some destinations one with ALTER, CREATE or DROP: inside literals
# too.
_IN_LITERAL: dict[int, str] = {
    **{code: f"' || chr({code}) || '" for code in (*range(33), ord(";"), 0x85, 0x2028, 0x2029)},
    **str.maketrans({"'": "''", "{": "{{", "}": "}}"}),
}


_DDL = re.compile(r"(?i)(?<=al)(?=ter)|(?<=cre)(?=ate)|(?<=dr)(?=op)")
_APART = "' || '"


def replace_in_one_transaction(with_history: bool = False) -> None:
    """As `keep_promises`, for the destination of the pipeline that a resource is read for. Raises ConfigError.

    Also where a table `keeping_history` is wanted, and the destination has none.
    """
    if (destination := _destination()) is not None:
        keep_promises(destination)
        if with_history and not support_of(destination).keeps_history:
            raise ConfigError("Delta and Iceberg tables keep no history", hint="load without history")


def _destination() -> Any:
    """None where a resource is read without a pipeline."""
    context = Container()[PipelineContext]
    return getattr(context.pipeline(), "destination", None) if context.is_active() else None


def _is_news(record: logging.LogRecord) -> bool:
    """False for what dlt warns of in every run: that JSON columns are text in Arrow, which is what they have to be."""
    return "several column hints were different" not in str(record.msg)


logging.getLogger("dlt").addFilter(_is_news)
