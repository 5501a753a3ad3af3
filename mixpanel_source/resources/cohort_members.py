"""The `cohort_members` table: cohort by cohort, each replaced once a walk over its members is proven complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dlt
import pyarrow as pa
from dlt.extract import DltResource

from mixpanel_source.client import MixpanelClient
from mixpanel_source.engage import FAILS_ALONE, MEMBERS_HISTORY, MembersAsked
from mixpanel_source.errors import (
    EntityNotFoundError,
    MixpanelDataError,
    ServerError,
)
from mixpanel_source.kept_out import KeptOut
from mixpanel_source.listings import LISTINGS
from mixpanel_source.project import Project
from mixpanel_source.resources.load_package import (
    ROW_HASH,
    InParts,
    hash_of,
    is_held_up,
    keeping_history,
    replace_in_one_transaction,
    replacing,
    scoped,
    with_load_id,
)
from mixpanel_source.resources.profiles import tables_of
from mixpanel_source.settings import PACKAGE_S

_SCHEMA = pa.schema([("cohort_id", pa.int64()), ("distinct_id", pa.string())])
_HISTORY_SCHEMA = _SCHEMA.append(ROW_HASH)


class CohortWalks(InParts):
    """The walks over the members of each cohort asked for, package by package."""

    def __init__(
        self,
        client: MixpanelClient,
        asked: MembersAsked,
        on_page: Callable[[int, int | None], None] | None = None,
        kept_out: KeptOut | None = None,
    ) -> None:
        super().__init__()
        self.history = asked.history
        self._client = client
        self._asked = asked
        self._on_page = on_page
        self._kept_out = kept_out
        self._left: list[int] | None = None
        self._without_members = "1 = 0"

    @property
    def is_done(self) -> bool:
        return self._stopped_by is not None or self._left == []

    def warnings(self) -> list[str]:
        return [f"the members of cohort {id_} are as before: {error.message}" for id_, error in self._failed.items()]

    def walk(self, limit_s: float | None) -> Iterator[pa.Table | str]:
        """The members of the next cohorts, and last the SQL that is true of all their rows.

        With `limit_s` it ends after so long, before a long wait for the request limit, and where something fails; an
        error is kept for `raise_failed` then, unless it comes before any cohort is known.
        """
        scopes = []
        if self._left is None:
            self._left = self._plan()
            scopes.append(self._without_members)
        started = time.monotonic()
        walked: list[int] = []
        while self._left:
            if limit_s is not None and walked and is_held_up(self._client, started + limit_s):
                break
            id_ = self._left.pop(0)
            try:
                pages = self._client.profiles(
                    filter_by_cohort=id_,
                    include_all_users=True,
                    # As little as can be asked for: what an empty list means is not published.
                    output_properties=["$distinct_id"],
                    on_page=self._on_page,
                )
            except MixpanelDataError as error:
                if limit_s is None:
                    raise
                if isinstance(error, FAILS_ALONE):
                    self._failed[id_] = error
                    continue
                self._stopped_by = error
                break
            with pages:
                for table in tables_of(pages, self._kept_out):
                    yield pa.table([pa.repeat(pa.scalar(id_, pa.int64()), len(table)), table[0]], schema=_SCHEMA)
            walked.append(id_)
        if walked:
            scopes.append(f"cohort_id IN ({_listed(walked)})")
        yield " OR ".join(scopes) or "1 = 0"

    def _plan(self) -> list[int]:
        """The cohorts to be walked. An empty one is not asked for: each costs a request of the hour."""
        try:
            cohorts = {int(row["id"]): row.get("count") != 0 for row in LISTINGS["cohorts"].ask(self._client)}
        except (KeyError, TypeError, ValueError):
            raise ServerError("cohorts/list answered with a cohort that has no id", hint="try again later") from None
        wanted = list(dict.fromkeys(self._asked.cohort_ids)) or list(cohorts)
        # What Mixpanel answers for the members of a cohort that is gone is not known: it could be all profiles.
        for id_ in wanted:
            if id_ not in cohorts:
                raise EntityNotFoundError(
                    f"the project has no cohort {id_}",
                    hint="mpload load cohorts tells which there are; members of one that is gone go with a load of all",
                )
        filled = [id_ for id_ in wanted if cohorts[id_]]
        if self._asked.cohort_ids:
            if empty := [id_ for id_ in wanted if not cohorts[id_]]:
                self._without_members = f"cohort_id IN ({_listed(empty)})"
        else:
            self._without_members = f"cohort_id NOT IN ({_listed(filled)})" if filled else "1 = 1"
        return filled


def cohort_members(
    open_project: Callable[[], Project],
    asked: MembersAsked = MembersAsked(),
    *,
    on_page: Callable[[int, int | None], None] | None = None,
) -> DltResource:
    """The members of the cohorts asked for, in one load package. `on_page` as in `profiles`."""

    @dlt.resource(name="cohort_members", write_disposition=replacing("1 = 0"))
    def read() -> Iterator[Any]:
        project = open_project()
        with project.client() as client:
            yield from _items(CohortWalks(client, asked, on_page, project.kept_out), None)

    return read


def members_package(walks: CohortWalks, about_to_write: Callable[[], None]) -> DltResource:
    """The next cohorts of `walks`, as one load package. `about_to_write` is called once it is complete."""

    @dlt.resource(name="cohort_members", write_disposition=replacing("1 = 0"))
    def read() -> Iterator[Any]:
        yield from _items(walks, PACKAGE_S, about_to_write)

    return read


def _items(
    walks: CohortWalks, limit_s: float | None, about_to_write: Callable[[], None] = lambda: None
) -> Iterator[Any]:
    replace_in_one_transaction(with_history=walks.history)
    if walks.history:
        yield keeping_history(_HISTORY_SCHEMA, MEMBERS_HISTORY, "1 = 0")
    yield with_load_id(_SCHEMA.empty_table())
    scope = ""
    for item in walks.walk(limit_s):
        if isinstance(item, str):
            scope = item
            continue
        yield with_load_id(item)
        if walks.history:
            yield dlt.mark.with_table_name(with_load_id(_versions(item)), MEMBERS_HISTORY)
    about_to_write()
    if walks.history:
        yield keeping_history(_HISTORY_SCHEMA, MEMBERS_HISTORY, scope)
    yield scoped(_SCHEMA, scope)


def _versions(members: pa.Table) -> pa.Table:
    """`members` that have an id, for the history."""
    named = members.filter(members["distinct_id"].is_valid())
    hashes = [hash_of(str(cohort), id_) for cohort, id_ in zip(*(c.to_pylist() for c in named.columns), strict=True)]
    return named.append_column(ROW_HASH, pa.array(hashes, pa.string()))


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))
