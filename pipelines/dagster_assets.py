"""Mixpanel in Dagster, an asset for each table: copy this file, then `dagster dev -f dagster_assets.py`.

dagster-dlt names the assets after the resources of the dlt source. The library's `load` fills them, not
`DagsterDltResource.run`: that is one load package for a whole backfill, so that a stop loses all its requests. `load`
commits window by window, keeps the typed tables in step, and waits while another run writes to the same DuckDB file.

Credentials: `[sources.mixpanel.credentials]` of .dlt/secrets.toml, `MP_USERNAME` ... in the environment, or
~/.mp/config.toml; none are needed to load the definitions. `MP_DB` names the DuckDB file, `MIXPANEL_DESTINATION`
another destination of dlt's to load into.
"""
# No `from __future__ import annotations`: Dagster has to see the types of `context` and `config` as they are.

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
from dagster_dlt import DagsterDltTranslator
from dagster_dlt.translator import DltResourceTranslatorData

from mixpanel_source import Project, mixpanel_source
from mixpanel_source.source import configured_project

START_DATE = os.environ.get("MIXPANEL_START_DATE", "2024-01-01")
TIMEZONE = "UTC"
"""That of the project, if it was made before 2023-01-01: its export days are days there."""
POOL = "mixpanel_duckdb"
"""DuckDB has one writer, so this is a pool of one: see dagster.yaml. Steps that meet all the same wait in turn."""
LATE_DAYS = 5
"""Days before yesterday that the schedule loads again, for events that come late: `lookback_days` of the project."""
SCHEDULED_TABLES = ("profiles",)
"""Of the tables without days; the others are loaded when you say so."""
DESTINATION = os.environ.get("MIXPANEL_DESTINATION")
"""dlt's name of it, such as postgres, whose credentials are dlt's; None: DuckDB files."""
DATASET = os.environ.get("MIXPANEL_DATASET", "mixpanel")
"""In the destination; mixpanel/project has one for each account."""
PROJECTS_POOL = "mixpanel_projects"
"""Projects are loaded at once, each into a place of its own: as many as this pool has slots."""

ACCOUNTS = dg.DynamicPartitionsDefinition(name="mixpanel_accounts")
DAYS = dg.DailyPartitionsDefinition(start_date=START_DATE, timezone=TIMEZONE)
RETRY = dg.RetryPolicy(max_retries=3, delay=60, backoff=dg.Backoff.EXPONENTIAL)
RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


class MixpanelTranslator(DagsterDltTranslator):
    def get_asset_spec(self, data: DltResourceTranslatorData) -> dg.AssetSpec:
        return (
            super()
            .get_asset_spec(data)
            .replace_attributes(
                key=dg.AssetKey(["mixpanel", data.resource.name]),
                deps=[],
                group_name="mixpanel",
                kinds={"dlt", "duckdb"},
            )
        )


# The source is built to name the assets: that asks nobody anything.
SPECS = {
    name: MixpanelTranslator().get_asset_spec(DltResourceTranslatorData(resource=resource, pipeline=None))
    for name, resource in mixpanel_source().resources.items()
}
EVENTS = SPECS["events"].key


class EventsConfig(dg.Config):
    refresh: bool = False
    """Export settled days, too, once more."""


@dg.multi_asset(
    name="mixpanel_events",
    specs=[SPECS["events"]],
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    pool=POOL,
    retry_policy=RETRY,
)
def mixpanel_events(context: dg.AssetExecutionContext, config: EventsConfig) -> Iterator[dg.MaterializeResult]:
    """The partitions' days, and no others. Loaded again, a day that is not settled is exported once more."""
    from mixpanel_source.orchestration import days_of, load_days

    with errors_told():
        project = configured_project()
        days = days_of(project, *context.partition_time_window)
        loaded = load_days(project, target_of(project), days, since=began_at(context), refresh=config.refresh)
    for warning in loaded.warnings:
        context.log.warning(warning)
    for day in loaded.days:
        context.add_asset_metadata({"rows": day.rows, "bytes": day.bytes}, EVENTS, day.day.isoformat())
    # Of the run, which may have loaded many partitions together.
    yield dg.MaterializeResult(asset_key=EVENTS, metadata={"requests": loaded.requests, "days": len(days)})


