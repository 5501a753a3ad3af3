"""Runs the source into a DuckDB file, a few windows at a time, and sums up what it loaded."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Self

import dlt
import duckdb
from dlt.common.destination import Destination
from dlt.common.destination.configuration import ParquetFormatConfiguration
from dlt.destinations.exceptions import DatabaseUndefinedRelation, DestinationConnectionError
from dlt.destinations.impl.duckdb.configuration import DuckDbCredentials
from dlt.extract import DltResource
from dlt.pipeline.exceptions import PipelineStepFailed
from filelock import FileLock, Timeout

from mixpanel_source import settings
from mixpanel_source.engage import FAILS_ALONE, MembersAsked, ProfilesAsked, required_group_ids
from mixpanel_source.errors import ConfigError, MixpanelDataError, PlanError, TableExistsError, WarehouseError
from mixpanel_source.exports import EventFilter, Exports
from mixpanel_source.listings import LISTINGS, Listing
from mixpanel_source.load_record import recorded
from mixpanel_source.progress import LoadProgress, NoProgress
from mixpanel_source.project import Project, day_in_words
from mixpanel_source.resources.cohort_members import CohortWalks, members_package
from mixpanel_source.resources.events import PackageLimits, days_scope, events_package
from mixpanel_source.resources.group_profiles import group_profiles as group_profiles_resource
from mixpanel_source.resources.listings import listing_resource
from mixpanel_source.resources.profiles import profiles as profiles_resource
from mixpanel_source.source import loaded_days_of, source_of
from mixpanel_source.warehouse import (
    check_database,
    connected,
    data_folder_error,
    fetched_tables,
    first_line,
    hint_of,
    lock_path,
    opened,
    pipelines_folder,
    prepare_database,
)
from mixpanel_source.windows import DateRange, Window

logger = logging.getLogger(__name__)

DEFAULT_RESOURCES = ("events", "profiles")
"""What is loaded where no resource is named."""
RESOURCES = (*DEFAULT_RESOURCES, "group_profiles", "cohort_members", *LISTINGS)
WITH_DAYS = ("events",)
"""The resources that dates apply to; the others are loaded as they are now."""

READERS_WAIT_S = 600.0
"""How long a package that is ready to be written waits for a program that reads the database."""

PACKAGES_KEPT = 20
"""Records of written load packages that dlt's commands can tell of. Their data are gone."""

_SETTINGS = {
    # Else the copy of the last days stays in the database file, which is twice as large then.
    "LOAD__TRUNCATE_STAGING_DATASET": "true",
    # Else every row ever loaded stays in the pipeline's folder, too.
    "LOAD__DELETE_COMPLETED_JOBS": "true",
    # dlt's handler swallows a Ctrl-C that comes in a package's last step; ours is `_finishing`.
    "RUNTIME__INTERCEPT_SIGNALS": "false",
    "RUNTIME__DLTHUB_TELEMETRY": "false",
}

DUCKDB_CONFIG = {
    # On a laptop's two cores a second thread costs more CPU than it saves time, and the other one converts.
    "threads": 1,
    "memory_limit": "200MB",
}
DUCKDB_PRAGMAS = ["force_compression='zstd'"]


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

    database: Path
    tables: list[TableLoad] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def error(self) -> MixpanelDataError | None:
        return next((table.error for table in self.tables if table.error is not None), None)


