"""The `profiles` table: as Mixpanel has them now, replaced as a whole once a walk is proven complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dlt
import pyarrow as pa
from dlt.extract import DltResource

from mixpanel_source.parsing import profiles as parsing
from mixpanel_source.project import Project
from mixpanel_source.resources.load_package import replace_in_one_transaction, with_load_id


def profiles(
    open_project: Callable[[], Project],
    *,
    on_page: Callable[[int, int | None], None] | None = None,
    about_to_write: Callable[[], None] = lambda: None,
) -> DltResource:
    """Every user profile. `on_page` is told the profiles read so far, and how many there are where that is known.

    `about_to_write` is called once the walk is complete.
    """

    @dlt.resource(
        name="profiles",
        columns={"properties": {"data_type": "json"}, "last_seen": {"data_type": "timestamp", "timezone": False}},
        # One transaction deletes and writes, unlike dlt's `replace`, which empties the table first.
        write_disposition={"disposition": "merge", "strategy": "delete-insert", "destination_scope": "1 = 1"},
    )
    def read() -> Iterator[Any]:
        replace_in_one_transaction()
        with open_project().client() as client, client.profiles(on_page=on_page) as pages:
            about_to_write()
            yield with_load_id(parsing.SCHEMA.empty_table())
            # Where a walk gave some profile twice, the later one stays: it is looked for from the end.
            seen: set[str] | None = set() if pages.distinct < pages.profiles else None
            for page in pages if seen is None else reversed(pages):
                table = parsing.to_arrow(page)
                yield with_load_id(table if seen is None else _unseen(table, seen))

    return read


def _unseen(table: pa.Table, seen: set[str]) -> pa.Table:
    """The profiles of `table` whose id is not in `seen`, which then has them; of equal ones in it the last."""
    kept: list[int] = []
    for row, id_ in reversed(list(enumerate(table.column("distinct_id").to_pylist()))):
        if id_ is None or id_ not in seen:
            kept.append(row)
        if id_ is not None:
            seen.add(id_)
    return table.take(pa.array(sorted(kept), pa.int64()))
