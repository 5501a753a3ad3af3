"""Exports that came whole, kept until what they hold is committed: a later load takes them up instead of asking again.

Each is two files in a folder of the database's own: the body as it was sent, and beside it what it is an export of. The
body gets its name only when all of it, and the other file, are on the disk.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from mixpanel_source.bodies import ExportBody, remove_stale
from mixpanel_source.downloads import Asked, Fetched
from mixpanel_source.errors import WarehouseError
from mixpanel_source.exports import EventFilter
from mixpanel_source.load_record import is_locked
from mixpanel_source.planner import Plan
from mixpanel_source.project import Project, spool_folder
from mixpanel_source.warehouse import kept_folder, sync
from mixpanel_source.windows import Window, settles_at

logger = logging.getLogger(__name__)

_DESCRIPTION = ".json"


class KeptExports:
    """The exports kept for loads of `filter_` into `database`, which the caller holds locked."""

    def __init__(self, database: Path, project: Project, filter_: EventFilter) -> None:
        self.folder = kept_folder(database)
        self._database = database
        self._project = project
        self._filter = filter_
        self._kept: dict[Window, tuple[Path, int]] = {}
        """The bodies, and their sizes."""
        self._lock = threading.Lock()
        self._of = {
            "origin": project.origin("export"),
            "project_id": project.credentials.project_id,
            "filter": {"events": list(filter_.events), "where": filter_.where},
        }

    @property
    def bytes(self) -> int:
        """On the disk."""
        with self._lock:
            return sum(size for _, size in self._kept.values())

    def take_up(
        self,
        plan: Plan,
        exported_at: Mapping[date, datetime],
        *,
        refresh: bool = False,
        since: datetime | None = None,
    ) -> list[tuple[Fetched, ExportBody]]:
        """The exports that an earlier load has left, and that need not be asked for again: `plan` is told of them.

        `exported_at` is when each day was exported last of what the database holds: nothing older takes its place. What
        no load can take up any more, and what is not whole, is removed; with `refresh`, all that was exported before
        `since`.
        """
        now = datetime.now(UTC)
        spool_folder()
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise WarehouseError(f"cannot make the folder {self.folder}: {error.strerror}") from error
        _remove_old(self.folder, now, self._project.spool_keep_hours)
        found: list[tuple[Fetched, ExportBody]] = []
        left: list[Path] = []
        for kept in self._of_use(now, exported_at, refresh=refresh, since=since):
            left.append(kept.path)
            if self._is_taken(kept, plan):
                body = ExportBody.reopened(kept.path, kept.facts)
                self._kept[kept.window] = kept.path, body.compressed_bytes
                asked = Asked(kept.window, self._filter)
                found.append((Fetched(asked, kept.requests, kept.exported_at, body, is_kept=True), body))
        _remove_others(self.folder, left)
        return found

    def tell(self, plan: Plan, exported_at: Mapping[date, datetime], *, refresh: bool = False) -> list[Window]:
        """As `take_up`, for a plan alone: nothing is opened or removed. The windows that need not be asked for."""
        kept = self._of_use(datetime.now(UTC), exported_at, refresh=refresh)
        return [one.window for one in kept if self._is_taken(one, plan)]

    def _of_use(
        self, now: datetime, exported_at: Mapping[date, datetime], *, refresh: bool, since: datetime | None = None
    ) -> Iterator[_Kept]:
        """Those of this project that a load can take up, the newest of a window first."""
        for kept in sorted(_kept_in(self.folder), key=lambda kept: (kept.window.first, now - kept.exported_at)):
            if (
                (not refresh or (since is not None and kept.exported_at >= since))
                and kept.is_whole
                and kept.of["origin"] == self._of["origin"]
                and kept.of["project_id"] == self._of["project_id"]
                and now - kept.exported_at <= timedelta(hours=self._project.spool_keep_hours)
                and self._is_over(kept.window, kept.exported_at)
                and all(day not in exported_at or exported_at[day] < kept.exported_at for day in kept.window.days)
            ):
                yield kept

    def _is_taken(self, kept: _Kept, plan: Plan) -> bool:
        """Whether `plan` is told of it: not where it is of another filter, or its days are not to be asked for."""
        return kept.of == self._of and plan.take(kept.window, kept.facts["lines"], kept.facts["decompressed_bytes"])

    def keep(self, fetched: Fetched, body: ExportBody) -> None:
        """Have it outlive this process. Not for a part of what is loaded, nor for days that were not over."""
        window = fetched.asked.window
        if self._project.spool_keep_hours == 0 or fetched.asked.filter != self._filter:
            return
        if not self._is_over(window, fetched.exported_at):
            return
        path = self.folder / body.name.removeprefix("mpload-")
        description = _description_of(path)
        try:
            body.sync()
            text = json.dumps(
                {
                    **self._of,
                    "database": str(self._database.absolute()),
                    "from_date": window.first.isoformat(),
                    "to_date": window.last.isoformat(),
                    "exported_at": fetched.exported_at.isoformat(),
                    "requests": fetched.requests,
                    "body": body.facts(),
                }
            )
            _write(description, text)
            body.keep(path)
            sync(self.folder)
        except BaseException as error:
            with suppress(OSError):
                description.unlink()
            if not isinstance(error, OSError):
                raise
            logger.warning("cannot keep an export in %s: %s", self.folder, error.strerror)
            return  # it is loaded all the same
        with self._lock:
            self._kept[window] = path, body.compressed_bytes

    def drop(self, window: Window) -> None:
        """What it holds is in the database, or of no use."""
        with self._lock:
            path, _ = self._kept.pop(window, (None, 0))
        if path is not None:
            _remove(path)

    def _is_over(self, window: Window, at: datetime) -> bool:
        return at >= settles_at(window.last, 0, self._project.calendar)


@dataclass(frozen=True)
class _Kept:
    path: Path
    database: Path
    window: Window
    exported_at: datetime
    requests: int
    of: dict[str, Any]
    """Origin, project and filter."""
    facts: dict[str, Any]

    @property
    def is_whole(self) -> bool:
        try:
            return self.path.stat().st_size == int(self.facts["compressed_bytes"])
        except OSError:
            return False

    def remove(self) -> None:
        _remove(self.path)


def _kept_in(folder: Path) -> Iterator[_Kept]:
    """Those that can be read."""
    for path in folder.glob(f"*{_DESCRIPTION}"):
        with suppress(OSError, ValueError, TypeError, KeyError):
            stored = json.loads(path.read_bytes())
            facts = stored["body"]
            yield _Kept(
                path.with_name(path.name.removesuffix(_DESCRIPTION)),
                Path(stored["database"]),
                Window(date.fromisoformat(stored["from_date"]), date.fromisoformat(stored["to_date"])),
                datetime.fromisoformat(stored["exported_at"]),
                int(stored["requests"]),
                {name: stored[name] for name in ("origin", "project_id", "filter")},
                {"encoding": str(facts["encoding"])}
                | {name: int(facts[name]) for name in ("compressed_bytes", "decompressed_bytes", "lines", "attempts")},
            )


def _remove_others(folder: Path, bodies: Collection[Path]) -> None:
    """All but `bodies` and what describes them."""
    left = {*bodies, *map(_description_of, bodies)}
    for path in list(folder.iterdir()):
        if path not in left:
            with suppress(OSError):
                path.unlink()


def _remove_old(own: Path, now: datetime, keep_hours: float) -> None:
    """What dead processes have left, and of databases that no load works on what is older than `keep_hours`."""
    remove_stale(own.parent)
    for folder in own.parent.iterdir():
        if folder == own or not folder.is_dir():
            continue
        remove_stale(folder)
        for kept in _kept_in(folder):
            if now - kept.exported_at > timedelta(hours=keep_hours) and not is_locked(kept.database):
                kept.remove()


def _description_of(body: Path) -> Path:
    return body.with_name(body.name + _DESCRIPTION)


def _remove(body: Path) -> None:
    """The body first: a description alone is nothing."""
    for path in (body, _description_of(body)):
        with suppress(OSError):
            path.unlink()


def _write(path: Path, text: str) -> None:
    """Whole and on the disk, or not at all."""
    temporary = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
