"""The `profiles` table: as Mixpanel has them now, replaced as a whole once a walk is proven complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dlt
from dlt.extract import DltResource

from mixpanel_source.parsing import profiles as parsing
from mixpanel_source.project import Project
from mixpanel_source.resources.load_package import with_load_id


def profiles(
    open_project: Callable[[], Project],
    *,
    on_page: Callable[[int, int | None], None] | None = None,
) -> DltResource:
    """Every user profile. `on_page` is told the profiles read so far, and how many there are where that is known."""

    @dlt.resource(
        name="profiles",
        columns={"properties": {"data_type": "json"}, "last_seen": {"data_type": "timestamp", "timezone": False}},
        # One transaction deletes and writes, unlike dlt's `replace`, which empties the table first.
        write_disposition={"disposition": "merge", "strategy": "delete-insert", "destination_scope": "1 = 1"},
    )
    def read() -> Iterator[Any]:
        with open_project().client() as client, client.profiles(on_page=on_page) as pages:
            yield with_load_id(parsing.SCHEMA.empty_table())
            for page in pages:
                yield with_load_id(parsing.to_arrow(page))

    return read
