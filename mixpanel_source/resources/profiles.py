"""The tables of user profiles: replaced only once a walk is proven complete."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dlt
import pyarrow as pa
from dlt.extract import DltResource

from mixpanel_source.bodies import ProfilePages
from mixpanel_source.client import compact
from mixpanel_source.destinations import EXACT_JSON
from mixpanel_source.engage import LAST, PROFILES_HISTORY, ProfilesAsked
from mixpanel_source.kept_out import KeptOut
from mixpanel_source.parsing import profiles as parsing
from mixpanel_source.project import Project
from mixpanel_source.resources.load_package import (
    ROW_HASH,
    hash_of,
    keeping_history,
    literals,
    replace_in_one_transaction,
    replacing,
    scoped,
    with_load_id,
)

logger = logging.getLogger(__name__)

COLUMNS: Any = {"properties": {**EXACT_JSON}, "last_seen": {"data_type": "timestamp", "timezone": False}}
"""Hints for what Arrow cannot say of parsing.SCHEMA."""

_CAME = "distinct_id IN (SELECT distinct_id FROM {staging_table})"
"""SQL that is true of the profiles that come again."""

_MARGIN = timedelta(days=2)
"""Mixpanel does not say in which zone `$last_seen` is, nor how soon an update shows."""

_WALK_BEGAN = "walk_began"


def profiles(
    open_project: Callable[[], Project],
    asked: ProfilesAsked = ProfilesAsked(),
    *,
    on_page: Callable[[int, int | None], None] | None = None,
    about_to_write: Callable[[], None] = lambda: None,
    warn: Callable[[str], None] = logger.warning,
) -> DltResource:
    """The user profiles asked for. All of them take the place of the table; a part, of its own rows in it.

    `on_page` is told the profiles read so far, and how many there are where that is known. `about_to_write` is called
    once the walk is complete, and `warn` with what is left out of it.
    """
    part = {"output_properties": compact(sorted(set(asked.output_properties)))} if asked.output_properties else {}
    schema = pa.schema([*parsing.SCHEMA, *(pa.field(name, pa.string()) for name in part)])

    @dlt.resource(name="profiles", table_name=asked.table, columns=COLUMNS, write_disposition=replacing("1 = 0"))
    def read() -> Iterator[Any]:
        replace_in_one_transaction(with_history=asked.history)
        # What dlt keeps is written with the rows: a load that fails has not walked.
        state: dict[str, Any] = dlt.current.resource_state("profiles")
        since = _since(asked, state.get(_WALK_BEGAN))
        whole = since is None and asked.where is None and asked.filter_by_cohort is None
        began = datetime.now(UTC)
        nameless = 0
        project = open_project()
        with (
            project.client() as client,
            client.profiles(
                where=_expression(asked.where, since),
                output_properties=asked.output_properties or None,
                filter_by_cohort=asked.filter_by_cohort,
                # A member without a profile is none: cohort_members has it.
                include_all_users=None if asked.filter_by_cohort is None else False,
                on_page=on_page,
            ) as pages,
        ):
            about_to_write()
            if asked.history:
                yield keeping_history(_HISTORY_SCHEMA, PROFILES_HISTORY, "1 = 0", COLUMNS)
            yield with_load_id(schema.empty_table())
            for table in tables_of(pages, project.kept_out):
                if not whole:
                    # Nothing would tell which row of the table they take the place of.
                    nameless += table.column("distinct_id").null_count
                    table = table.filter(table.column("distinct_id").is_valid())
                for name, value in part.items():
                    table = table.append_column(name, pa.repeat(pa.scalar(value, pa.string()), len(table)))
                yield with_load_id(table)
                if asked.history:
                    yield dlt.mark.with_table_name(with_load_id(_versions(table)), PROFILES_HISTORY)
        if nameless:
            what = "1 result" if nameless == 1 else f"{nameless} results"
            warn(f"left out of a part of the profiles: {what} without a distinct_id")
        scope = "1 = 1" if whole else _CAME
        if asked.history:
            yield keeping_history(_HISTORY_SCHEMA, PROFILES_HISTORY, scope, COLUMNS)
        yield scoped(schema, f"output_properties = {literals(part.values())} AND {scope}" if part else scope)
        if not part and (whole or asked.since == LAST):
            state[_WALK_BEGAN] = began.isoformat()

    return read


def tables_of(pages: ProfilePages, kept_out: KeptOut | None) -> Iterator[pa.Table]:
    """The profiles of a walk as tables of parsing.SCHEMA, each profile once, those of `kept_out` left out."""
    # Where a walk gave some profile twice, the later one stays: it is looked for from the end.
    seen: set[str] | None = set() if pages.distinct < pages.profiles else None
    for page in pages if seen is None else reversed(pages):
        table = parsing.to_arrow(page)
        if kept_out is not None:
            table = kept_out.rows(table)
        yield table if seen is None else _unseen(table, seen)


def _unseen(table: pa.Table, seen: set[str]) -> pa.Table:
    """The profiles of `table` whose id is not in `seen`, which then has them; of equal ones in it the last."""
    kept: list[int] = []
    for row, id_ in reversed(list(enumerate(table.column("distinct_id").to_pylist()))):
        if id_ is None or id_ not in seen:
            kept.append(row)
        if id_ is not None:
            seen.add(id_)
    return table.take(pa.array(sorted(kept), pa.int64()))


_HISTORY_SCHEMA = parsing.SCHEMA.append(ROW_HASH)


def _versions(table: pa.Table) -> pa.Table:
    """The rows of `table` that have an id, for the history. In another order, properties are the same ones."""
    named = table.filter(table.column("distinct_id").is_valid())
    hashes = [
        hash_of(id_, *parsing.sorted_parts(properties))
        for id_, properties in zip(
            named.column("distinct_id").to_pylist(), named.column("properties").to_pylist(), strict=True
        )
    ]
    return named.append_column(ROW_HASH, pa.array(hashes, pa.string()))


def _since(asked: ProfilesAsked, walk_began: str | None) -> date | None:
    if asked.since is None or isinstance(asked.since, date):
        return asked.since
    return (datetime.fromisoformat(walk_began) - _MARGIN).date() if walk_began else None


def _expression(where: str | None, since: date | None) -> str | None:
    """`where`, and last seen `since`. As text such times are in order, whatever their zone."""
    if since is None:
        return where
    seen = f'properties["$last_seen"] >= "{since.isoformat()}T00:00:00"'
    return seen if where is None else f"({where}) and {seen}"
