"""What every report starts from: the events of a span of days, each once, by the project's clock; buckets and counts.

Mixpanel docs: Event Deduplication (events that agree in event, distinct_id, time and $insert_id are one, the latest
ingested stays; one without $insert_id is never merged); Managing Projects (reports go by the project's time zone);
Import Events (an empty distinct_id is no user: such an event is counted, but nobody did it).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from .expressions import UNDEFINED, Properties, Row
from .lines import MS_FROM
from .parameters import Test, Value

if TYPE_CHECKING:
    from .app import Sandbox

TYPES = ("general", "unique", "average")

Groups = dict[str, dict[str, list["Event"]]]
"""Events by segment, then by the key of their bucket."""

_EPOCH = datetime(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Event:
    """An event. time_ms is the exported time; wall, the project's clock then, has no zone; "" is no user."""

    name: str
    distinct_id: str
    time_ms: int
    wall: datetime
    properties: dict[str, Any]
    profiles: Callable[[], Mapping[str, Properties]]

    def row(self) -> Row:
        """What expressions see of it: its properties, and the profile of its user."""
        return Row(self.properties, lambda: self.profiles().get(self.distinct_id, {}))


def events_between(sandbox: Sandbox, from_day: date, to_day: date) -> list[Event]:
    """The events of these days of the project's own, in the order of their times. What is yet to happen is left out."""
    now = sandbox.current_time()
    served_now, now_ms = sandbox.local_time.served_ms(now), int(now.timestamp() * 1000)
    # An old project exports by its own days; in a new one, the export's UTC days lie across them.
    margin = timedelta(days=0 if sandbox.local_time.legacy else 1)
    profiles = cache(sandbox.profiles.by_id)
    kept: dict[Hashable, tuple[float, Event]] = {}
    for export_day in sandbox.events.days(from_day - margin, to_day + margin):
        for line in sandbox.events.block(export_day, in_ms=True).lines():
            event = _read(sandbox, line, profiles)
            if event is None or event.time_ms > served_now or not from_day <= event.wall.date() <= to_day:
                continue
            processed = event.properties.get("mp_processing_time_ms", 0)
            processed = processed if isinstance(processed, int | float) else 0
            if sandbox.late_events and processed > now_ms:
                continue
            insert_id = event.properties.get("$insert_id")
            key = (event.name, event.distinct_id, event.time_ms, str(insert_id)) if insert_id else len(kept)
            if key not in kept or processed >= kept[key][0]:
                kept[key] = (processed, event)
    return sorted((event for _, event in kept.values()), key=lambda event: event.time_ms)


def _read(sandbox: Sandbox, line: bytes, profiles: Callable[[], Mapping[str, Properties]]) -> Event | None:
    """None for a line that no report can count: not an event, or one whose time is unusable."""
    try:
        read = json.loads(line)
        name, properties = read["event"], read["properties"]
        time = properties["time"]
        time_ms = int(time if abs(time) > MS_FROM else time * 1000)
        wall = _EPOCH + timedelta(milliseconds=sandbox.local_time.wall_ms(time_ms))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    distinct_id = properties.get("distinct_id")
    return Event(str(name), "" if distinct_id is None else as_text(distinct_id), time_ms, wall, properties, profiles)


def chosen(events: Iterable[Event], names: Iterable[str] | None, where: Test | None) -> list[Event]:
    """Those of these names (None: of any) for which `where` holds."""
    wanted = None if names is None else set(names)
    return [
        event for event in events if (wanted is None or event.name in wanted) and (where is None or where(event.row()))
    ]


class Buckets:
    """The spans of time that a report counts in, by the project's clock, from `first` to `last`, both included.

    Weeks begin on Monday, as in the docs' examples. The keys of hours and minutes are not documented. days: how many
    make up a bucket of the unit "day".
    """

    def __init__(self, unit: str, first: datetime, last: datetime, days: int = 1) -> None:
        self.unit = unit
        self._first, self._last, self._days = first, last, days
        self.starts = list(self._walk())
        self.keys = [self._key(start) for start in self.starts]

    @classmethod
    def of_days(cls, unit: str, from_day: date, to_day: date, days: int = 1) -> Buckets:
        return cls(unit, start_of_day(from_day), start_of_day(to_day) + timedelta(days=1, microseconds=-1), days)

    def key(self, wall: datetime) -> str | None:
        """The bucket of a moment; None outside of all."""
        return self._key(self._start(wall)) if self._first <= wall <= self._last else None

    def _walk(self) -> Iterator[datetime]:
        start = self._start(self._first)
        while start <= self._last:
            yield start
            start = later(start, self.unit, self._days)

    def _start(self, wall: datetime) -> datetime:
        if self.unit == "day":
            since = start_of(wall, "day") - start_of(self._first, "day")
            return start_of(wall, "day") - since % timedelta(days=self._days)
        return start_of(wall, self.unit)

    def _key(self, start: datetime) -> str:
        return start.strftime("%Y-%m-%d %H:%M:%S" if self.unit in ("minute", "hour") else "%Y-%m-%d")


def start_of_day(day: date) -> datetime:
    return datetime(day.year, day.month, day.day)


def start_of(wall: datetime, unit: str) -> datetime:
    """The start of the minute, hour, day, week or month of a moment."""
    if unit == "minute":
        return wall.replace(second=0, microsecond=0)
    if unit == "hour":
        return wall.replace(minute=0, second=0, microsecond=0)
    day = wall.replace(hour=0, minute=0, second=0, microsecond=0)
    if unit == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if unit == "month" else day


def later(wall: datetime, unit: str, steps: int = 1) -> datetime:
    """The moment so many units later (or earlier); a month's end stays one, such as 31 January and 28 February."""
    if unit != "month":
        return wall + steps * timedelta(**{f"{unit}s": 1})
    year, month = divmod(wall.year * 12 + wall.month - 1 + steps, 12)
    first = wall.replace(year=year, month=month + 1, day=1)
    last_day = ((first + timedelta(days=31)).replace(day=1) - timedelta(days=1)).day
    return first.replace(day=min(wall.day, last_day))


def as_text(value: Any) -> str:
    """A value as the name of a segment: a string as it is, the rest as JSON; "undefined" for none at all."""
    if value is UNDEFINED:
        return "undefined"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def by_value(on: Value) -> Callable[[Event], str]:
    """The segment of an event under `on`."""
    return lambda event: as_text(on(event.row()))


def grouped(events: Iterable[Event], segment: Callable[[Event], str], buckets: Buckets) -> Groups:
    groups: Groups = defaultdict(lambda: defaultdict(list))
    for event in events:
        key = buckets.key(event.wall)
        if key is not None:
            groups[segment(event)][key].append(event)
    return groups


def largest(groups: Groups, limit: int) -> Groups:
    """The segments with the most events; of equals, the first by name."""
    sizes = {segment: sum(map(len, buckets.values())) for segment, buckets in groups.items()}
    return {segment: groups[segment] for segment in sorted(groups, key=lambda name: (-sizes[name], name))[:limit]}


def measured(events: Iterable[Event], kind: str) -> float:
    """general: events; unique: their users, each once; average: events per user."""
    events = list(events)
    if kind == "general":
        return len(events)
    users = len({event.distinct_id for event in events} - {""})
    if kind == "unique":
        return users
    return len(events) / users if users else 0.0


def values_of(groups: Groups, kind: str) -> dict[str, dict[str, float]]:
    return {
        segment: {key: measured(events, kind) for key, events in buckets.items()} for segment, buckets in groups.items()
    }
