"""Days and the windows they are asked for in. A day is a day of the project's export calendar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from mixpanel_source.errors import ConfigError

ONE_DAY = timedelta(days=1)

FIRST_DAY = date(2000, 1, 1)
"""Mixpanel answers 400 "invalid date, bad year" to earlier ones."""


@dataclass(frozen=True, order=True)
class Window:
    """The days of one export request, both ends included.

    UTC days, or the project's own if it was created before 2023 (Mixpanel docs: Export methods).
    """

    first: date
    last: date

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise ValueError(f"a window cannot end ({self.last}) before it begins ({self.first})")

    @classmethod
    def of(cls, day: date) -> Window:
        return cls(day, day)

    @property
    def days(self) -> list[date]:
        return list(days_between(self.first, self.last))

    def __len__(self) -> int:
        return (self.last - self.first).days + 1

    def __contains__(self, day: date) -> bool:
        return self.first <= day <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first} to {self.last}"


def days_between(first: date, last: date) -> Iterator[date]:
    """Every day from `first` to `last`, both included; none if `last` is before `first`."""
    for offset in range((last - first).days + 1):
        yield first + timedelta(days=offset)


def windows_over(days: Iterable[date], max_days: int) -> list[Window]:
    """The fewest windows of at most `max_days` that hold exactly `days`, in order."""
    if max_days < 1:
        raise ValueError(f"a window holds at least one day, not {max_days}")
    windows: list[Window] = []
    for day in sorted(set(days)):
        if windows and windows[-1].last + ONE_DAY == day and len(windows[-1]) < max_days:
            windows[-1] = Window(windows[-1].first, day)
        else:
            windows.append(Window.of(day))
    return windows


def settles_at(day: date, lookback_days: int, calendar: ZoneInfo) -> datetime:
    """The first instant at which an export of `day` is final: `lookback_days` after the day's end."""
    after = day + timedelta(days=1 + lookback_days)
    return datetime(after.year, after.month, after.day, tzinfo=calendar)


@dataclass(frozen=True)
class LoadedDay:
    """What `event_days` says of one day: when it was exported last, and whether the day was over and whole."""

    day: date
    exported_at: datetime
    complete: bool
    rows: int = 0
    bytes: int = 0
    """Of the rows' properties."""

    def is_settled(self, lookback_days: int, calendar: ZoneInfo) -> bool:
        return self.complete and self.exported_at >= settles_at(self.day, lookback_days, calendar)


@dataclass(frozen=True)
class DateRange:
    """What was asked for: dates as given, both included, None where not given; `refresh` exports every day anew."""

    from_date: date | None = None
    to_date: date | None = None
    refresh: bool = False


def days_to_load(
    asked: DateRange,
    loaded: Iterable[LoadedDay],
    *,
    start_date: date | None,
    first_load_days: int,
    lookback_days: int,
    now: datetime,
    calendar: ZoneInfo,
) -> list[date]:
    """The days to export, in order. `now` is an aware datetime; `calendar` is the zone export days are counted in.

    With a `from_date`: the days of the range that are not complete. Without: every unsettled day and every missing
    one since the first, up to yesterday or `to_date`. Raises ConfigError for a range that ends before it begins or
    in the future: Mixpanel answers 400 to a future `to_date`.
    """
    today = now.astimezone(calendar).date()
    known = {day.day: day for day in loaded}
    last = asked.to_date or today - ONE_DAY
    given = [day for day in (asked.from_date, asked.to_date) if day is not None]
    if max(given, default=today) > today:
        raise ConfigError(
            f"{max(given)} is in the future: today is {today} in the project's calendar ({calendar.key})",
            hint="ask for days up to today",
        )
    if min(*given, start_date or today, today) < FIRST_DAY:
        raise ConfigError(f"Mixpanel has no days before {FIRST_DAY}", hint="begin with a later one")
    if asked.from_date is not None:
        if asked.from_date > last:
            if asked.to_date is None:
                raise ConfigError(
                    f"{asked.from_date} is not over yet in the project's calendar ({calendar.key})",
                    hint=f"add --to {asked.from_date} to load the part of it there is",
                )
            raise ConfigError(f"the range ends ({last}) before it begins ({asked.from_date})", hint="swap the dates")
        days = days_between(asked.from_date, last)
        return [day for day in days if asked.refresh or day not in known or not known[day].complete]
    default = today - timedelta(days=first_load_days)
    starts = [day for day in (start_date, min(known, default=None)) if day is not None]
    first = min(starts, default=default)
    if asked.to_date is not None and first > last:
        raise ConfigError(
            f"there is nothing to load up to {last}: without a first day a load begins at {first}",
            hint=f"say the first day, too: --from {last}",
        )
    return [
        day
        for day in days_between(first, last)
        if asked.refresh or day not in known or not known[day].is_settled(lookback_days, calendar)
    ]
