"""What loads of some size would take: the planner and the request ledger themselves, on a clock that jumps.

A load is played as `load` runs it: exports of `Plan`'s windows, several under way at once as `Downloads` allows, each
with a permit of the ledger's `Record`; packages that are written as `PackageLimits` has it; then the profiles, page by
page. Only what Mixpanel, the network and the processor do is supposed: first bytes, bytes a second, seconds of a CPU.
Kills, and days that are asked for in parts, are not played.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Final, Literal, TypeVar

from mixpanel_source import settings
from mixpanel_source.day_counts import COUNT_REQUESTS
from mixpanel_source.downloads import LOOK_EVERY_S
from mixpanel_source.errors import ConfigError
from mixpanel_source.ledger.record import Limits, Record
from mixpanel_source.planner import Plan, WindowLimits, requests_saved
from mixpanel_source.rate_limit import SHORT_WAIT_S, limits_of
from mixpanel_source.settings import PACKAGE_BYTES, PACKAGE_S, ApiFamily
from mixpanel_source.windows import ONE_DAY, Window, days_between

Bound = Literal["quota", "cpu", "server"]
"""What the time goes to: the request limits, the processors, or Mixpanel's answers on their way."""

_PAGE_PROFILES: Final = 1000
"""On a page of engage, where nothing else is asked for. Mixpanel docs: Query Profiles (reference/engage-query)."""
_FIRST_DAY: Final = date(2024, 1, 1)


@dataclass(frozen=True)
class Machine:
    """What loads into DuckDB take of the machine they run on. The defaults were measured on two cores of a virtual
    machine: `machine_speed.measure` measures another."""

    cores: float = 2.0
    event_s: float = 15e-6
    """Seconds of a CPU for one event, from the answer to the database."""
    typed_event_s: float = 15e-6
    """And for its row in the typed tables."""
    package_s: float = 0.3
    """Of a CPU for each load package, however little it holds."""
    start_s: float = 2.0
    """Of a CPU until a process has begun to load."""
    threads: float = 1.0
    """Cores that one load keeps busy."""
    database_share: float = 0.45
    """Bytes in the database for each byte of an event as it is exported."""

    def __post_init__(self) -> None:
        for name, least in (("cores", 0.1), ("threads", 0.1), ("event_s", 0), ("package_s", 0), ("start_s", 0)):
            _at_least(name, getattr(self, name), least)


@dataclass(frozen=True)
class Server:
    """What Mixpanel and the network take."""

    first_byte_s: float = 5.0
    """From an export request to the first byte of its answer."""
    bytes_per_s: float = 10e6
    """Of an answer as it is sent, compressed."""
    page_s: float = 1.0
    """A page of profiles, and every other answer of the Query API."""
    compression: float = 8.0
    """Bytes of an export for each byte of it that is sent."""
    failing: float = 0.0
    """Share of the exports asked for that end half way, and are asked for again."""

    def __post_init__(self) -> None:
        _at_least("first_byte_s", self.first_byte_s, 0)
        _at_least("bytes_per_s", self.bytes_per_s, 1)
        if not 0 <= self.failing < 1:
            raise ConfigError(f"failing is a share from 0 and under 1, not {self.failing:g}")


@dataclass(frozen=True)
class Amount:
    """What is to be loaded: the same of each project."""

    events_per_day: int
    days: int
    projects: int = 1
    bytes_per_event: float = 800.0
    """Of a line of the export."""
    profiles: int = 0

    def __post_init__(self) -> None:
        _at_least("events_per_day", self.events_per_day, 0)
        _at_least("days", self.days, 1)
        _at_least("projects", self.projects, 1)
        _at_least("bytes_per_event", self.bytes_per_event, 1)
        _at_least("profiles", self.profiles, 0)
        if self.days > (date.max - _FIRST_DAY).days:
            raise ConfigError(f"days is a number up to a hundred years, not {self.days}")

    @property
    def events(self) -> int:
        return self.events_per_day * self.days * self.projects


@dataclass(frozen=True)
class Simulation:
    """What came out. `seconds` are those of the clock, from the start of the first load to the end of the last."""

    amount: Amount
    workers: int
    machine: Machine
    server: Server
    seconds: float
    seconds_without: Mapping[Bound, float]
    """The same where that took no time."""
    requests: Mapping[ApiFamily, int]
    quota_s: float
    """Of one project, whose requests are the limit's alone: where neither processors nor answers take any time."""
    cpu_s: float
    received_bytes: int
    spool_bytes: int
    """On the disk of all workers at the most: exports and the packages that are made of them."""
    database_bytes: int
    packages: int

    @property
    def bound_by(self) -> Bound:
        """Without this the loads would be over soonest."""
        return min(self.seconds_without, key=self.seconds_without.__getitem__)