def table_asset(table: str) -> dg.AssetsDefinition:
    """A table without partitions. The tables of reports go on from what is loaded; the others are replaced."""

    @dg.multi_asset(name=f"mixpanel_{table}", specs=[SPECS[table]], pool=POOL, retry_policy=RETRY)
    def load_table(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        from mixpanel_source.orchestration import load_table

        with errors_told():
            project = configured_project()
            loaded = load_table(project, target_of(project), table)
        for warning in loaded.warnings:
            context.log.warning(warning)
        metrics = loaded.metrics
        figures = {"rows": metrics.rows, "bytes": metrics.received_bytes, "requests": metrics.requests}
        yield dg.MaterializeResult(asset_key=SPECS[table].key, metadata={**figures, "days": metrics.days})

    return load_table


@dg.asset(
    key=["mixpanel", "project"],
    group_name="mixpanel",
    kinds={"dlt"},
    partitions_def=ACCOUNTS,
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=1),
    pool=PROJECTS_POOL,
    retry_policy=RETRY,
)
def mixpanel_project(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """One account: into a file of its own, or into a dataset of DESTINATION, with views over all of them.

    Accounts are `[sources.mixpanel.accounts.NAME]` of .dlt/secrets.toml; where there are none, those of mpload's
    config file.
    """
    from mixpanel_source.many_projects import load_account, make_views
    from mixpanel_source.orchestration import LOAD_WAIT_S

    with errors_told():
        loaded = load_account(context.partition_key, DESTINATION, lock_wait_s=LOAD_WAIT_S)
        if DESTINATION:
            make_views(DESTINATION)
    for warning in loaded.warnings:
        context.log.warning(warning)
    metrics = loaded.metrics
    return dg.MaterializeResult(metadata={"rows": metrics.rows, "requests": metrics.requests, "days": metrics.days})


def target_of(project: Project) -> Any:
    """Of DESTINATION, else the DuckDB file."""
    from mixpanel_source.orchestration import target_for

    return target_for(project, DESTINATION, DATASET)


def began_at(context: dg.AssetExecutionContext) -> datetime:
    """When the first attempt did: what was exported since is not asked for again."""
    run = context.run
    started = context.instance.get_run_stats(run.root_run_id or run.run_id).start_time
    return datetime.fromtimestamp(started, UTC) if started else datetime.now(UTC)


@contextmanager
def errors_told() -> Iterator[None]:
    """Has Dagster show what the library says to do, and not try again what can only fail again."""
    from mixpanel_source.errors import MixpanelDataError
    from mixpanel_source.orchestration import FAILS_AGAIN

    try:
        yield
    except MixpanelDataError as error:
        told = {"error": type(error).__name__, "hint": error.hint or ""}
        raise dg.Failure(str(error), metadata=told, allow_retries=not isinstance(error, FAILS_AGAIN)) from error


@dg.asset_check(asset=EVENTS, pool=POOL)
def complete() -> dg.AssetCheckResult:
    """Every day from the first loaded one to yesterday was exported whole, after its end."""
    from mixpanel_source.orchestration import status_of

    project = configured_project()
    loaded = status_of(project, target_of(project))
    missing, incomplete = loaded.missing_days, loaded.incomplete_days
    return dg.AssetCheckResult(
        passed=loaded.days > 0 and not missing and not incomplete,
        metadata={
            "days": loaded.days,
            "missing": ", ".join(map(str, missing)),
            "incomplete": ", ".join(map(str, incomplete)),
        },
    )


@dg.asset_check(asset=EVENTS, pool=POOL)
def fresh() -> dg.AssetCheckResult:
    """Yesterday, in the project's calendar, is loaded."""
    from mixpanel_source.orchestration import status_of

    project = configured_project()
    loaded = status_of(project, target_of(project))
    return dg.AssetCheckResult(
        passed=loaded.days_behind == 0,
        metadata={"last_day": str(loaded.last_day), "days_behind": loaded.days_behind, "rows": loaded.rows},
    )


@dg.asset_check(asset=EVENTS, pool=POOL)
def counts_agree() -> dg.AssetCheckResult:
    """As `mpload verify`, in DuckDB and DuckLake alone: one or two requests of the Query API's 60 an hour."""
    from mixpanel_source.orchestration import verify_of

    with errors_told():
        project = configured_project()
        found = verify_of(project, target_of(project))
    wrong = [f"{one.day} {one.event or '(the day)'}: {one.loaded}, {one.mixpanel}" for one in found.wrong]
    metadata: dict[str, Any] = {"wrong": "\n".join(wrong[:20])}
    return dg.AssetCheckResult(passed=not wrong, metadata=metadata | dict(found.verdicts))


events_job = dg.define_asset_job("mixpanel_events_daily", selection=dg.AssetSelection.assets(EVENTS))
tables_job = dg.define_asset_job(
    "mixpanel_tables_daily", selection=dg.AssetSelection.assets(*(SPECS[table].key for table in SCHEDULED_TABLES))
)


@dg.schedule(job=events_job, cron_schedule="0 6 * * *", execution_timezone=TIMEZONE)
def events_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Yesterday, and the days before it that events may still arrive for, in one run."""
    now = context.scheduled_execution_time.astimezone(ZoneInfo(TIMEZONE))
    last = now.date() - timedelta(days=1)
    first = max(last - timedelta(days=LATE_DAYS), date.fromisoformat(START_DATE))
    return dg.RunRequest(run_key=str(last), tags=dict(zip(RANGE, (str(first), str(last)), strict=True)))


projects_job = dg.define_asset_job(
    "mixpanel_projects_daily", selection=dg.AssetSelection.assets(mixpanel_project), partitions_def=ACCOUNTS
)


@dg.schedule(job=projects_job, cron_schedule="0 6 * * *", execution_timezone=TIMEZONE)
def projects_schedule(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
    """A run for each account, which is a partition from then on."""
    from mixpanel_source.many_projects import account_names

    names = account_names()
    context.instance.add_dynamic_partitions(str(ACCOUNTS.name), names)
    day = context.scheduled_execution_time.date()
    return [dg.RunRequest(run_key=f"{day} {name}", partition_key=name) for name in names]


tables_schedule = dg.ScheduleDefinition(job=tables_job, cron_schedule="30 6 * * *", execution_timezone=TIMEZONE)

defs = dg.Definitions(
    assets=[mixpanel_events, mixpanel_project, *(table_asset(table) for table in SPECS if table != "events")],
    asset_checks=[complete, fresh, *([counts_agree] if DESTINATION in (None, "ducklake") else [])],
    jobs=[events_job, tables_job, projects_job],
    schedules=[events_schedule, tables_schedule, projects_schedule],
    executor=dg.in_process_executor,
)
