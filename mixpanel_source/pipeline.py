"""The dlt pipeline that a load goes through: opening it, and writing one load package after the other."""

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
from pathlib import Path
from types import FrameType
from typing import Any, Self

import dlt
import duckdb
from dlt.common.destination import Destination
from dlt.common.destination.configuration import ParquetFormatConfiguration
from dlt.common.storages import NormalizeStorage
from dlt.destinations.exceptions import DestinationConnectionError
from dlt.destinations.impl.duckdb.configuration import DuckDbCredentials
from dlt.extract import DltResource
from dlt.pipeline.exceptions import PipelineStepFailed
from filelock import FileLock, Timeout

from mixpanel_source import settings
from mixpanel_source.destinations import Target, without_secrets
from mixpanel_source.errors import MixpanelDataError, WarehouseError
from mixpanel_source.progress import LoadProgress
from mixpanel_source.source import source_of
from mixpanel_source.traces import keep_trace, last_trace
from mixpanel_source.warehouse import (
    connected,
    data_folder_error,
    first_line,
    hint_of,
    kept_folder,
    lock_path,
    pipelines_folder,
    refuse_snapshots,
)

logger = logging.getLogger(__name__)

READERS_WAIT_S = 600.0
"""How long a package that is ready to be written waits for a program that reads the database."""

_LOCK_POLL_S = 0.5

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


def duckdb_destination(database: Path) -> Destination[Any, Any]:
    """dlt's DuckDB destination with the settings measured best for events: see DUCKDB_CONFIG."""
    credentials = DuckDbCredentials(global_config=dict(DUCKDB_CONFIG), pragmas=list(DUCKDB_PRAGMAS))
    credentials.database = str(database.absolute())  # as an argument it would be read as a URL, where it looks like one
    return dlt.destinations.duckdb(
        credentials,
        # The files live for seconds: compressing them costs more than writing them.
        parquet_format=ParquetFormatConfiguration(compression="none"),
    )


def open_pipeline(target: Target) -> dlt.Pipeline:
    """The pipeline that fills `target`, in step with it and with nothing left over from a stopped run."""
    for name, value in _SETTINGS.items():
        # With the pipeline's name in front: other pipelines of this process have settings of their own.
        os.environ.setdefault(f"{settings.PIPELINE.upper()}__{name}", value)
    pipeline = dlt.pipeline(
        settings.PIPELINE,
        destination=target.destination or duckdb_destination(target.path),
        dataset_name=target.dataset,
        pipelines_dir=str(pipelines_folder(target.path)),
    )
    # A lake is made by the first that asks it for anything.
    with target.made_alone(READERS_WAIT_S), own_errors(target):
        if pipeline.has_pending_data:
            # Completing it could write rows twice whose job was done but not yet noted; its days are exported anew.
            # Nor can every package be aborted (dlt refuses one that only its last note misses): all that counts is
            # in the database.
            pipeline = pipeline.drop()
            pipeline.activate()
        _forget_extractions(pipeline)
        pipeline.sync_destination()
    return pipeline


def run_package(
    pipeline: dlt.Pipeline,
    target: Target,
    progress: LoadProgress,
    table: str,
    resource: Callable[..., DltResource],
    and_then: Callable[[duckdb.DuckDBPyConnection], object] | None = None,
) -> None:
    """Load one package: what `resource` is for the `about_to_write` it is given.

    `and_then` is called with a connection once it is written, before others can read the database or Ctrl-C ends it;
    only a DuckDB file has one.
    """
    with _Writing(target, progress, table) as writing:
        before = pipeline.last_trace
        try:
            info = pipeline.run(source_of(resource(about_to_write=writing.begin)))
        finally:
            keep_trace(last_trace(pipeline, before), target.path, table)
        writing.ended(info.loads_ids)
        if and_then is not None and writing.connection is not None:
            began = time.monotonic()
            and_then(writing.connection)
            progress.spent("typed", time.monotonic() - began)
    _forget_old_packages(pipeline)


