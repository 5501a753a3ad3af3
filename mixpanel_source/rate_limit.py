"""The request ledger: what was asked of Mixpanel in the last hour, by every process of this machine.

Mixpanel counts requests for a whole project, so one budget is shared through a small SQLite file. Several limits (60 an
hour and 3 a second) are kept at once. `begin immediate` lets one process in at a time, and the operating
system frees the file if that process dies.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from mixpanel_source import settings
from mixpanel_source.errors import RateLimitError, WarehouseError
from mixpanel_source.settings import ApiFamily

MARGIN_S: Final = 0.05
"""Added to every period: a request reaches Mixpanel a little after it was entered here."""
SHORT_WAIT_S: Final = 5.0
"""A wait up to this long (a limit per second) is always slept, even where waiting for the hour is not allowed."""
LONGEST_HOLD_S: Final = 3600.0 + 60.0
CLOCK_STEP_S: Final = 5.0
"""An entry further than this in the future was made before the wall clock was set back, and is dropped."""
LOCK_TIMEOUT_S: Final = 30.0

Limits = Mapping[ApiFamily, Sequence[tuple[int, float]]]


class Spent(NamedTuple):
    """The budget of one API family, by its longest limit."""

    used: int
    allowed: int
    next_free_s: float
    """Seconds until a request may be sent; 0.0 if now."""


@dataclass
class _Record:
    """What is known of one (origin, project, family)."""

    hits: list[float] = field(default_factory=list)
    """Epoch seconds of each request within the longest period, oldest first."""
    hold: tuple[float, float] = (0.0, 0.0)
    """(entered, until): no request before `until`, as a 429 asked for."""


class RequestLedger:
    """Permits for one project's requests to one origin, counted by API family.

    `path` None keeps the counts in memory, for this object alone. `clock` gives epoch seconds; `sleep` has to move it.
    Methods raise `WarehouseError` if the file cannot be used.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        origin: str,
        project_id: str,
        limits: Limits = settings.LIMITS,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path = path
        self.origin = origin
        self.project_id = project_id
        self._limits = limits
        self._clock = clock
        self._sleep = sleep
        self._memory: dict[ApiFamily, _Record] = {}
        self._lock = threading.Lock()

    def try_acquire(self, family: ApiFamily) -> float:
        """Enters a request and returns 0.0, or enters nothing and returns the seconds to wait."""
        with self._record(family) as record:
            now = self._clock()
            self._prune(family, record, now)
            wait = self._wait(family, record, now)
            if wait == 0.0:
                record.hits.append(now)
            return wait

    def acquire(
        self,
        family: ApiFamily,
        *,
        wait: bool = True,
        max_wait_s: float | None = None,
        sleep: Callable[[float], None] | None = None,
    ) -> float:
        """Enters a request as soon as that is allowed; the seconds slept for it.

        Raises `RateLimitError` where a wait is longer than `SHORT_WAIT_S` and `wait` is false, or where all waits
        together would be longer than `max_wait_s`.
        """
        waited = 0.0
        while (needed := self.try_acquire(family)) > 0.0:
            too_long = max_wait_s is not None and waited + needed > max_wait_s
            if too_long or (needed > SHORT_WAIT_S and not wait):
                raise self._used_up(family, needed)
            (sleep or self._sleep)(needed)
            waited += needed
        return waited

    def penalize(self, family: ApiFamily, seconds: float) -> None:
        """No request of any process for `seconds`, at most an hour: Mixpanel said that the limit is used up."""
        with self._record(family) as record:
            now = self._clock()
            self._prune(family, record, now)
            until = now + min(max(seconds, 0.0), LONGEST_HOLD_S)
            record.hold = (now, max(record.hold[1], until))

    def spent(self, family: ApiFamily) -> Spent:
        """The budget by the longest limit. Enters nothing, and makes no file."""
        record = self._read(family)
        now = self._clock()
        self._prune(family, record, now)
        allowed, period = max(self._limits[family], key=lambda limit: limit[1])
        used = sum(hit + period + MARGIN_S > now for hit in record.hits)
        return Spent(used, allowed, self._wait(family, record, now))

    @contextmanager
    def slot(self, family: ApiFamily) -> Iterator[None]:
        """Holds one of the places for requests under way at once, in this process (`settings.MAX_CONCURRENT`)."""
        with _slots(self.origin, self.project_id, family):
            yield

    def _prune(self, family: ApiFamily, record: _Record, now: float) -> None:
        longest = max(period for _, period in self._limits[family]) + MARGIN_S
        record.hits = [hit for hit in record.hits if now - longest < hit <= now + CLOCK_STEP_S]
        entered, until = record.hold
        if until <= now or entered > now + CLOCK_STEP_S:
            record.hold = (0.0, 0.0)

    def _wait(self, family: ApiFamily, record: _Record, now: float) -> float:
        free_at = record.hold[1]
        for allowed, period in self._limits[family]:
            if len(record.hits) >= allowed:
                free_at = max(free_at, record.hits[-allowed] + period + MARGIN_S)
        # Below a millisecond it is the rounding of epoch seconds, and sleeping it may not move the clock.
        return wait if (wait := free_at - now) >= 0.001 else 0.0

    def _used_up(self, family: ApiFamily, needed: float) -> RateLimitError:
        limits = " and ".join(f"{allowed} in {period:.0f} s" for allowed, period in self._limits[family])
        minutes = f"{needed / 60:.0f} minutes" if needed >= 120 else f"{needed:.0f} seconds"
        return RateLimitError(
            f"the request limit of project {self.project_id} is used up ({family} API: {limits})",
            hint=f"the next request is free in {minutes}: allow waiting, or run it again then",
            retry_after=needed,
        )

    @contextmanager
    def _record(self, family: ApiFamily) -> Iterator[_Record]:
        """The family's record for changing; nobody else has it meanwhile."""
        with self._lock:
            if self.path is None:
                yield self._memory.setdefault(family, _Record())
                return
            with _database_errors(self.path), closing(_connect(self.path)) as connection:
                connection.execute("begin immediate")
                record = _load(connection, self._key(family))
                yield record
                text = json.dumps({"hits": sorted(record.hits), "hold": record.hold})
                connection.execute("insert or replace into ledger values (?, ?, ?, ?)", (*self._key(family), text))
                connection.execute("commit")

    def _read(self, family: ApiFamily) -> _Record:
        if self.path is None:
            with self._lock:
                kept = self._memory.get(family, _Record())
                return _Record(list(kept.hits), kept.hold)
        if not self.path.exists():
            return _Record()
        with _database_errors(self.path):
            try:
                with closing(_connect_read_only(self.path)) as connection:
                    return _load(connection, self._key(family))
            except sqlite3.OperationalError:  # what a process that was killed left half written is to be undone first
                with closing(_connect(self.path)) as connection:
                    return _load(connection, self._key(family))

    def _key(self, family: ApiFamily) -> tuple[str, str, str]:
        return self.origin, self.project_id, family


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite itself would make it readable by all
    # One connection for each use: they are short, and none is shared by threads or inherited by a fork.
    connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
    try:
        connection.execute(
            "create table if not exists ledger"
            " (origin text, project_id text, family text, record text, primary key (origin, project_id, family))"
        )
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_read_only(path: Path) -> sqlite3.Connection:
    """Works where nothing may be written, too."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=LOCK_TIMEOUT_S)


def _load(connection: sqlite3.Connection, key: tuple[str, str, str]) -> _Record:
    row = connection.execute(
        "select record from ledger where origin = ? and project_id = ? and family = ?", key
    ).fetchone()
    if row is None:
        return _Record()
    try:
        stored = json.loads(row[0])
        entered, until = stored["hold"]
        return _Record([float(hit) for hit in stored["hits"]], (float(entered), float(until)))
    except (ValueError, TypeError, KeyError):
        return _Record()


@contextmanager
def _database_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        hints = {"locked": "another process holds it: try again", "full": "free some space, or move MP_DATA_DIR"}
        hint = next((hint for sign, hint in hints.items() if sign in str(error)), f"remove {path}: it only counts")
        raise WarehouseError(f"the request ledger {path} cannot be used: {error}", hint=hint) from error
    except OSError as error:
        raise WarehouseError(
            f"the request ledger {path} cannot be used: {error.strerror}", hint="MP_DATA_DIR moves the data folder"
        ) from error


_semaphores: dict[tuple[str, str, ApiFamily], threading.BoundedSemaphore] = {}
_semaphores_lock = threading.Lock()


def _slots(origin: str, project_id: str, family: ApiFamily) -> threading.BoundedSemaphore:
    """Shared by all ledgers of the process that count for the same project."""
    with _semaphores_lock:
        key = (origin, project_id, family)
        if key not in _semaphores:
            _semaphores[key] = threading.BoundedSemaphore(settings.MAX_CONCURRENT[family])
        return _semaphores[key]