def simulate(
    amount: Amount,
    *,
    workers: int = 1,
    machine: Machine | None = None,
    server: Server | None = None,
    windows: WindowLimits = WindowLimits(),
    request_share: float = 1.0,
    concurrent_exports: int = settings.CONCURRENT_EXPORTS,
    max_spool_bytes: int = settings.MAX_SPOOL_BYTES,
    count_events: bool = True,
    typed_tables: bool = True,
    limits: Mapping[ApiFamily, Sequence[tuple[int, float]]] = settings.LIMITS,
) -> Simulation:
    """Loads of `amount` into empty databases by `workers` processes, each of which loads one project after the other.

    `limits` may be others than Mixpanel's, as a trial's are. Raises ConfigError.
    """
    _at_least("workers", workers, 1)
    if not 0 < request_share <= 1:
        raise ConfigError(f"request_share is a share over 0 and up to 1, not {request_share:g}")
    machine, server = machine or Machine(cores=available_cores()), server or Server()
    how = _How(windows, concurrent_exports, max_spool_bytes, count_events, typed_tables)
    quota = {family: limits_of(family, limits, settings.MAX_CONCURRENT, request_share) for family in limits}
    free_machine = replace(machine, event_s=0, typed_event_s=0, package_s=0, start_s=0)
    free_server = replace(server, first_byte_s=0, bytes_per_s=math.inf, page_s=0)

    def play(quota: _Quota, machine: Machine, server: Server, projects: int = amount.projects) -> _Played:
        played = _Played(replace(amount, projects=projects), machine, server, quota, how)
        played.run(workers)
        return played

    played = play(quota, machine, server)
    without: dict[Bound, float] = {
        "quota": play(_NO_QUOTA, machine, server).now,
        "cpu": play(quota, free_machine, server).now,
        "server": play(quota, machine, free_server).now,
    }
    return Simulation(
        amount,
        workers,
        machine,
        server,
        played.now,
        without,
        played.requests,
        play(quota, free_machine, free_server, projects=1).now,
        played.cpu_s,
        round(played.received_bytes),
        round(played.spool_peak),
        round(amount.events * amount.bytes_per_event * machine.database_share),
        played.packages,
    )


def available_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- what is played

_Quota = Mapping[ApiFamily, Limits]

_NO_QUOTA: Final[_Quota] = {family: Limits([(10**9, 1.0)], 10**9) for family in settings.LIMITS}


@dataclass(frozen=True)
class _How:
    windows: WindowLimits
    concurrent_exports: int
    max_spool_bytes: int
    count_events: bool
    typed_tables: bool


@dataclass(frozen=True)
class _Sleep:
    seconds: float


@dataclass(eq=False)
class _Compute:
    """Seconds of a CPU, spread over so many cores."""

    left_s: float
    threads: float
    task: _Task | None = None


class _Signal:
    """Wakes who waits for it."""

    def __init__(self) -> None:
        self.waiting: list[tuple[_Task, _Wait]] = []


@dataclass(eq=False)
class _Wait:
    """For a signal, at the most so long."""

    signal: _Signal
    at_most_s: float = math.inf
    is_over: bool = False


_Wanted = _Sleep | _Compute | _Wait
_T = TypeVar("_T")
_Doing = Generator[_Wanted, None, _T]
_Task = _Doing[None]


@dataclass(eq=False)
class _Export:
    window: Window
    events: int
    compressed_bytes: float
    waits_until: float | None = None
    """Of a permit; None: it has one."""
    is_here: bool = False