def load(
    project: Project,
    database: Path,
    resources: Sequence[str] = DEFAULT_RESOURCES,
    *,
    asked: DateRange = DateRange(),
    filter_: EventFilter = EventFilter(),
    profiles: ProfilesAsked = ProfilesAsked(),
    members: MembersAsked = MembersAsked(),
    progress: LoadProgress | None = None,
) -> LoadResult:
    """Load `resources` of a project into the DuckDB file `database`, each whole or not at all.

    An error of one resource is kept in the result, and the others are loaded; one that the project's plan does not
    include is left out with a warning, unless it is one of DEFAULT_RESOURCES. Raises WarehouseError where the file
    cannot be written or another load works on it, ConfigError where the dates or resources cannot be.
    """
    unknown = [name for name in resources if name not in RESOURCES]
    if unknown:
        raise ConfigError(f"there is no resource {unknown[0]!r}", hint=f"there are: {', '.join(RESOURCES)}")
    if "group_profiles" in resources:
        required_group_ids(project.data_group_ids)
    result = LoadResult(database)
    told = progress or NoProgress()
    check_database(database)
    with _locked(database), recorded(database, lambda: result.error, lambda: result.warnings):
        prepare_database(database)
        with opened(database) as connection:
            _refuse_snapshots(connection, resources)
        pipeline = open_pipeline(database)
        steps: dict[str, Callable[[TableLoad], None]] = {
            "events": lambda table: _load_events(pipeline, project, asked, filter_, told, table, result),
            "profiles": lambda table: _load_profiles(pipeline, project, profiles, told, table, database),
            "group_profiles": lambda table: _load_group_profiles(pipeline, project, told, table, result),
            "cohort_members": lambda table: _load_members(pipeline, project, members, told, table, result),
        }
        for name in RESOURCES:
            if name not in resources:
                continue
            table = TableLoad(name)
            result.tables.append(table)
            started = time.monotonic()
            try:
                if pipeline.has_pending_data:  # of a table that failed; dlt would write it in place of the next one
                    pipeline = open_pipeline(database)
                with _own_errors(database):
                    if name in LISTINGS:
                        _load_listing(pipeline, project, told, database, LISTINGS[name], table)
                    else:
                        steps[name](table)
            except ConfigError:
                raise
            except PlanError as error:
                if name in DEFAULT_RESOURCES:
                    table.error = error
                else:
                    table.is_left_out = True
                    result.warnings.append(f"{name} is left out: {error.message}")
            except MixpanelDataError as error:
                table.error = error
            table.seconds = time.monotonic() - started
    return result


def _refuse_snapshots(connection: duckdb.DuckDBPyConnection, resources: Sequence[str]) -> None:
    """Raises TableExistsError where a resource's table is one that `fetch` made."""
    for name in fetched_tables(connection):
        if name.lower() in resources:
            raise TableExistsError(
                f"the table {name} is a snapshot, which a load cannot add to",
                hint=f"drop it, or load into another file with --db: mpload drop {name}",
            )


def dates_of(project: Project, from_date: str | None, to_date: str | None, refresh: bool = False) -> DateRange:
    """The range asked for in words: days, or `today` and `yesterday` of the project's calendar. Raises ConfigError."""
    first, last = (day_in_words(name, text, project.calendar) for name, text in (("from", from_date), ("to", to_date)))
    return DateRange(first, last, refresh)


def start_over(database: Path) -> None:
    """Remove the database and what dlt keeps of it. Raises WarehouseError where another load works on it."""
    with _locked(database):
        for path in (database, database.with_name(database.name + ".wal")):
            path.unlink(missing_ok=True)
        shutil.rmtree(pipelines_folder(database), ignore_errors=True)


def duckdb_destination(database: Path) -> Destination[Any, Any]:
    """dlt's DuckDB destination with the settings measured best for events: see DUCKDB_CONFIG."""
    credentials = DuckDbCredentials(global_config=dict(DUCKDB_CONFIG), pragmas=list(DUCKDB_PRAGMAS))
    credentials.database = str(database.absolute())  # as an argument it would be read as a URL, where it looks like one
    return dlt.destinations.duckdb(
        credentials,
        # The files live for seconds: compressing them costs more than writing them.
        parquet_format=ParquetFormatConfiguration(compression="none"),
    )


