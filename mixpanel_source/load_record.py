"""What is known of the load under way and of the one before it: a small file beside the folder that dlt works in."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from mixpanel_source.errors import MixpanelDataError
from mixpanel_source.warehouse import data_folder_error, lock_path, pipelines_folder

logger = logging.getLogger(__name__)

fcntl: ModuleType | None
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

Outcome = Literal["done", "failed", "stopped"]

_ERROR_CHARS = 500


@dataclass(frozen=True)
class LoadRecord:
    """One load. `outcome` is None while it runs; one that was killed is stopped and has no `ended_at`."""

    began_at: datetime
    pid: int
    ended_at: datetime | None = None
    outcome: Outcome | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()


def record_path(database: Path) -> Path:
    folder = pipelines_folder(database)
    return folder.with_name(f"{folder.name}.json")


@contextlib.contextmanager
def recorded(
    database: Path,
    error_of: Callable[[], MixpanelDataError | None],
    warnings_of: Callable[[], Iterable[str]] = lambda: (),
) -> Iterator[None]:
    """Notes that a load begins, and how it ends: raising, with the error of `error_of`, or well; and what it warned of.

    The caller holds `lock_path(database)`. Raises WarehouseError where the beginning cannot be noted.
    """
    path = record_path(database)
    _, before = read_records(database, running=False)
    record = LoadRecord(datetime.now(UTC), os.getpid())
    try:
        _write(path, record, before)
    except OSError as error:
        raise data_folder_error(error) from None
    raised: BaseException | None = None
    try:
        yield
    except BaseException as error:
        raised = error
        raise
    finally:
        outcome = _outcome(raised or error_of())
        ended = replace(record, ended_at=datetime.now(UTC), warnings=tuple(warnings_of()), **outcome)
        try:
            _write(path, ended)
        except OSError as error:  # what was loaded is loaded
            logger.warning("cannot write %s: %s", path, error.strerror)


def read_records(database: Path, *, running: bool | None = None) -> tuple[LoadRecord | None, LoadRecord | None]:
    """The load that is running, and the last one that is not. Makes no file; what cannot be read is not known.

    `running` says whether a load is, where the caller knows; else the lock tells.
    """
    try:
        records = [_record(item) for item in json.loads(record_path(database).read_text("utf-8"))]
    except (OSError, ValueError, TypeError, KeyError):
        return None, None
    if records and records[0].outcome is None:
        if is_locked(database) if running is None else running:
            return records[0], records[1] if len(records) > 1 else None
        return None, replace(records[0], outcome="stopped")
    return None, records[0] if records else None


def is_locked(database: Path) -> bool:
    """Whether a load holds the database. By its lock: a process id may belong to another one by now."""
    if fcntl is None:
        return True
    # Shared, and for no longer than it takes: a load that begins in between would be told that another one works.
    try:
        with lock_path(database).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _outcome(error: BaseException | None) -> dict[str, Any]:
    if error is None:
        return {"outcome": "done"}
    if isinstance(error, MixpanelDataError):
        text = " ".join(f"{type(error).__name__}: {error.message}".split())
        return {"outcome": "failed", "error": text[:_ERROR_CHARS]}
    # Only our own messages are known to hold no secret.
    return {"outcome": "failed" if isinstance(error, Exception) else "stopped", "error": type(error).__name__}


def _record(item: dict[str, Any]) -> LoadRecord:
    ended_at = item["ended_at"]
    return LoadRecord(
        datetime.fromisoformat(item["began_at"]),
        int(item["pid"]),
        datetime.fromisoformat(ended_at) if ended_at else None,
        item["outcome"],
        item["error"],
        tuple(item["warnings"]),
    )


def _write(path: Path, *records: LoadRecord | None) -> None:
    """Whole or not at all: a reader never meets half of it."""
    text = json.dumps([asdict(record) for record in records if record], default=datetime.isoformat, indent=1)
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
