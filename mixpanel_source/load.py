"""Runs the source into a DuckDB file or another destination, a few windows at a time, and sums up what it loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from functools import partial
from pathlib import Path

import dlt
import duckdb

from mixpanel_source.day_counts import tell_counts
from mixpanel_source.destination_sql import answer_of, lake_opened
from mixpanel_source.destinations import Target, drop_staging, type_of
from mixpanel_source.disk_room import room_for
from mixpanel_source.engage import FAILS_ALONE, MembersAsked, ProfilesAsked, required_group_ids
from mixpanel_source.errors import ConfigError, MixpanelDataError, PlanError, WarehouseError
from mixpanel_source.event_days import days_scope
from mixpanel_source.exports import EventFilter, Exports
from mixpanel_source.kept_exports import KeptExports
from mixpanel_source.kept_out import kept_out_of
from mixpanel_source.listings import LISTINGS, Listing
from mixpanel_source.load_metrics import LoadMetrics, RunMetrics
from mixpanel_source.load_record import recorded
from mixpanel_source.pipeline import (
    DUCKDB_CONFIG,
    READERS_WAIT_S,
    locked,
    open_pipeline,
    own_errors,
    run_package,
)
from mixpanel_source.progress import LoadProgress, NoProgress
from mixpanel_source.project import Project, day_in_words, spool_folder
from mixpanel_source.report_questions import INSIGHTS, required_questions
from mixpanel_source.resources.cohort_members import CohortWalks, members_package
from mixpanel_source.resources.events import PackageLimits, events_package
from mixpanel_source.resources.group_profiles import group_profiles as group_profiles_resource
from mixpanel_source.resources.listings import listing_resource
from mixpanel_source.resources.profiles import profiles as profiles_resource
from mixpanel_source.resources.report_tables import ReportLoads, reports_package
from mixpanel_source.settings import DATASET, REPORT_TABLES
from mixpanel_source.source import last_exports_of, loaded_days_of, report_days_of
from mixpanel_source.sweep import SweepResult, note_sweep, sweep
from mixpanel_source.typed import BATCH_BYTES, TypedUpdate, bring_in_step, is_in_step
from mixpanel_source.warehouse import (
    check_database,
    connected,
    first_line,
    hint_of,
    opened,
    prepare_database,
    refuse_snapshots,
)
from mixpanel_source.windows import DateRange, Window

DEFAULT_RESOURCES = ("events", "profiles")
"""What is loaded where no resource is named."""
RESOURCES = (*DEFAULT_RESOURCES, "group_profiles", "cohort_members", *REPORT_TABLES, *LISTINGS)
WITH_DAYS = ("events", *(table for table in REPORT_TABLES if table != INSIGHTS))
"""The resources that dates apply to; the others are loaded as they are now."""


@dataclass
class TableLoad:
    """What a load did to one table. `days` counts the export days replaced, where the table has days."""

    table: str
    rows: int = 0
    days: int = 0
    seconds: float = 0.0
    error: MixpanelDataError | None = None
    is_left_out: bool = False
    """The project's plan does not include it."""


@dataclass
class LoadResult:
    """What a load did; `error` is the first that a table met, after the others were finished."""

    target: Target
    tables: list[TableLoad] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    late_days: list[date] = field(default_factory=list)
    """Settled days that a sweep found late events in, exported again."""
    metrics: LoadMetrics = field(default_factory=LoadMetrics)

    @property
    def database(self) -> Path:
        return self.target.path

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)

    @property
    def days(self) -> int:
        return sum(table.days for table in self.tables)

    @property
    def error(self) -> MixpanelDataError | None:
        return next((table.error for table in self.tables if table.error is not None), None)