def open_pipeline(database: Path) -> dlt.Pipeline:
    """The pipeline that fills `database`, in step with it and with nothing left over from a stopped run."""
    for name, value in _SETTINGS.items():
        # With the pipeline's name in front: other pipelines of this process have settings of their own.
        os.environ.setdefault(f"{settings.PIPELINE.upper()}__{name}", value)
    pipeline = dlt.pipeline(
        settings.PIPELINE,
        destination=duckdb_destination(database),
        dataset_name=settings.DATASET,
        pipelines_dir=str(pipelines_folder(database)),
    )
    with _own_errors(database):
        if pipeline.has_pending_data:
            # Completing it could write rows twice whose job was done but not yet noted; its days are exported anew.
            # Nor can every package be aborted (dlt refuses one that only its last note misses): all that counts is
            # in the database.
            pipeline = pipeline.drop()
            pipeline.activate()
        pipeline.sync_destination()
    return pipeline


def _load_events(
    pipeline: dlt.Pipeline,
    project: Project,
    asked: DateRange,
    filter_: EventFilter,
    progress: LoadProgress,
    table: TableLoad,
    result: LoadResult,
) -> None:
    """Load the days asked for in packages of some windows each; what is loaded stays if a later one fails."""
    loaded = loaded_days_of(pipeline, filter_)
    windows = project.windows(asked, loaded)
    told = _Counted(progress)
    progress.planned(windows)
    with (
        project.client() as client,
        Exports(client, project, windows, filter_, told, loaded, skip_incomplete=True) as exports,
    ):
        try:
            while not exports.is_done:
                told.rows = told.days = 0
                events = partial(
                    events_package, exports, PackageLimits(), holds_none_of=partial(_holds_none_of, pipeline)
                )
                _run_package(pipeline, result.database, progress, "events", events)
                table.rows += told.rows
                table.days += told.days
        finally:
            result.warnings += exports.warnings()
        exports.raise_incomplete()


class _Writing:
    """From when a load package is ready until it is written: readers wait, and Ctrl-C lets it be finished."""

    def __init__(self, database: Path, progress: LoadProgress, resource: str) -> None:
        self._database = database
        self._progress = progress
        self._resource = resource
        self._held = ExitStack()

    def begin(self) -> None:
        """Raises WarehouseError where a program reads the database and goes on for READERS_WAIT_S.

        And TableExistsError where a snapshot has taken the table's name meanwhile.
        """
        self._progress.writing()
        # Only as long as a connection is open does DuckDB keep others out; dlt opens and closes its own ones.
        waiting = connected(self._database, wait_s=READERS_WAIT_S, on_wait=self._progress.waiting)
        _refuse_snapshots(self._held.enter_context(waiting), [self._resource])
        self._held.enter_context(_finishing(self._progress.interrupted))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._held.__exit__(*error)


@contextmanager
def _finishing(on_interrupt: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C raises KeyboardInterrupt only at the end of the block, the second one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, before)
        on_interrupt()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if interrupted:  # also where the writing failed: else the next table would be loaded
            raise KeyboardInterrupt


class _Counted:
    """Counts the rows and days of a load package as they go by."""

    def __init__(self, progress: LoadProgress) -> None:
        self.received = progress.received
        self.rows = 0
        self.days = 0
        self._progress = progress

    def loaded(self, window: Window, rows: int, size: int) -> None:
        self.rows += rows
        self.days += len(window)
        self._progress.loaded(window, rows, size)


def _holds_none_of(pipeline: dlt.Pipeline, days: Sequence[date]) -> bool:
    """Whether no row of `days` is there, whoever wrote it: appending is then the same as replacing, for less."""
    # Also where dlt knows of no schema: a first load that was killed leaves rows behind.
    with pipeline.sql_client() as client:
        try:
            rows = client.execute_sql(f"SELECT 1 FROM events WHERE {days_scope('event_date', days)} LIMIT 1")
        except DatabaseUndefinedRelation:
            return True
    return not rows


def _load_profiles(
    pipeline: dlt.Pipeline,
    project: Project,
    asked: ProfilesAsked,
    progress: LoadProgress,
    table: TableLoad,
    database: Path,
) -> None:
    table.table = asked.table
    profiles = partial(profiles_resource, lambda: project, asked, on_page=progress.profiles)
    _run_package(pipeline, database, progress, asked.table, profiles)
    _count_rows(pipeline, table)


