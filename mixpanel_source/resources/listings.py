"""The tables of what Mixpanel lists: each as it is now, replaced as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dlt
from dlt.extract import DltResource

from mixpanel_source.listings import Listing
from mixpanel_source.project import Project
from mixpanel_source.resources.load_package import replace_in_one_transaction, replacing


def listing_resource(
    listing: Listing,
    open_project: Callable[[], Project],
    *,
    about_to_write: Callable[[], None] = lambda: None,
) -> DltResource:
    """`about_to_write` is called once the rows are there."""
    columns: Any = {
        name: {"data_type": data_type, "nullable": name not in listing.key}
        for name, data_type in listing.columns.items()
    }

    @dlt.resource(
        name=listing.table,
        columns=columns,
        max_table_nesting=0,
        write_disposition=replacing("1 = 1"),
    )
    def read() -> Iterator[Any]:
        replace_in_one_transaction()
        with open_project().client() as client:
            rows = listing.ask(client)
        about_to_write()
        yield dlt.mark.materialize_table_schema()  # else an empty list would leave the rows of before
        yield rows

    return read
