"""The `group_profiles` table: group type by group type, each replaced once a walk over it is proven complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dlt
import pyarrow as pa
from dlt.extract import DltResource

from mixpanel_source.engage import required_group_ids
from mixpanel_source.parsing import profiles as parsing
from mixpanel_source.project import Project
from mixpanel_source.resources.load_package import (
    literals,
    replace_in_one_transaction,
    replacing,
    scoped,
    with_load_id,
)
from mixpanel_source.resources.profiles import COLUMNS, tables_of

_SCHEMA = pa.schema([("data_group_id", pa.string()), *parsing.SCHEMA])


def group_profiles(
    open_project: Callable[[], Project],
    data_group_ids: Sequence[str] | None = None,
    *,
    on_page: Callable[[int, int | None], None] | None = None,
    about_to_write: Callable[[], None] = lambda: None,
) -> DltResource:
    """The profiles of these group types, else of the project's. `on_page` and `about_to_write` as in `profiles`."""

    @dlt.resource(name="group_profiles", columns=COLUMNS, write_disposition=replacing("1 = 0"))
    def read() -> Iterator[Any]:
        replace_in_one_transaction()
        project = open_project()
        ids = required_group_ids(project.data_group_ids if data_group_ids is None else data_group_ids)
        with project.client() as client:
            yield with_load_id(_SCHEMA.empty_table())
            for id_ in ids:
                with client.profiles(data_group_id=id_, on_page=on_page) as pages:
                    for table in tables_of(pages, project.kept_out):
                        group = pa.repeat(pa.scalar(id_, pa.string()), len(table))
                        yield with_load_id(table.add_column(0, _SCHEMA.field(0), group))
        about_to_write()
        yield scoped(_SCHEMA, f"data_group_id IN ({literals(ids)})")

    return read