def _load_group_profiles(
    pipeline: dlt.Pipeline, project: Project, progress: LoadProgress, table: TableLoad, result: LoadResult
) -> None:
    """Load group type by group type; what is loaded stays if another one fails."""
    failed: list[MixpanelDataError] = []
    for id_ in required_group_ids(project.data_group_ids):
        group = partial(group_profiles_resource, lambda: project, [id_], on_page=progress.profiles)
        try:
            with _own_errors(result.database):
                _run_package(pipeline, result.database, progress, "group_profiles", group)
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
        walks = CohortWalks(client, asked, progress.profiles)
        while not walks.is_done:
            _run_package(pipeline, result.database, progress, "cohort_members", partial(members_package, walks))
            _count_rows(pipeline, table)
        result.warnings += walks.warnings()
        walks.raise_failed()


def _load_listing(
    pipeline: dlt.Pipeline, project: Project, progress: LoadProgress, database: Path, listing: Listing, table: TableLoad
) -> None:
    rows = partial(listing_resource, listing, lambda: project)
    _run_package(pipeline, database, progress, listing.table, rows)
    _count_rows(pipeline, table)


def _run_package(
    pipeline: dlt.Pipeline,
    database: Path,
    progress: LoadProgress,
    table: str,
    resource: Callable[..., DltResource],
) -> None:
    """Load one package: what `resource` is for the `about_to_write` it is given."""
    with _Writing(database, progress, table) as writing:
        pipeline.run(source_of(resource(about_to_write=writing.begin)))
    _forget_old_packages(pipeline)


def _count_rows(pipeline: dlt.Pipeline, table: TableLoad) -> None:
    """Those of the last run, by dlt's trace of it."""
    trace = pipeline.last_trace
    counts = trace.last_normalize_info.row_counts if trace and trace.last_normalize_info else {}
    table.rows += counts.get(table.table, 0)


def _forget_old_packages(pipeline: dlt.Pipeline) -> None:
    """dlt keeps a folder for each package it wrote, for ever."""
    for load_id in sorted(pipeline.list_completed_load_packages())[:-PACKAGES_KEPT]:
        shutil.rmtree(pipeline.get_load_package_info(load_id).package_path, ignore_errors=True)


@contextmanager
def _locked(database: Path) -> Iterator[None]:
    """Holds the database against other loads. Raises WarehouseError where another one has it."""
    try:
        database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(lock_path(database))
        lock.acquire(timeout=0)
    except Timeout:
        raise WarehouseError(
            f"another load works on {database}", hint="wait for it to end; what it loads need not be loaded again"
        ) from None
    except OSError as error:
        raise WarehouseError(
            f"cannot write beside {database}: {error.strerror}", hint=hint_of(error.strerror)
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _own_errors(database: Path) -> Iterator[None]:
    """Turns the failure of a pipeline step into the error of ours that caused it."""
    try:
        yield
    except (PipelineStepFailed, DestinationConnectionError) as failed:
        cause: BaseException | None = failed
        while cause is not None:
            if isinstance(cause, (MixpanelDataError, KeyboardInterrupt)):
                raise cause from None
            root, cause = cause, cause.__cause__ or cause.__context__
        logger.debug("a step failed", exc_info=failed)
        again = "what was loaded before is there and whole; run the same command again"
        holder = re.search(r"lock on file.*PID (\d+)", str(root), re.DOTALL)
        if holder is not None:
            raise WarehouseError(
                f"another process (PID {holder[1]}) opened {database} while it was loaded", hint=again
            ) from None
        step = f" in step {failed.step}" if isinstance(failed, PipelineStepFailed) else ""
        if isinstance(root, OSError) and root.strerror:
            raise data_folder_error(root) from None
        problem = first_line(root)
        raise WarehouseError(f"writing {database} failed{step}: {problem}", hint=hint_of(problem) or again) from None
