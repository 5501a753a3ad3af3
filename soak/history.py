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
from typing import Final

from mixpanel_source.sandbox import Sandbox, SandboxServer
from mixpanel_source.sandbox.data import Block, EventStore, LocalTime
from soak.processes import MIB, run_mpload, write_account
from soak.served import FIRST_DAY, day_number, reading
from soak.trial import Options, Outcome

DAYS = 1095
EVENTS_A_DAY = 100_000
FEW_EVENTS_A_DAY = 500
PARTS = 10
FLAT_FROM_DAYS: Final = 100
"""Fewer are a package or two, and tell nothing."""
NAMES = (b"Page Viewed", b"Searched", b"Item Added", b"Order Placed")
MOST_MEMORY = 1.25
MOST_SECONDS = 1.5
"""Times those of the earlier parts, in the last ones."""
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
    for path in folder.rglob("*"):
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
    parts = _parts(database, watch)
    outcome.figures = {
        "days": days,
        "events": days * events_a_day,
        "seconds": round(finished.seconds),
        "events a second": round(days * events_a_day / finished.seconds),
        "most memory": f"{finished.peak_bytes / MIB:.0f} MiB",
        "database": f"{database.stat().st_size / MIB:.0f} MiB",
        "days by part": [part.days for part in parts],
        "seconds a day": [round(part.seconds / part.days, 2) for part in parts],
        "seconds of a CPU a day": [round(part.cpu_s / part.days, 2) for part in parts],
        "most memory, MiB": [round(part.rss_bytes / MIB) for part in parts],
        "most in the spool, MiB": [round(part.spool_bytes / MIB) for part in parts],
    }
    _check_rows(database, days, events_a_day, outcome)
    _check_flat(parts, days, outcome)
    return outcome


@dataclass
class _Part:
    """Some load packages after each other, up to when the last one was written."""

    days: int
    seconds: float
    cpu_s: float
    rss_bytes: int
    spool_bytes: int


def _parts(database: Path, watch: _Watch) -> list[_Part]:
    """A tenth of the packages each, or one package."""
    with reading(database) as ask:
        packages = ask(
            "select inserted_at, count(*) from _dlt_loads join event_days on _dlt_load_id = load_id"
            " group by all order by all"
        )
    began = time.time() - (time.monotonic() - watch.started)
    size = -(-len(packages) // PARTS)
    parts: list[_Part] = []
    start = 0.0
    for first in range(0, len(packages), size):
        some = packages[first : first + size]
        end = some[-1][0].timestamp() - began
        looks = [look for look in watch.looks if start <= look.seconds <= end]
        parts.append(
            _Part(
                sum(days for _, days in some),
                end - start,
                _cpu_s(watch, end) - _cpu_s(watch, start),
                max((look.rss_bytes for look in looks), default=0),
                max((look.spool_bytes for look in looks), default=0),
            )
        )
        start = end
    return parts


def _cpu_s(watch: _Watch, at: float) -> float:
    return max((look.cpu_s for look in watch.looks if look.seconds <= at), default=0.0)


def _check_rows(database: Path, days: int, events_a_day: int, outcome: Outcome) -> None:
    with reading(database) as ask:
        found = ask("select count(*), count(distinct event_date), sum((properties->>'n')::bigint) from events")
        if found != [(days * events_a_day, days, days * events_a_day * (events_a_day - 1) // 2)]:
            outcome.wrong.append(f"{found} are loaded")
        if unlike := ask(f"select event_date from events group by all having count(*) <> {events_a_day}"):
            outcome.wrong.append(f"{len(unlike)} days have another number of events than {events_a_day}")


def _check_flat(parts: list[_Part], days: int, outcome: Outcome) -> None:
    """The last third of the parts against the first, but for the very first: that one grows to what it needs.

    Time is that of the CPU: what else the machine does changes it least.
    """
    if (spool := max(part.spool_bytes for part in parts)) > MOST_SPOOL_BYTES:
        outcome.wrong.append(f"the spool has {spool / MIB:.0f} MiB")
    if days < FLAT_FROM_DAYS:
        return
    third = max(1, len(parts) // 3)
    before, last = parts[1 : 1 + third], parts[-third:]
    most, in_the_end = (max(part.rss_bytes for part in some) for some in (before, last))
    if in_the_end > MOST_MEMORY * most + ALLOWANCE_BYTES:
        outcome.wrong.append(f"memory grows: {most / MIB:.0f} MiB, in the end {in_the_end / MIB:.0f}")
    usual, late = (sum(part.cpu_s for part in some) / sum(part.days for part in some) for some in (before, last))
    if late > MOST_SECONDS * usual:
        outcome.wrong.append(f"a day takes longer: {usual:.2f} s of a CPU, in the end {late:.2f}")