def load(
    project: Project,
    into: Path | Target,
    resources: Sequence[str] = DEFAULT_RESOURCES,
    *,
    asked: DateRange = DateRange(),
    filter_: EventFilter = EventFilter(),
    profiles: ProfilesAsked = ProfilesAsked(),
    members: MembersAsked = MembersAsked(),
    progress: LoadProgress | None = None,
    since: datetime | None = None,
    is_locked: bool = False,
) -> LoadResult:
    """Load `resources` of a project into a DuckDB file, or another Target of `target_of`, each whole or not at all.

    An error of one resource is kept in the result, and the others are loaded; one that the project's plan does not
    include is left out with a warning, unless it is one of DEFAULT_RESOURCES. Where the project has them, the typed
    tables are in step after it, however the rows were loaded. What was exported after `since` and has not been
    committed is taken up with `asked.refresh`, too: it is what an earlier attempt of the same refresh has left.
    `is_locked` says that the caller holds `locked(database)`. Raises WarehouseError where the file cannot be written or
    another load works on it, ConfigError where the dates or resources cannot be.

    Sweeps, `load_runs` and the list of `forget --keep-out` are those of a DuckDB file: elsewhere they are left off, and
    typed tables everywhere but in DuckLake.
    """
    target = into if isinstance(into, Target) else Target(into)
    database = target.path
    if not target.is_file:
        project = replace(project, typed_tables=project.typed_tables and target.is_lake, sweep_days=0)
    unknown = [name for name in resources if name not in RESOURCES]
    if unknown:
        raise ConfigError(f"there is no resource {unknown[0]!r}", hint=f"there are: {', '.join(RESOURCES)}")
    if "group_profiles" in resources:
        required_group_ids(project.data_group_ids)
    for name in REPORT_TABLES:
        if name in resources:
            required_questions(project.questions, name)
    result = LoadResult(target)
    told = RunMetrics(progress or NoProgress())

    def metrics() -> LoadMetrics:
        result.metrics = told.metrics(result.rows, result.days)
        return result.metrics

    if target.is_file:
        check_database(database)
    with (
        nullcontext() if is_locked else locked(database, what=target),
        recorded(
            database, lambda: result.error, lambda: result.warnings, metrics, resources=list(resources), asked=asked
        ),
    ):
        room = room_for(database, spool_folder(), project.min_free_mb)
        project = replace(project, stats=told.requests, disk=room)
        if target.is_file:
            prepare_database(database)
            with opened(database) as connection:
                refuse_snapshots(connection, resources)
                project = replace(project, kept_out=kept_out_of(connection))
        pipeline = open_pipeline(target)
        steps: dict[str, Callable[[TableLoad], None]] = {
            "events": lambda table: _sweep_and_load_events(
                pipeline, project, asked, filter_, since, told, table, result
            ),
            "profiles": lambda table: _load_profiles(pipeline, project, profiles, told, table, result),
            "group_profiles": lambda table: _load_group_profiles(pipeline, project, told, table, result),
            "cohort_members": lambda table: _load_members(pipeline, project, members, told, table, result),
            **dict.fromkeys(REPORT_TABLES, lambda table: _load_reports(pipeline, project, asked, told, table, result)),
        }
        for name in RESOURCES:
            if name not in resources:
                continue
            table = TableLoad(name)
            result.tables.append(table)
            started = time.monotonic()
            try:
                if pipeline.has_pending_data:  # of a table that failed; dlt would write it in place of the next one
                    pipeline = open_pipeline(target)
                room.check()
                with own_errors(target):
                    if name in LISTINGS:
                        _load_listing(pipeline, project, told, target, LISTINGS[name], table)
                    else:
                        steps[name](table)
            except ConfigError:
                raise
            except PlanError as error:
                if name in DEFAULT_RESOURCES or error.reaches_too_far_back:
                    table.error = error
                else:
                    table.is_left_out = True
                    result.warnings.append(f"{name} is left out: {error.message}")
            except MixpanelDataError as error:
                table.error = error
            table.seconds = time.monotonic() - started
        if project.typed_tables:
            try:
                _typed_tables_in_step(pipeline, target, told)
            except MixpanelDataError as error:
                result.tables.append(TableLoad("typed_tables", error=error))
        if not target.is_file:
            # All is loaded: where others write for long, it stays.
            with suppress(WarehouseError), target.written_alone(READERS_WAIT_S):
                drop_staging(pipeline)
    return result


def dates_of(
    project: Project,
    from_date: str | None,
    to_date: str | None,
    refresh: bool = False,
    resources: Sequence[str] = DEFAULT_RESOURCES,
) -> DateRange:
    """The range asked for in words: days, or `today` and `yesterday`. Raises ConfigError.

    They are those of the export calendar where `resources` have events, else those of the calendar of reports.
    """
    calendar = project.calendar if "events" in resources else project.report_calendar
    first, last = (day_in_words(name, text, calendar) for name, text in (("from", from_date), ("to", to_date)))
    return DateRange(first, last, refresh)


