"""Three years of history at 100,000 events a day, made as they are served: memory, time per day and spool stay flat.

By `mpload load` without the limits of requests. `size` scales the days, and below a tenth the events of each, too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from statistics import mean
from typing import Final

from mixpanel_source.sandbox import Sandbox, SandboxServer
from mixpanel_source.sandbox.data import Block, EventStore, LocalTime
from soak.processes import MIB, run_mpload, write_account
from soak.served import FIRST_DAY, day_number, reading
from soak.trial import Options, Outcome

DAYS = 1095
EVENTS_A_DAY = 100_000
FEW_EVENTS_A_DAY = 500
FLAT_FROM_DAYS: Final = 100
"""With fewer, a tenth of them is less than an export, and tells nothing."""
NAMES = (b"Page Viewed", b"Searched", b"Item Added", b"Order Placed")
MOST_MEMORY = 1.25
MOST_SECONDS = 1.5
"""Times those of the earlier tenths, in the last ones."""
ALLOWANCE_BYTES = 64 * MIB
MOST_SPOOL_BYTES = 2048 * MIB

_LINE = (
    b'{"event":"%b","properties":{"time":%d,"distinct_id":"user-%d","$insert_id":"%x-%d","mp_processing_time_ms":%d,'
    b'"$browser":"Chrome","$city":"Lyon","$os":"Mac OS X","amount":%d.25,"n":%d,"plan":"%b","referrer":null,'
    b'"$current_url":"https://example.com/items/%d","tags":["a","b"]}}\n'
)


class GeneratedEvents(EventStore):
    """Days that are made when they are asked for, the same each time, and forgotten."""

    def __init__(self, days: int, events_a_day: int) -> None:
        super().__init__(None, LocalTime("UTC", legacy=False))
        self._count = days
        self._events_a_day = events_a_day

    def days(self, from_day: date, to_day: date) -> list[date]:
        days = (day_number(n) for n in range(self._count))
        return [day for day in days if from_day <= day <= to_day]

    def is_ready(self, day: date, in_ms: bool) -> bool:
        return False

    def block(self, day: date, in_ms: bool) -> Block:
        return Block(b"".join(self._lines(day)))

    def _lines(self, day: date) -> Iterator[bytes]:
        midnight = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
        ordinal, step = day.toordinal(), 86_400_000 // self._events_a_day
        for n in range(self._events_a_day):
            at = midnight + n * step
            some = n * 2654435761 % 1_000_003
            yield _LINE % (
                NAMES[some % 4], at, some % 40_000, some, ordinal * 1_000_000 + n, at + 5000, some % 900, n,
                (b"free", b"pro", b"team")[some % 3], some % 700,
            )  # fmt: skip


@dataclass
class _Look:
    seconds: float
    rss_bytes: int
    cpu_s: float
    spool_bytes: int


@dataclass
class _Watch:
    """Looks at the memory, the CPU and the spool of a load."""

    spool: Path
    started: float = field(default_factory=time.monotonic)
    looks: list[_Look] = field(default_factory=list)

    def look(self, rss_bytes: int, cpu_s: float) -> None:
        self.looks.append(_Look(time.monotonic() - self.started, rss_bytes, cpu_s, _bytes_in(self.spool)))


def _bytes_in(folder: Path) -> int:
    size = 0
    for path in folder.glob("*"):
        try:
            size += path.stat().st_size
        except OSError:  # gone meanwhile
            continue
    return size


def run(options: Options) -> Outcome:
    outcome = Outcome()
    days = options.scaled(DAYS)
    events_a_day = EVENTS_A_DAY if options.size >= 0.1 else max(FEW_EVENTS_A_DAY, round(EVENTS_A_DAY * options.size))
    sandbox = Sandbox(limits=False, gzip_level=1)
    sandbox.events = GeneratedEvents(days, events_a_day)
    home = options.folder / "home"
    write_account(home)
    database = options.folder / "m.duckdb"
    watch = _Watch(home / "data" / "spool")
    with SandboxServer(sandbox) as server:
        finished = run_mpload(
            ["load", "events", "--db", str(database), "--from", str(FIRST_DAY), "--to", str(day_number(days - 1)),
             "--no-count-events"],
            server.url, home, most_s=math.inf, on_look=watch.look, without_limits=True,
        )  # fmt: skip
    if finished.status:
        outcome.wrong.append(f"the load ended with {finished.status}: {finished.err[-1500:]}")
        return outcome
    tenths = _tenths(database, days, watch)
    outcome.figures = {
        "days": days,
        "events": days * events_a_day,
        "seconds": round(finished.seconds),
        "events a second": round(days * events_a_day / finished.seconds),
        "most memory": f"{finished.peak_bytes / MIB:.0f} MiB",
        "database": f"{database.stat().st_size / MIB:.0f} MiB",
        "by tenth of the days: seconds a day": [round(tenth.seconds_a_day, 2) for tenth in tenths],
        "seconds of a CPU a day": [round(tenth.cpu_s_a_day, 2) for tenth in tenths],
        "most memory, MiB": [round(tenth.rss_bytes / MIB) for tenth in tenths],
        "most in the spool, MiB": [round(tenth.spool_bytes / MIB) for tenth in tenths],
    }
    _check_rows(database, days, events_a_day, outcome)
    _check_flat(tenths, days, outcome)
    return outcome


@dataclass
class _Tenth:
    seconds_a_day: float
    cpu_s_a_day: float
    rss_bytes: int
    spool_bytes: int


def _tenths(database: Path, days: int, watch: _Watch) -> list[_Tenth]:
    """By when the exports of the days were asked for, which `event_days` knows."""
    with reading(database) as ask:
        asked_at = [at.timestamp() for (at,) in ask("select exported_at from event_days order by day")]
    now, elapsed = time.time(), time.monotonic() - watch.started
    began = now - elapsed
    ends = [watch.looks[-1].seconds if n == 10 else asked_at[days * n // 10] - began for n in range(11)]
    tenths = []
    for n in range(10):
        looks = [look for look in watch.looks if ends[n] <= look.seconds <= ends[n + 1]]
        count = days * (n + 1) // 10 - days * n // 10
        tenths.append(
            _Tenth(
                (ends[n + 1] - ends[n]) / max(1, count),
                (_cpu_s(watch, ends[n + 1]) - _cpu_s(watch, ends[n])) / max(1, count),
                max((look.rss_bytes for look in looks), default=0),
                max((look.spool_bytes for look in looks), default=0),
            )
        )
    return tenths


def _cpu_s(watch: _Watch, at: float) -> float:
    return max((look.cpu_s for look in watch.looks if look.seconds <= at), default=0.0)


def _check_rows(database: Path, days: int, events_a_day: int, outcome: Outcome) -> None:
    with reading(database) as ask:
        found = ask("select count(*), count(distinct event_date), sum((properties->>'n')::bigint) from events")
        if found != [(days * events_a_day, days, days * events_a_day * (events_a_day - 1) // 2)]:
            outcome.wrong.append(f"{found} are loaded")
        if unlike := ask(f"select event_date from events group by all having count(*) <> {events_a_day}"):
            outcome.wrong.append(f"{len(unlike)} days have another number of events than {events_a_day}")


def _check_flat(tenths: list[_Tenth], days: int, outcome: Outcome) -> None:
    """The last two tenths against the second to the fifth: the first one grows to what it needs.

    Time is that of the CPU: what else the machine does changes it least.
    """
    if (spool := max(tenth.spool_bytes for tenth in tenths)) > MOST_SPOOL_BYTES:
        outcome.wrong.append(f"the spool has {spool / MIB:.0f} MiB")
    if days < FLAT_FROM_DAYS:
        return
    before, last = tenths[1:5], tenths[-2:]
    most, in_the_end = (max(tenth.rss_bytes for tenth in some) for some in (before, last))
    if in_the_end > MOST_MEMORY * most + ALLOWANCE_BYTES:
        outcome.wrong.append(f"memory grows: {most / MIB:.0f} MiB, in the end {in_the_end / MIB:.0f}")
    usual, late = (mean(tenth.cpu_s_a_day for tenth in some) for some in (before, last))
    if late > MOST_SECONDS * usual:
        outcome.wrong.append(f"a day takes longer: {usual:.2f} s of a CPU, in the end {late:.2f}")
