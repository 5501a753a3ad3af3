"""`mpload load`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixpanel_source.cli.completion import one_of
from mixpanel_source.cli.global_options import GlobalOptions, refuse_empty
from mixpanel_source.cli.load_options import (
    DESTINATIONS,
    Dataset,
    EventNames,
    FromDay,
    LegacyLocalTime,
    LookbackDays,
    MaxWindowDays,
    MaxWindowEvents,
    NoWait,
    ProjectTimezone,
    Refresh,
    RequestShare,
    StartDay,
    SweepDays,
    ToDay,
    Where,
    WindowDays,
    refuse_dataset_alone,
)
from mixpanel_source.cli.messages import redacted
from mixpanel_source.cli.output import write_records
from mixpanel_source.cli.words import metrics_in_words
from mixpanel_source.errors import ConfigError, MixpanelDataError
from mixpanel_source.settings import DATASET, REPORT_TABLES

if TYPE_CHECKING:
    from mixpanel_source.credentials import Account
    from mixpanel_source.load import LoadResult

# As load.RESOURCES, whose import takes longer than TAB or --help may.
_LISTS = (
    "cohorts",
    "funnels",
    "annotations",
    "event_definitions",
    "property_definitions",
    "lookup_tables",
    "experiments",
    "feature_flags",
)
_OTHER_RESOURCES = ("group_profiles", "cohort_members", *REPORT_TABLES, *_LISTS)


def load(
    options: GlobalOptions,
    resources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RESOURCE]...",
            help="events, profiles: both if none is named; group_profiles, cohort_members;"
            f" {', '.join(REPORT_TABLES)}, as the account's reports say; {', '.join(_LISTS)}.",
            autocompletion=one_of("events", "profiles", *_OTHER_RESOURCES),
        ),
    ] = None,
    from_date: FromDay = None,
    to_date: ToDay = None,
    event: EventNames = None,
    where: Where = None,
    refresh: Refresh = False,
    no_wait: NoWait = False,
    start_date: StartDay = None,
    lookback_days: LookbackDays = None,
    sweep_days: SweepDays = None,
    max_rejected: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Share of unreadable lines that fails.  [default: 0.01]")
    ] = None,
    window_days: WindowDays = None,
    max_window_days: MaxWindowDays = None,
    max_window_events: MaxWindowEvents = None,
    count_events: Annotated[
        bool | None,
        typer.Option(
            "--count-events/--no-count-events",
            help="Whether to ask Mixpanel for the events by day where nothing tells of them.  [default: count-events]",
        ),
    ] = None,
    request_share: RequestShare = None,
    min_free_mb: Annotated[
        int | None,
        typer.Option(metavar="MB", help="Room to leave on the disks it writes to; 0: do not look.  [default: 500]"),
    ] = None,
    project_timezone: ProjectTimezone = None,
    legacy_local_time: LegacyLocalTime = None,
    profiles_where: Annotated[
        str | None, typer.Option(metavar="EXPRESSION", help="With profiles: only those that match; the others stay.")
    ] = None,
    profiles_cohort: Annotated[
        int | None, typer.Option(metavar="ID", help="With profiles: only those in this cohort; the others stay.")
    ] = None,
    profiles_property: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="With profiles: only this property, into profiles_partial; may be repeated."),
    ] = None,
    profiles_since: Annotated[
        str | None,
        typer.Option(
            metavar="DAY|last",
            help="With profiles: only those whose $last_seen is not before; last goes on from the last load. It misses"
            " deleted profiles, and updates that leave $last_seen as it is.",
            autocompletion=one_of("last"),
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="With group_profiles: the data_group_id of a group type; may be repeated."),
    ] = None,
    cohort: Annotated[
        list[int] | None,
        typer.Option(metavar="ID", help="With cohort_members: only this cohort; may be repeated."),
    ] = None,
    typed_tables: Annotated[
        bool | None,
        typer.Option(
            "--typed-tables/--no-typed-tables",
            help="Whether each event's table with a column for each property is kept in step, in DuckDB files and"
            " DuckLake.  [default: yes]",
        ),
    ] = None,
    destination: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Load into postgres, ducklake or another destination that dlt's config and secrets tell of, instead of"
            " the DuckDB file.",
            autocompletion=DESTINATIONS,
        ),
    ] = None,
    dataset: Dataset = None,
    accounts: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,...",
            help="Load these accounts, of dlt's configuration where it has any, else of the config file, one after the"
            " other: each into a file of its own, or with --destination into a dataset of its own, with views over all"
            " of them in mixpanel_all.",
        ),
    ] = None,
    all_accounts: Annotated[bool, typer.Option("--all-accounts", help="The same of all accounts.")] = False,
    history: Annotated[
        bool,
        typer.Option("--history", help="With profiles or cohort_members: keep what was, in a table of its own."),
    ] = False,
) -> None:
    """Load events and profiles into the DuckDB file, or the tables that are named.

    Without dates it goes on from what is loaded: every day that is missing or not settled yet, up to yesterday.
    With --from it loads the days of the range that are not complete, so that a stopped load goes on where it stopped.
    The same holds for the days of each report of segmentation, event_counts, funnel_steps and retention_cohorts.

    \b
    mpload load --from 2024-01-01 --to 2024-01-31
    mpload load events --event 'Sign Up' --event 'Purchase' --from 2024-01-01
    mpload load profiles --profiles-where 'properties["plan"] == "pro"'
    mpload load cohort_members --cohort 501 --history
    mpload load segmentation funnel_steps --from 2024-01-01
    mpload load --destination postgres --from 2024-01-01
    mpload load --destination postgres --all-accounts
    """
    from mixpanel_source.cli.progress import LoadDisplay
    from mixpanel_source.destinations import Target, target_of
    from mixpanel_source.engage import MembersAsked, ProfilesAsked
    from mixpanel_source.exports import EventFilter
    from mixpanel_source.load import DEFAULT_RESOURCES, RESOURCES, WITH_DAYS, dates_of
    from mixpanel_source.load import load as load_tables
    from mixpanel_source.many_projects import dataset_of
    from mixpanel_source.project import parse_day, parse_since, project_of

    days = (
        ("--from", from_date),
        ("--to", to_date),
        ("--start-date", start_date),
        ("--profiles-since", profiles_since),
    )
    wheres = (("--where", where and where.strip()), ("--profiles-where", profiles_where and profiles_where.strip()))
    refuse_empty(*days, *wheres, *(("--event", name) for name in event or ()))
    refuse_empty(*(("--profiles-property", name) for name in profiles_property or ()))
    names = resources or DEFAULT_RESOURCES
    _refuse_without(names, ("--event", event), ("--where", where), resources=("events",))
    of_profiles = (
        ("--profiles-where", profiles_where),
        ("--profiles-cohort", profiles_cohort),
        ("--profiles-property", profiles_property),
        ("--profiles-since", profiles_since),
    )
    # A part of what would be loaded as a whole: that has to be meant.
    _refuse_without(resources or (), *of_profiles, resources=("profiles",))
    _refuse_without(resources or (), ("--group", group), resources=("group_profiles",))
    _refuse_without(resources or (), ("--cohort", cohort), resources=("cohort_members",))
    _refuse_without(resources or (), ("--history", history or None), resources=("profiles", "cohort_members"))
    refuse_dataset_alone(destination, dataset)
    several = options.find_accounts(accounts, all_accounts)
    if several and dataset is not None:
        raise ConfigError("each account has a dataset of its own", hint="leave out --dataset")

    def load_account(account: Account) -> LoadResult:
        display = LoadDisplay(options.quiet)
        project = project_of(
            account,
            start_date=parse_day("--start-date", start_date),
            lookback_days=lookback_days,
            sweep_days=sweep_days,
            max_rejected=max_rejected,
            window_days=window_days,
            max_window_days=max_window_days,
            max_window_events=max_window_events,
            count_events=count_events,
            request_share=request_share,
            min_free_mb=min_free_mb,
            project_timezone=project_timezone,
            legacy_local_time=legacy_local_time,
            wait=not no_wait,
            on_wait=display.waiting,
            data_group_ids=group or None,
            typed_tables=typed_tables,
        )
        asked = dates_of(project, from_date, to_date, refresh, names)
        profiles = ProfilesAsked(
            profiles_where,
            tuple(profiles_property or ()),
            profiles_cohort,
            parse_since("--profiles-since", profiles_since),
            history and "profiles" in names,
        )
        if destination:
            of_account = dataset_of(account.name) if several and account.name else dataset or DATASET
            into = target_of(destination, of_account)
            if typed_tables and not into.is_lake:
                raise ConfigError("typed tables are made in DuckDB and DuckLake alone", hint="leave out --typed-tables")
        else:
            into = Target(options.find_database(account))
        without_days = [name for name in resources or () if name in RESOURCES and name not in WITH_DAYS]
        if without_days and (from_date or to_date):
            options.say(f"the dates do not apply to {', '.join(without_days)}: loaded as they are now")
        if not no_wait:
            display.ledger = project.ledger()
        with display.shown():
            return load_tables(
                project,
                into,
                names,
                asked=asked,
                filter_=EventFilter(event or (), where),
                profiles=profiles,
                members=MembersAsked(tuple(cohort or ()), history),
                progress=display,
            )

    if not several:
        result = load_account(options.find_account())
        _tell(options, result)
        write_records(_rows(result), options.output)
        _tell_end(options, result)
        return
    errors: list[MixpanelDataError] = []
    rows: list[dict[str, Any]] = []
    for account in several:
        options.say(f"account {account.name}")
        try:
            result = load_account(account)
        except MixpanelDataError as error:  # the others may be loaded all the same
            rows.append({"account": account.name, **dict.fromkeys(_COLUMNS), "error": redacted(error.message)})
            errors.append(error)
            continue
        _tell(options, result)
        rows += [{"account": account.name, **row} for row in _rows(result)]
        try:
            _tell_end(options, result)
        except MixpanelDataError as error:
            errors.append(error)
    if destination:
        from mixpanel_source.many_projects import make_views

        views = make_views(destination)
        options.say(f"views over all accounts: {', '.join(views) or 'none in this destination'}")
    write_records(rows, options.output)
    if errors:
        raise errors[0]


_COLUMNS = ("table", "rows", "days", "seconds", "error")


def _tell(options: GlobalOptions, result: LoadResult) -> None:
    for warning in result.warnings:
        options.say(f"warning: {warning}")
    if result.late_days:
        options.say(f"late events in settled days, loaded again: {', '.join(map(str, result.late_days))}")


def _rows(result: LoadResult) -> list[dict[str, Any]]:
    from mixpanel_source.load import WITH_DAYS

    return [
        {
            "table": table.table,
            "rows": table.rows,
            "days": table.days if table.table in WITH_DAYS else None,
            "seconds": round(table.seconds, 1),
            "error": None if table.error is None else redacted(table.error.message),
        }
        for table in result.tables
    ]


def _tell_end(options: GlobalOptions, result: LoadResult) -> None:
    """Raises the load's error."""
    from mixpanel_source.load import WITH_DAYS

    _tell_metrics(options, result)
    if result.error is not None:
        raise result.error
    loaded = [
        table for table in result.tables if not table.is_left_out and (table.days or table.table not in WITH_DAYS)
    ]
    idle = [
        table.table for table in result.tables if table.table in WITH_DAYS and not (table.days or table.is_left_out)
    ]
    if idle:
        news = f"no new {', '.join(idle)}" if loaded else "nothing new"
        options.say(f"{news}: every day asked for is there and complete")
    if loaded:
        options.say(f"loaded into {result.target}")


def _tell_metrics(options: GlobalOptions, result: LoadResult) -> None:
    """A line, or where json was asked for by name an object, as it is for errors."""
    metrics = result.metrics
    if metrics.requests or metrics.load_ids:
        seconds = sum(table.seconds for table in result.tables)
        options.say_figures("run", asdict(metrics), metrics_in_words(metrics, seconds))


def _refuse_without(names: Sequence[str], *given: tuple[str, object], resources: Sequence[str]) -> None:
    """An option of `resources` that none of `names` takes would change nothing."""
    for flag, value in given:
        if value not in (None, []) and not set(resources) & set(names):
            raise ConfigError(
                f"{flag} goes with {' or '.join(resources)}, which this load does not name",
                hint=f"mpload load {resources[0]} {flag} ...",
            )