def _sweep_and_load_events(
    pipeline: dlt.Pipeline,
    project: Project,
    asked: DateRange,
    filter_: EventFilter,
    since: datetime | None,
    progress: LoadProgress,
    table: TableLoad,
    result: LoadResult,
) -> None:
    """As `_load_events`; a load of whatever is new looks for late events of settled days first, if it is to."""
    swept = SweepResult()
    if project.sweep_days and asked == DateRange() and filter_ == EventFilter():
        swept = sweep(project, result.database, loaded_days_of(pipeline, filter_))
        result.warnings += swept.warnings
        result.late_days = sorted(swept.late)
    try:
        _load_events(pipeline, project, asked, filter_, since, progress, table, result, swept)
    finally:
        if swept.swept_at:
            try:
                now_loaded = loaded_days_of(pipeline, filter_)
                note_sweep(result.database, swept, now_loaded, wait_s=READERS_WAIT_S, on_wait=progress.waiting)
            except MixpanelDataError as error:
                result.warnings.append(f"the next load looks for the same late events again: {error.message}")


def _load_events(
    pipeline: dlt.Pipeline,
    project: Project,
    asked: DateRange,
    filter_: EventFilter,
    since: datetime | None,
    progress: LoadProgress,
    table: TableLoad,
    result: LoadResult,
    swept: SweepResult,
) -> None:
    """Load the days asked for in packages of some windows each; what is loaded stays if a later one fails."""
    loaded = swept.unsettled(loaded_days_of(pipeline, filter_))
    plan = project.plan(asked, loaded)
    kept = KeptExports(result.database, project, filter_)
    # What was exported before a sweep found late events is older than they are.
    exported_at = last_exports_of(pipeline) | {day: swept.swept_at[day] for day in swept.late}
    here = kept.take_up(plan, exported_at, refresh=asked.refresh, since=since)
    tell_counts(plan, project, filter_)
    told = _Counted(progress)
    days: set[date] = set()
    progress.planned(forecast := plan.forecast())
    if project.disk is not None and result.target.is_file:
        project.disk.check_forecast(forecast, {day.day for day in loaded})
    with (
        project.client(kept.folder) as client,
        Exports(client, project, plan, filter_, told, loaded, skip_incomplete=True, kept=kept, here=here) as exports,
    ):
        try:
            while not exports.is_done:
                told.begin()
                events = partial(
                    events_package,
                    exports,
                    PackageLimits(),
                    holds_none_of=partial(_holds_none_of, pipeline),
                    through_file=result.target.is_file,
                )
                and_then = partial(_keep_up, exports, told) if project.typed_tables else None
                run_package(pipeline, result.target, progress, "events", events, and_then)
                exports.committed()
                table.rows += told.rows
                days |= told.days
                table.days = len(days)
        finally:
            result.warnings += exports.warnings()
        exports.raise_incomplete()


class _Counted:
    """Counts the rows and days of a load package as they go by; a day may come in parts."""

    def __init__(self, progress: LoadProgress) -> None:
        self.received = progress.received
        self.spent = progress.spent
        self.bytes_behind = 0
        """Bytes of properties that the typed tables do not hold yet."""
        self._progress = progress
        self.begin()

    def begin(self) -> None:
        self.rows = 0
        self.days: set[date] = set()

    def loaded(self, window: Window, rows: int, size: int) -> None:
        self.rows += rows
        self.days.update(window.days)
        self.bytes_behind += size
        self._progress.loaded(window, rows, size)


def _keep_up(exports: Exports, told: _Counted, connection: duckdb.DuckDBPyConnection) -> None:
    """Bring the typed tables in step after some packages: each time the ends of all tables are written anew.

    Never later than before a wait for the next export, where it costs no time.
    """
    if exports.is_done or told.bytes_behind >= BATCH_BYTES or exports.is_held_up(0.0):
        _keep_in_step(connection)
        told.bytes_behind = 0


def _holds_none_of(pipeline: dlt.Pipeline, days: Sequence[date]) -> bool:
    """Whether no row of `days` is there, whoever wrote it: appending is then the same as replacing, for less."""
    if type_of(pipeline.destination) == "filesystem":
        return False  # to replace is as cheap there, and may be tried again
    # Also where dlt knows of no schema: a first load that was killed leaves rows behind.
    with pipeline.sql_client() as client:
        return not answer_of(client, f"SELECT 1 FROM events WHERE {days_scope('event_date', days)} LIMIT 1")


def _load_profiles(
    pipeline: dlt.Pipeline,
    project: Project,
    asked: ProfilesAsked,
    progress: LoadProgress,
    table: TableLoad,
    result: LoadResult,
) -> None:
    table.table = asked.table
    profiles = partial(
        profiles_resource, lambda: project, asked, on_page=progress.profiles, warn=result.warnings.append
    )
    and_then = _keep_in_step if project.typed_tables else None
    run_package(pipeline, result.target, progress, asked.table, profiles, and_then)
    _count_rows(pipeline, table)


