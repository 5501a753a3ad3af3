"""The request ledger: what was asked of Mixpanel in the last hour, by every process of this machine, or of several.

Mixpanel counts requests for a whole project, so one budget is shared. A permit is good for every limit at once (60 an
hour, 3 a second and 100 under way, for exports), and permits are given first come, first served.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from mixpanel_source import settings
from mixpanel_source.credentials import Secret
from mixpanel_source.errors import RateLimitError, WarehouseError
from mixpanel_source.ledger.clock import system_clock, wall_clock
from mixpanel_source.ledger.file_store import FileStore
from mixpanel_source.ledger.record import Limits, Record, Wait
from mixpanel_source.ledger.store import Key, MemoryStore, Opened, Store
from mixpanel_source.settings import ApiFamily

log = logging.getLogger(__name__)

SHORT_WAIT_S: Final = 5.0
"""A wait up to this long (a limit per second) is always slept, even where waiting for the hour is not allowed."""


class Spent(NamedTuple):
    """The budget of one API family, by its longest limit."""

    used: int
    allowed: int
    next_free_s: float
    """Seconds until a request may be sent; 0.0 if now."""


class RequestLedger:
    """Permits for one project's requests to one origin, counted by API family; usable by several threads.

    The counts are in the Postgres or Redis database at `url`; without it in the file `path`; without both in memory,
    for this object alone. `share` of the limit by the hour is used, the rest left to other tools. `clock` gives epoch
    seconds, in place of the machine's own; `sleep` has to move it. Methods raise `WarehouseError` if the ledger cannot
    be used.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        origin: str,
        project_id: str,
        limits: Mapping[ApiFamily, Sequence[tuple[int, float]]] = settings.LIMITS,
        at_once: Mapping[ApiFamily, int] = settings.MAX_CONCURRENT,
        share: float = 1.0,
        url: str | Secret | None = None,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path = path
        self.origin = origin
        self.project_id = project_id
        self._limits = limits
        self._at_once = at_once
        self._share = share
        self._sleep = sleep
        read_clock = wall_clock(clock) if clock else system_clock
        self._store: Store
        if url:
            self._store = _shared_store(Secret(url))
        else:
            self._store = FileStore(path, read_clock) if path else MemoryStore(read_clock)
        self._here = _RequestsHere()
        self._untold: list[tuple[ApiFamily, Callable[[Record, float], None]]] = []

    @contextmanager
    def permit(
        self,
        family: ApiFamily,
        *,
        wait: bool = True,
        max_wait_s: float | None = None,
        sleep: Callable[[float], None] | None = None,
        on_wait: Callable[[float], None] | None = None,
    ) -> Iterator[Permit]:
        """Waits until a request may go out, and holds its place among those under way at once.

        Raises `RateLimitError` where the rates make it wait for longer than `SHORT_WAIT_S` and `wait` is false, or for
        longer than `max_wait_s` in all. `sleep` takes the place of the ledger's; `on_wait` is told the seconds of a
        wait once, and again where it becomes longer.
        """
        id_ = secrets.token_hex(6)
        try:
            self._wait_for(family, id_, wait, max_wait_s, sleep or self._sleep, on_wait)
        except BaseException:
            self._tell(family, lambda record, now: record.leave(id_))
            raise
        finally:
            self._here.waits(family, id_, None)
        with self._here.under_way(family):
            try:
                yield Permit(lambda: self._tell(family, lambda record, now: record.arrived(id_, now)))
            finally:
                self._tell(family, lambda record, now: record.over(id_, now))

    def penalize(self, family: ApiFamily, seconds: float) -> None:
        """No request of any process for `seconds`, at most an hour: Mixpanel said that the limit is used up."""
        self._here.held(family, seconds)
        with self._changing(family) as opened:
            opened.record.hold(seconds, opened.now)

    def spent(self, family: ApiFamily) -> Spent:
        """The budget by the longest limit. Enters nothing, and makes no file."""
        record, now = self._store.read(self._key(family))
        limits = self._limits_of(family)
        allowed, period_s = limits.longest
        return Spent(record.used(period_s, now), allowed, record.wait_s(limits, now))

    def waits_s(self, family: ApiFamily) -> float:
        """How long the requests of this ledger that have not gone out yet still wait; 0.0 where one is under way, or
        none waits."""
        return self._here.waits_s(family)

    def _wait_for(
        self,
        family: ApiFamily,
        id_: str,
        may_wait: bool,
        max_wait_s: float | None,
        sleep: Callable[[float], None],
        on_wait: Callable[[float], None] | None,
    ) -> None:
        waited_s = told_s = 0.0
        while (wait := self._take(family, id_)) is not None:
            in_all_s = waited_s + wait.seconds
            if (wait.seconds > SHORT_WAIT_S and not may_wait) or (max_wait_s is not None and in_all_s > max_wait_s):
                raise self._used_up(family, wait.seconds)
            self._here.waits(family, id_, wait.seconds)
            if on_wait is not None and (not told_s or in_all_s > told_s + SHORT_WAIT_S):
                told_s = in_all_s
                on_wait(wait.seconds)
            sleep(wait.look_s)
            waited_s += wait.look_s

    def _take(self, family: ApiFamily, id_: str) -> Wait | None:
        with self._changing(family) as opened:
            return opened.record.take(id_, opened.holder, self._limits_of(family), opened.now)

    def _tell(self, family: ApiFamily, what: Callable[[Record, float], None]) -> None:
        """Enters it, at the latest before the next request: it is that one which fails if the ledger cannot be used."""
        self._untold.append((family, what))
        try:
            with self._changing(family):
                pass
        except WarehouseError as error:
            log.warning("%s", error.message)

    @contextmanager
    def _changing(self, family: ApiFamily) -> Iterator[Opened]:
        with self._store.changing(self._key(family)) as opened:
            untold = [(of, what) for of, what in self._untold if of == family]
            for _, what in untold:
                what(opened.record, opened.now)
            opened.record.tidy(self._limits_of(family), opened.now, opened.is_alive)
            yield opened
        for one in untold:
            with suppress(ValueError):  # another thread was first
                self._untold.remove(one)

    def _key(self, family: ApiFamily) -> Key:
        return Key(self.origin, self.project_id, family)

    def _limits_of(self, family: ApiFamily) -> Limits:
        return limits_of(family, self._limits, self._at_once, self._share)

    def _used_up(self, family: ApiFamily, needed: float) -> RateLimitError:
        limits = " and ".join(f"{allowed} in {period:.0f} s" for allowed, period in self._limits_of(family).rates)
        minutes = f"{needed / 60:.0f} minutes" if needed >= 120 else f"{needed:.0f} seconds"
        return RateLimitError(
            f"the request limit of project {self.project_id} is used up ({family} API: {limits})",
            hint=f"the next request is free in {minutes}: allow waiting, or run it again then",
            retry_after=needed,
        )