def _forget_extractions(pipeline: dlt.Pipeline) -> None:
    """dlt leaves the folder of an extraction that was broken off beside that of those that came to their end."""
    for folder in Path(pipeline.working_dir, "normalize").glob("*"):
        if folder.is_dir() and folder.name != NormalizeStorage.EXTRACTED_FOLDER:
            shutil.rmtree(folder, ignore_errors=True)


def _forget_old_packages(pipeline: dlt.Pipeline) -> None:
    """dlt keeps a folder for each package it wrote, for ever."""
    for load_id in sorted(pipeline.list_completed_load_packages())[:-PACKAGES_KEPT]:
        shutil.rmtree(pipeline.get_load_package_info(load_id).package_path, ignore_errors=True)


def start_over(database: Path) -> None:
    """Remove the database and what dlt keeps of it. Raises WarehouseError where another load works on it."""
    with locked(database):
        for path in (database, database.with_name(database.name + ".wal")):
            path.unlink(missing_ok=True)
        for folder in (pipelines_folder(database), kept_folder(database)):
            shutil.rmtree(folder, ignore_errors=True)


class _Writing:
    """From when a load package is ready until it is written: readers wait, and Ctrl-C lets it be finished."""

    def __init__(self, target: Target, progress: LoadProgress, resource: str) -> None:
        self._target = target
        self._progress = progress
        self._resource = resource
        self._held = ExitStack()
        self._began = time.monotonic()
        self.connection: duckdb.DuckDBPyConnection | None = None
        """Once it has begun."""

    def begin(self) -> None:
        """Raises WarehouseError where another program keeps the database for READERS_WAIT_S.

        And TableExistsError where a snapshot has taken the table's name meanwhile.
        """
        self._progress.writing()
        if self._target.is_file:
            # Only as long as a connection is open does DuckDB keep others out; dlt opens and closes its own ones.
            waiting = connected(self._target.path, wait_s=READERS_WAIT_S, on_wait=self._progress.waiting)
            self.connection = self._held.enter_context(waiting)
            refuse_snapshots(self.connection, [self._resource])
        else:
            self._held.enter_context(self._target.written_alone(READERS_WAIT_S))
        self._held.enter_context(_finishing(self._progress.interrupted))
        self._began = time.monotonic()

    def ended(self, load_ids: Sequence[str]) -> None:
        """The package is in the database; it may be none."""
        if not load_ids:
            return
        seconds = time.monotonic() - self._began
        self._progress.spent("write", seconds)
        self._progress.written(self._resource, load_ids)
        logger.info(
            "%s: load package %s written in %.2f s",
            self._resource,
            ", ".join(load_ids),
            seconds,
            extra={"table": self._resource, "load_ids": list(load_ids), "write_s": round(seconds, 3)},
        )

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


@contextmanager
def locked(database: Path, wait_s: float = 0.0, *, what: object = None) -> Iterator[None]:
    """Holds the database against other loads. Raises WarehouseError where another one has it, for `wait_s`.

    `what` it is called, where `database` only stands for it.
    """
    try:
        database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(lock_path(database))
        lock.acquire(timeout=wait_s, poll_interval=_LOCK_POLL_S)
    except Timeout:
        raise WarehouseError(
            f"another load works on {what or database}",
            hint="wait for it to end; what it loads need not be loaded again",
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
def own_errors(target: Target) -> Iterator[None]:
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
                f"another process (PID {holder[1]}) opened {target} while it was loaded", hint=again
            ) from None
        step = f" in step {failed.step}" if isinstance(failed, PipelineStepFailed) else ""
        if isinstance(root, OSError) and root.strerror:
            raise data_folder_error(root) from None
        problem = without_secrets(first_line(root))
        raise WarehouseError(f"writing {target} failed{step}: {problem}", hint=hint_of(problem) or again) from None
