"""What is known of the load under way and of those before it.

A small file beside the folder that dlt works in tells of the one under way and of the last one: also while the database
is held, and after a crash. What it tells of loads that are over goes into the table `load_runs`, as soon as that can be
written.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

from mixpanel_source import __version__
from mixpanel_source.errors import MixpanelDataError
from mixpanel_source.load_metrics import LoadMetrics
from mixpanel_source.load_runs import write_runs
from mixpanel_source.warehouse import (
    LOCK_WAIT_S,
    DatabaseBusyError,
    data_folder_error,
    is_held,
    lock_path,
    pipelines_folder,
)
from mixpanel_source.windows import DateRange

logger = logging.getLogger(__name__)

Outcome = Literal["done", "failed", "stopped"]

_ERROR_CHARS = 500
_OLDER_KEPT = 20
"""Loads whose rows could not be written yet."""


@dataclass(frozen=True)
class LoadRecord:
    """One load. `outcome` is None while it runs; one that was killed is stopped, without `ended_at` and `metrics`."""

    began_at: datetime
    pid: int
    ended_at: datetime | None = None
    outcome: Outcome | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()
    run_id: str = ""
    version: str = ""
    resources: tuple[str, ...] = ()
    from_date: date | None = None
    """As it was asked for; and so is `to_date`."""
    to_date: date | None = None
    metrics: LoadMetrics | None = None
    is_in_table: bool = False
    """Whether its row is in `load_runs`."""


def record_path(database: Path) -> Path:
    folder = pipelines_folder(database)
    return folder.with_name(f"{folder.name}.json")


@contextlib.contextmanager
def recorded(
    database: Path,
    error_of: Callable[[], MixpanelDataError | None],
    warnings_of: Callable[[], Iterable[str]] = lambda: (),
    metrics_of: Callable[[], LoadMetrics] = LoadMetrics,
    *,
    resources: Sequence[str] = (),
    asked: DateRange = DateRange(),
) -> Iterator[None]:
    """Notes that a load begins, and how it ends: raising, with the error of `error_of`, or well; and what it did.

    The caller holds `lock_path(database)`. Raises WarehouseError where the beginning cannot be noted.
    """
    path = record_path(database)
    before = _ended(_read(database))
    record = LoadRecord(
        datetime.now(UTC),
        os.getpid(),
        run_id=uuid.uuid4().hex,
        version=__version__,
        resources=tuple(resources),
        from_date=asked.from_date,
        to_date=asked.to_date,
    )
    try:
        _write(path, record, *before)
    except OSError as error:
        raise data_folder_error(error) from None
    raised: BaseException | None = None
    try:
        yield
    except BaseException as error:
        raised = error
        raise
    finally:
        ended = replace(
            record,
            ended_at=datetime.now(UTC),
            warnings=tuple(warnings_of()),
            metrics=metrics_of(),
            **_outcome(raised or error_of()),
        )
        waiting = [one for one in before if one.run_id and not one.is_in_table][:_OLDER_KEPT]
        try:
            _write(path, ended, *waiting)  # first: a crash of DuckDB's leaves this
            wait_s = 0.0 if isinstance(raised, DatabaseBusyError) else LOCK_WAIT_S
            if write_runs(database, [*reversed(waiting), ended], wait_s):
                _write(path, replace(ended, is_in_table=True))
        except OSError as error:  # what was loaded is loaded
            logger.warning("cannot write %s: %s", path, error.strerror)
        _tell(ended)


def read_records(database: Path) -> tuple[LoadRecord | None, LoadRecord | None]:
    """The load that is running, and the last one that is not. Makes no file; what cannot be read is not known."""
    records = _read(database)
    running = records[0] if records and records[0].outcome is None and is_locked(database) else None
    over = records[1:] if running else _ended(records)
    return running, over[0] if over else None


def _read(database: Path) -> list[LoadRecord]:
    """Newest first."""
    try:
        return [_record(item) for item in json.loads(record_path(database).read_text("utf-8"))]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []


def _ended(records: Sequence[LoadRecord]) -> list[LoadRecord]:
    """Where none is running any more."""
    return [record if record.outcome else replace(record, outcome="stopped") for record in records]


def _tell(record: LoadRecord) -> None:
    """The log."""
    assert record.metrics is not None
    figures = {name: value for name, value in vars(record.metrics).items() if name != "load_ids"}
    logger.info(
        "load %s (%s): %d rows, %d requests, %.1f s of waits",
        record.outcome,
        ", ".join(record.resources),
        record.metrics.rows,
        record.metrics.requests,
        record.metrics.waited_s,
        extra={"run_id": record.run_id, "outcome": record.outcome, "error": record.error, **figures},
    )


def is_locked(database: Path) -> bool:
    """Whether a load holds the database. By its lock: a process id may belong to another one by now."""
    return is_held(lock_path(database))


def _outcome(error: BaseException | None) -> dict[str, Any]:
    if error is None:
        return {"outcome": "done"}
    if isinstance(error, MixpanelDataError):
        text = " ".join(f"{type(error).__name__}: {error.message}".split())
        return {"outcome": "failed", "error": text[:_ERROR_CHARS]}
    # Only our own messages are known to hold no secret.
    return {"outcome": "failed" if isinstance(error, Exception) else "stopped", "error": type(error).__name__}


def _record(item: dict[str, Any]) -> LoadRecord:
    """As `_write` has it; one of an earlier version lacks some of it."""
    moments = {name: datetime.fromisoformat(item[name]) if item[name] else None for name in ("began_at", "ended_at")}
    days = {name: date.fromisoformat(item[name]) if item.get(name) else None for name in ("from_date", "to_date")}
    lists = {name: tuple(item.get(name, ())) for name in ("warnings", "resources")}
    metrics = item.get("metrics")
    if metrics is not None:
        metrics = LoadMetrics(**{**metrics, "load_ids": tuple(metrics["load_ids"])})
    return LoadRecord(**{**item, **moments, **days, **lists, "metrics": metrics})


def _write(path: Path, *records: LoadRecord) -> None:
    """Whole or not at all: a reader never meets half of it."""
    text = json.dumps(
        [asdict(record) for record in records if record], default=lambda moment: moment.isoformat(), indent=1
    )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp's mode is 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