def _keep_in_step(
    connection: duckdb.DuckDBPyConnection, dataset: str = DATASET, *, a_batch: bool = False
) -> TypedUpdate:
    try:
        return bring_in_step(connection, dataset, a_batch=a_batch)
    except duckdb.Error as error:
        problem = first_line(error)
        raise WarehouseError(
            f"the typed tables are not in step: {problem}",
            hint=hint_of(problem)
            or "all else is loaded, and whole; the next load tries again, unless --no-typed-tables",
        ) from None


def _typed_tables_in_step(pipeline: dlt.Pipeline, target: Target, progress: LoadProgress) -> None:
    """At the end of a load: what an earlier one, or another way to load, has left; of a lake, all."""
    if target.is_lake:
        with pipeline.sql_client() as client:
            if not client.has_dataset():
                return
        progress.writing()
        # Some days at a time: others may wait to write.
        while True:
            with target.written_alone(READERS_WAIT_S), lake_opened(target, write=True) as connection:
                began = time.monotonic()
                update = _keep_in_step(connection, target.schema, a_batch=True)
                progress.spent("typed", time.monotonic() - began)
            if not update.days:
                return
    with opened(target.path) as connection:
        if is_in_step(connection):
            return
    progress.writing()
    with connected(target.path, wait_s=READERS_WAIT_S, on_wait=progress.waiting) as connection:
        for name, value in DUCKDB_CONFIG.items():
            connection.execute(f"SET {name} = '{value}'")
        began = time.monotonic()
        _keep_in_step(connection)
        progress.spent("typed", time.monotonic() - began)


def _load_group_profiles(
    pipeline: dlt.Pipeline, project: Project, progress: LoadProgress, table: TableLoad, result: LoadResult
) -> None:
    """Load group type by group type; what is loaded stays if another one fails."""
    failed: list[MixpanelDataError] = []
    for id_ in required_group_ids(project.data_group_ids):
        group = partial(group_profiles_resource, lambda: project, [id_], on_page=progress.profiles)
        try:
            with own_errors(result.target):
                run_package(pipeline, result.target, progress, "group_profiles", group)
        except FAILS_ALONE as error:
            failed.append(error)
            result.warnings.append(f"the group profiles of {id_} are as before: {error.message}")
        else:
            _count_rows(pipeline, table)
    if failed:
        raise failed[0]


def _load_members(
    pipeline: dlt.Pipeline,
    project: Project,
    asked: MembersAsked,
    progress: LoadProgress,
    table: TableLoad,
    result: LoadResult,
) -> None:
    """Load the cohorts asked for in packages of some each; what is loaded stays if a later one fails."""
    with project.client() as client:
        walks = CohortWalks(client, asked, progress.profiles, project.kept_out)
        while not walks.is_done:
            run_package(pipeline, result.target, progress, "cohort_members", partial(members_package, walks))
            _count_rows(pipeline, table)
        result.warnings += walks.warnings()
        walks.raise_failed()


def _load_reports(
    pipeline: dlt.Pipeline,
    project: Project,
    asked: DateRange,
    progress: LoadProgress,
    table: TableLoad,
    result: LoadResult,
) -> None:
    """Load report by report in packages of some each; what is loaded stays if a later one fails."""
    known = report_days_of(pipeline, table.table)
    with project.client() as client:
        loads = ReportLoads(client, project, table.table, asked, known)
        while not loads.is_done:
            run_package(pipeline, result.target, progress, table.table, partial(reports_package, loads))
            _count_rows(pipeline, table)
            table.days = len(loads.days)
        result.warnings += loads.warnings()
        loads.raise_failed()


def _load_listing(
    pipeline: dlt.Pipeline, project: Project, progress: LoadProgress, target: Target, listing: Listing, table: TableLoad
) -> None:
    rows = partial(listing_resource, listing, lambda: project)
    run_package(pipeline, target, progress, listing.table, rows)
    _count_rows(pipeline, table)


def _count_rows(pipeline: dlt.Pipeline, table: TableLoad) -> None:
    """Those of the last run, by dlt's trace of it."""
    trace = pipeline.last_trace
    counts = trace.last_normalize_info.row_counts if trace and trace.last_normalize_info else {}
    table.rows += counts.get(table.table, 0)