def _shared_store(url: Secret) -> Store:
    if url.reveal().startswith(("redis:", "rediss:")):
        from mixpanel_source.ledger.redis_store import RedisStore

        return RedisStore(url)
    from mixpanel_source.ledger.postgres_store import PostgresStore

    return PostgresStore(url)


def limits_of(
    family: ApiFamily,
    limits: Mapping[ApiFamily, Sequence[tuple[int, float]]],
    at_once: Mapping[ApiFamily, int],
    share: float,
) -> Limits:
    """Those of one API family, where `share` of its limit by the hour is used."""
    whole = Limits(limits[family], at_once[family])
    if family not in settings.HOURLY:
        return whole
    shared = [(max(1, int(n * share + 1e-9)) if s == whole.longest[1] else n, s) for n, s in whole.rates]
    return whole._replace(rates=shared)


class Permit:
    """Leave to send one request."""

    def __init__(self, arrived: Callable[[], None]) -> None:
        self.arrived = arrived
        """To be called when the answer begins: until then the request may still be on its way."""


class _RequestsHere:
    """What the requests of one ledger do now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: dict[tuple[ApiFamily, str], float] = {}
        """By request, the end of its wait as `time.monotonic`."""
        self._under_way: Counter[ApiFamily] = Counter()

    def waits(self, family: ApiFamily, id_: str, seconds: float | None) -> None:
        with self._lock:
            if seconds is None:
                self._until.pop((family, id_), None)
            else:
                self._until[family, id_] = time.monotonic() + seconds

    def held(self, family: ApiFamily, seconds: float) -> None:
        """After a 429 its request waits outside."""
        self.waits(family, "held", seconds)

    @contextmanager
    def under_way(self, family: ApiFamily) -> Iterator[None]:
        with self._lock:
            self._under_way[family] += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way[family] -= 1

    def waits_s(self, family: ApiFamily) -> float:
        with self._lock:
            if self._under_way[family]:
                return 0.0
            now = time.monotonic()
            left = (until - now for (of, _), until in self._until.items() if of == family)
            return min((seconds for seconds in left if seconds > 0), default=0.0)
