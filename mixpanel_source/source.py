"""`mixpanel_source`: the dlt source. It only wires: no request and no credential until a resource is read."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Any

import dlt
from dlt.common.configuration import configspec, known_sections
from dlt.common.configuration.inject import get_fun_spec
from dlt.common.configuration.resolve import resolve_configuration
from dlt.common.configuration.specs import BaseConfiguration, CredentialsConfiguration
from dlt.common.exceptions import DltException
from dlt.common.typing import TSecretStrValue
from dlt.extract import DltResource

from mixpanel_source.credentials import Account, Credentials, resolve_credentials
from mixpanel_source.destination_sql import answer_of
from mixpanel_source.destinations import keep_promises
from mixpanel_source.engage import MembersAsked, ProfilesAsked
from mixpanel_source.errors import ConfigError, MixpanelDataError
from mixpanel_source.event_days import LOADED_DAYS_SQL, last_exports, loaded_days
from mixpanel_source.exports import EventFilter
from mixpanel_source.listings import LISTINGS
from mixpanel_source.project import Project, parse_day, parse_range, parse_since, project_of
from mixpanel_source.rate_limit import SHORT_WAIT_S
from mixpanel_source.report_days import REPORT_DAYS_SQL, ReportDay, report_days
from mixpanel_source.report_questions import questions_of
from mixpanel_source.resources.cohort_members import cohort_members as cohort_members_resource
from mixpanel_source.resources.events import events as events_resource
from mixpanel_source.resources.group_profiles import group_profiles as group_profiles_resource
from mixpanel_source.resources.listings import listing_resource
from mixpanel_source.resources.load_package import replace_in_one_transaction
from mixpanel_source.resources.profiles import profiles as profiles_resource
from mixpanel_source.resources.report_tables import report_table
from mixpanel_source.settings import REPORT_TABLES
from mixpanel_source.windows import LoadedDay

logger = logging.getLogger(__name__)


@configspec
class MixpanelCredentials(CredentialsConfiguration):
    """`[sources.mixpanel.credentials]` of dlt's secrets, or `SOURCES__MIXPANEL__CREDENTIALS__SECRET` and so on."""

    username: str | None = None
    secret: TSecretStrValue = None  # type: ignore[assignment]
    project_id: str = None  # type: ignore[assignment]
    region: str = None  # type: ignore[assignment]
    kind: str = "service_account"
    workspace_id: str | None = None

    def parse_native_representation(self, native_value: Any) -> None:
        if not isinstance(native_value, Credentials):
            raise ConfigError("credentials are a table of username, secret, project_id and region, or a Credentials")
        self.username = native_value.username
        self.secret = native_value.secret.reveal()
        self.project_id = native_value.project_id
        self.region = native_value.region
        self.kind = native_value.kind
        self.workspace_id = native_value.workspace_id

    def to_account(self) -> Account:
        return Account(
            Credentials(
                self.username or "", self.secret or "", self.project_id, self.region, self.kind, self.workspace_id
            )
        )


@configspec
class ReportQuestions(BaseConfiguration):
    """`[sources.mixpanel.segmentation]` and so on of dlt's config; as an argument, the list itself."""

    reports: list[Any] | None = None

    def parse_native_representation(self, native_value: Any) -> None:
        self.reports = native_value