class _Played:
    """The clock, the processors, and all loads on them."""

    def __init__(self, amount: Amount, machine: Machine, server: Server, quota: _Quota, how: _How) -> None:
        self.amount = amount
        self.machine = machine
        self.server = server
        self.quota = quota
        self.how = how
        self.now = 0.0
        self.cpu_s = 0.0
        self.received_bytes = 0.0
        self.packages = 0
        self.requests: dict[ApiFamily, int] = {"export": 0, "query": 0}
        self.spool_bytes = self.spool_peak = 0.0
        self._failing = 0.0
        self._ids = map(str, itertools.count())
        self._ready: deque[_Task] = deque()
        self._asleep: list[tuple[float, int, _Task, _Wait | None]] = []
        self._order = itertools.count()
        self._computing: list[_Compute] = []

    def run(self, workers: int) -> None:
        left = deque(range(self.amount.projects))
        self._ready.extend(self._worker(left) for _ in range(min(workers, self.amount.projects)))
        while True:
            while self._ready:
                self._step(self._ready.popleft())
            if not self._go_on():
                return

    def begin(self, task: _Task) -> None:
        self._ready.append(task)

    def wake(self, signal: _Signal) -> None:
        waiting, signal.waiting = signal.waiting, []
        for task, wait in waiting:
            self._wake_from(task, wait)

    def compute(self, seconds: float, threads: float = 1.0) -> _Compute:
        self.cpu_s += seconds
        return _Compute(seconds, threads)

    def fails(self) -> bool:
        """Whether this attempt is one of them: they are spread evenly over all."""
        self._failing += self.server.failing
        if self._failing < 1:
            return False
        self._failing -= 1
        return True

    def spooled(self, size: float) -> None:
        self.spool_bytes += size
        self.spool_peak = max(self.spool_peak, self.spool_bytes)

    def permitted(self, record: Record, family: ApiFamily, export: _Export | None = None) -> _Doing[str]:
        """Waits for a permit as `RequestLedger.permit` does, and counts the request, whose id it returns."""
        limits, id_ = self.quota[family], next(self._ids)
        while True:
            record.tidy(limits, self.now, lambda holder: True)
            wait = record.take(id_, "me", limits, self.now)
            if wait is None:
                break
            if export is not None:
                export.waits_until = self.now + wait.seconds
            yield _Sleep(wait.look_s)
        if export is not None:
            export.waits_until = None
        self.requests[family] += 1
        return id_

    def _worker(self, left: deque[int]) -> _Task:
        while left:
            left.popleft()
            yield from _Load(self).run()

    def _step(self, task: _Task) -> None:
        try:
            wanted = next(task)
        except StopIteration:
            return
        if isinstance(wanted, _Sleep):
            self._sleep(wanted.seconds, task, None)
        elif isinstance(wanted, _Wait):
            wanted.signal.waiting.append((task, wanted))
            if wanted.at_most_s < math.inf:
                self._sleep(wanted.at_most_s, task, wanted)
        elif wanted.left_s <= 0:
            self._ready.append(task)
        else:
            wanted.task = task
            self._computing.append(wanted)

    def _sleep(self, seconds: float, task: _Task, wait: _Wait | None) -> None:
        heapq.heappush(self._asleep, (self.now + seconds, next(self._order), task, wait))

    def _wake_from(self, task: _Task, wait: _Wait | None) -> None:
        if wait is not None:
            if wait.is_over:
                return
            wait.is_over = True
        self._ready.append(task)

    def _go_on(self) -> bool:
        """To when the next task goes on; False where there is none."""
        if not (self._asleep or self._computing):
            return False
        wanted = sum(one.threads for one in self._computing)
        share = min(1.0, self.machine.cores / wanted) if wanted else 1.0
        soonest = min((one.left_s / (one.threads * share) for one in self._computing), default=math.inf)
        woken = self._asleep[0][0] - self.now if self._asleep else math.inf
        passes = max(0.0, min(soonest, woken))
        self.now += passes
        for one in self._computing:
            one.left_s -= passes * one.threads * share
        over = [one for one in self._computing if one.left_s <= 1e-9]
        self._computing = [one for one in self._computing if one.left_s > 1e-9]
        self._ready.extend(one.task for one in over if one.task is not None)
        while self._asleep and self._asleep[0][0] <= self.now:
            self._wake_from(*heapq.heappop(self._asleep)[2:])
        return True


class _Load:
    """Of one project: what `load`, `Exports` and `Downloads` do, without the data."""

    def __init__(self, played: _Played) -> None:
        self._played = played
        self._how = played.how
        amount = played.amount
        self._days = list(days_between(_FIRST_DAY, _FIRST_DAY + (amount.days - 1) * ONE_DAY))
        self._plan = Plan(self._days, played.how.windows)
        self._records: dict[ApiFamily, Record] = {"export": Record(), "query": Record()}
        self._exports: list[_Export] = []
        self._has_one_come = False
        self._arrived = _Signal()

    def run(self) -> _Task:
        played = self._played
        yield played.compute(played.machine.start_s, played.machine.threads)
        yield from self._count()
        while not (self._plan.is_done and not self._exports):
            yield from self._package()
        yield from self._profiles()

    def _count(self) -> _Task:
        """As `day_counts.tell_counts`."""
        unknown = self._plan.days_unknown()
        if not self._how.count_events or requests_saved(len(unknown), self._how.windows) <= COUNT_REQUESTS:
            return
        for _ in range(COUNT_REQUESTS):
            yield from self._query()
        self._plan.tell(dict.fromkeys(unknown, self._played.amount.events_per_day))

    def _query(self) -> _Task:
        played, record = self._played, self._records["query"]
        id_ = yield from played.permitted(record, "query")
        yield _Sleep(played.server.page_s)
        record.over(id_, played.now)

    def _package(self) -> _Task:
        """As `resources.events.events_package`, and its writing."""
        played, machine, amount = self._played, self._played.machine, self._played.amount
        started = None
        size = largest = spooled = 0.0
        events = 0
        while not (self._plan.is_done and not self._exports):
            self._ask_ahead()
            while not any(export.is_here for export in self._exports):
                yield _Wait(self._arrived)
            export = next(export for export in self._exports if export.is_here)
            self._exports.remove(export)
            started = played.now if started is None else started
            self._ask_ahead()
            yield played.compute(export.events * machine.event_s, machine.threads)
            self._plan.read(export.window, is_odd=False)
            self._ask_ahead()
            events += export.events
            read_bytes = export.events * amount.bytes_per_event
            size, largest = size + read_bytes, max(largest, read_bytes)
            played.spooled(read_bytes)
            spooled += read_bytes + export.compressed_bytes
            left_s = PACKAGE_S - (played.now - started)
            if size + largest > PACKAGE_BYTES or left_s <= 0:
                break
            if (yield from self._is_held_up(left_s)):
                break
        typed_s = events * machine.typed_event_s if self._how.typed_tables else 0.0
        yield played.compute(machine.package_s, machine.threads)
        yield played.compute(typed_s, machine.threads)
        played.packages += 1
        played.spooled(-spooled)

    def _is_held_up(self, for_s: float) -> _Doing[bool]:
        """As `Downloads.is_held_up`."""
        played = self._played
        until = played.now + for_s
        while self._exports and not any(export.is_here for export in self._exports):
            left_s = until - played.now
            if left_s <= 0 or self._waits_long():
                return True
            yield _Wait(self._arrived, min(left_s, LOOK_EVERY_S))
        return False

    def _waits_long(self) -> bool:
        """As `RequestLedger.waits_s`: all that is not here yet."""
        coming = [export for export in self._exports if not export.is_here]
        if any(export.waits_until is None for export in coming):
            return False
        now = self._played.now
        return min((export.waits_until or now for export in coming), default=now) - now > SHORT_WAIT_S

    def _ask_ahead(self) -> None:
        """As `Exports._ask_ahead`."""
        while self._may_begin():
            coming = [export.window for export in self._exports if not export.is_here]
            unread = [export.window for export in self._exports if export.is_here]
            window = self._plan.next(coming, unread)
            if window is None:
                return
            amount = self._played.amount
            events = amount.events_per_day * len(window)
            sent = events * amount.bytes_per_event / self._played.server.compression
            export = _Export(window, events, sent)
            self._exports.append(export)
            self._played.begin(self._download(export))

    def _may_begin(self) -> bool:
        """As `Downloads.may_begin`."""
        if not self._exports:
            return True
        if len(self._exports) >= self._how.concurrent_exports or not self._has_one_come:
            return False
        if sum(export.compressed_bytes for export in self._exports) >= self._how.max_spool_bytes:
            return False
        record, limits, now = self._records["export"], self._played.quota["export"], self._played.now
        silent = sum(not export.is_here for export in self._exports)
        allowed, period_s = limits.longest
        return not silent or (
            record.used(period_s, now) + silent < allowed and record.wait_s(limits, now) <= SHORT_WAIT_S
        )

    def _download(self, export: _Export) -> _Task:
        played, record = self._played, self._records["export"]
        for attempt in itertools.count():
            export.waits_until = played.now
            id_ = yield from played.permitted(record, "export", export)
            yield _Sleep(played.server.first_byte_s)
            record.arrived(id_, played.now)
            has_failed = played.fails()
            size = export.compressed_bytes / (2 if has_failed else 1)
            played.spooled(size)
            yield _Sleep(size / played.server.bytes_per_s)
            record.over(id_, played.now)
            played.received_bytes += size
            if not has_failed:
                break
            played.spooled(-size)
            yield _Sleep(min(settings.BACKOFF_FIRST_S * 2**attempt, settings.BACKOFF_MAX_S))
        export.is_here = self._has_one_come = True
        self._plan.came(export.window, export.events, round(export.events * played.amount.bytes_per_event))
        played.wake(self._arrived)

    def _profiles(self) -> _Task:
        """Page by page, then one package."""
        played, machine = self._played, self._played.machine
        profiles = played.amount.profiles
        if not profiles:
            return
        for _ in range(-(-profiles // _PAGE_PROFILES)):
            yield from self._query()
        per_profile_s = machine.event_s + (machine.typed_event_s if self._how.typed_tables else 0.0)
        yield played.compute(machine.package_s, machine.threads)
        yield played.compute(profiles * per_profile_s, machine.threads)
        played.packages += 1


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least or (value == math.inf and name != "bytes_per_s"):
        raise ConfigError(f"{name} is a number from {least:g}, not {value:g}")