@dlt.source(name="mixpanel", section="mixpanel")
def mixpanel_source(
    from_date: str | None = None,
    to_date: str | None = None,
    *,
    events: list[str] | None = None,
    where: str | None = None,
    refresh: bool = False,
    credentials: MixpanelCredentials | None = None,
    project_timezone: str | None = None,
    legacy_local_time: bool | None = None,
    start_date: str | None = None,
    lookback_days: int | None = None,
    max_rejected: float | None = None,
    window_days: int | None = None,
    max_window_days: int | None = None,
    max_window_events: int | None = None,
    count_events: bool | None = None,
    concurrent_exports: int | None = None,
    max_spool_bytes: int | None = None,
    retries: int | None = None,
    timeout_s: float | None = None,
    export_timeout_s: float | None = None,
    request_share: float | None = None,
    ledger_url: TSecretStrValue | None = None,
    max_body_bytes: int | None = None,
    wait: bool = True,
    base_url: str | None = None,
    profiles_where: str | None = None,
    profiles_properties: list[str] | None = None,
    profiles_cohort: int | None = None,
    profiles_since: str | None = None,
    profiles_history: bool = False,
    data_group_ids: list[str] | None = None,
    cohort_ids: list[int] | None = None,
    cohort_history: bool = False,
    segmentation: ReportQuestions | None = None,
    event_counts: ReportQuestions | None = None,
    funnel_steps: ReportQuestions | None = None,
    retention_cohorts: ReportQuestions | None = None,
    insights: ReportQuestions | None = None,
) -> Iterable[DltResource]:
    """Events, profiles, groups, cohorts, reports and the tables of LISTINGS. Build a fresh source for every run.

    Only events and profiles are loaded unless `with_resources` names others.

    Without dates `events` goes on from what the destination holds: every unsettled day again and the missing ones,
    up to yesterday. With `from_date` (and `to_date`; `YYYY-MM-DD`, both included) it loads the days of the range that
    are not complete; `refresh` loads them all. `events` (names) and `where` (an expression) narrow it down and leave
    other rows alone. `wait` allows waiting for the hourly limit; without it that is a RateLimitError.

    `profiles_where`, `profiles_cohort` and `profiles_since` (a day, or `last`) load a part of the profiles, and leave
    the others alone; `profiles_properties` loads these properties only, into `profiles_partial`. `profiles_history`
    and `cohort_history` keep in a table of its own what was. `group_profiles` needs `data_group_ids`;
    `cohort_members` takes all cohorts unless `cohort_ids` name some.

    `segmentation`, `event_counts`, `funnel_steps`, `retention_cohorts` and `insights` are the questions of the tables
    of these names: lists of objects, each of a `report` (its name) and parameters of that report (see `Reports`).
    Dates are asked for as those of `events` are, by the project's own calendar.

    Every argument can stand in `[sources.mixpanel]` of dlt's config; credentials come from
    `[sources.mixpanel.credentials]`, else from `MP_USERNAME` ..., else from `~/.mp/config.toml`, and are looked for
    when a resource is read. What is not given is as the account has it, or as `Project` does.

    A run is one load package, whole or not at all: load a long history in several runs, a month each, say, so that a
    stop loses less. Raises ConfigError here for a date that is none, and for a wrong question.
    """
    # A run finishes what a stopped one has left before it reads a resource. Where that cannot be, reading one tells.
    with contextlib.suppress(MixpanelDataError, DltException):
        replace_in_one_transaction()
    asked = parse_range(from_date, to_date, refresh)
    first_day = parse_day("start_date", start_date)
    filter_ = EventFilter(events or (), where)
    profiles = ProfilesAsked(
        profiles_where,
        tuple(profiles_properties or ()),
        profiles_cohort,
        parse_since("profiles_since", profiles_since),
        profiles_history,
    )
    members = MembersAsked(tuple(map(int, cohort_ids or ())), cohort_history)
    given = dict(
        zip(REPORT_TABLES, (segmentation, event_counts, funnel_steps, retention_cohorts, insights), strict=True)
    )
    questions = {
        table: None if one is None or one.reports is None else questions_of(table, one.reports)
        for table, one in given.items()
    }

    @functools.cache
    def open_project() -> Project:
        return project_of(
            credentials.to_account() if credentials else resolve_credentials(),
            project_timezone=project_timezone,
            legacy_local_time=legacy_local_time,
            start_date=first_day,
            lookback_days=lookback_days,
            max_rejected=max_rejected,
            window_days=window_days,
            max_window_days=max_window_days,
            max_window_events=max_window_events,
            count_events=count_events,
            concurrent_exports=concurrent_exports,
            max_spool_bytes=max_spool_bytes,
            retries=retries,
            timeout_s=timeout_s,
            export_timeout_s=export_timeout_s,
            request_share=request_share,
            ledger_url=ledger_url,
            max_body_bytes=max_body_bytes,
            wait=wait,
            on_wait=_tell_of_wait,
            base_url=base_url,
            data_group_ids=data_group_ids,
            **questions,
        )

    others = [
        group_profiles_resource(open_project),
        cohort_members_resource(open_project, members),
        *(
            report_table(open_project, table, asked, known=lambda table: report_days_of(dlt.current.pipeline(), table))
            for table in REPORT_TABLES
        ),
        *(listing_resource(listing, open_project) for listing in LISTINGS.values()),
    ]
    for resource in others:
        resource.selected = False
    return [
        events_resource(
            open_project, asked, filter_, loaded_days=lambda: loaded_days_of(dlt.current.pipeline(), filter_)
        ),
        profiles_resource(open_project, profiles),
        *others,
    ]


def configured_project() -> Project:
    """The project that `[sources.mixpanel]` of dlt's config and secrets describe, for `load` in place of the source.

    With the same settings and fallbacks as `mixpanel_source`. Raises as `resolve_credentials`, and ConfigError.
    """
    arguments = get_fun_spec(mixpanel_source.__wrapped__)()  # type: ignore[attr-defined]
    given = dict(resolve_configuration(arguments, sections=(known_sections.SOURCES, "mixpanel")))
    options = {name: given[name] for name in Project.__dataclass_fields__ if given.get(name) is not None}
    options |= {name: given[name].reports for name in REPORT_TABLES if given.get(name) is not None}
    options["start_date"] = parse_day("start_date", given.get("start_date"))
    credentials = options.pop("credentials", None)
    account = credentials.to_account() if credentials else resolve_credentials()
    return project_of(account, on_wait=_tell_of_wait, **options)


def _tell_of_wait(seconds: float, why: str) -> None:
    if seconds > SHORT_WAIT_S:
        logger.warning("waiting %.0f s: %s", seconds, why)


@dlt.source(name="mixpanel", section="mixpanel")
def source_of(*resources: DltResource) -> Iterable[DltResource]:
    """A source of just these resources, under the same name and schema as `mixpanel_source`."""
    return resources


def loaded_days_of(pipeline: dlt.Pipeline, filter_: EventFilter) -> list[LoadedDay]:
    """What `event_days` at the destination of `pipeline` says of `filter_`; nothing before the first load."""
    if filter_.where is not None:
        return []
    return loaded_days(_rows_of(pipeline, LOADED_DAYS_SQL), filter_.labels)


def last_exports_of(pipeline: dlt.Pipeline) -> dict[date, datetime]:
    """When each day, or a part of it, was exported last, of what the destination of `pipeline` holds."""
    return last_exports(_rows_of(pipeline, LOADED_DAYS_SQL))


def report_days_of(pipeline: dlt.Pipeline, table: str) -> list[ReportDay]:
    """What `report_days` at the destination of `pipeline` says of a table of reports."""
    return report_days(_rows_of(pipeline, REPORT_DAYS_SQL), table)


def _rows_of(pipeline: dlt.Pipeline, sql: str) -> Sequence[Sequence[Any]]:
    """The answer; nothing before a load has made the tables."""
    if not pipeline.schema_names:
        return []
    if pipeline.destination is not None:
        keep_promises(pipeline.destination)  # how tables are read is part of it
    with pipeline.sql_client() as client:
        return answer_of(client, sql) or ()
