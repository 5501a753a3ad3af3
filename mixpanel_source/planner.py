"""How the days to load are cut into export requests: small days joined into one window, big days alone.

Nothing here asks anybody anything: what is known of the days' sizes goes in, windows come out.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from mixpanel_source import settings
from mixpanel_source.rate_limit import Spent
from mixpanel_source.windows import ONE_DAY, Window, days_between, windows_over

NEIGHBOURS: Final = 7
"""So many of the days nearest to one of unknown size tell what it may hold: a week, as weekdays differ."""
TRUST: Final = 6
"""Days of unknown size in one window, for each day that tells of them."""
PATIENCE: Final = 4
"""Windows that come whole after one was cut, before longer ones are tried again; twice as many after each failure."""
ODD_SHARE: Final = 0.5
"""Windows are this share of the days between two that have to be asked for alone. Where each window that holds such a
day is asked for again in halves, that took the fewest requests of all shares tried, however many the odd days."""
ODD_DOUBT: Final = 7
"""Days without an odd one that are supposed beside those that were read: the first days of all do not decide."""


@dataclass(frozen=True)
class WindowLimits:
    """What one export request may ask for, as expected; a single day is always asked for, whatever it holds.

    Without `events` and `bytes` (of lines, decompressed) sizes do not matter: every window has `days` days.
    """

    days: int = settings.MAX_WINDOW_DAYS
    events: int | None = settings.MAX_WINDOW_EVENTS
    bytes: int | None = settings.MAX_WINDOW_BYTES


@dataclass(frozen=True)
class PlannedWindow:
    """A window with the events expected in it, None where nothing tells."""

    window: Window
    events: int | None


@dataclass(frozen=True)
class Forecast:
    """The windows that are asked for if the days are as large as they are taken for."""

    windows: tuple[PlannedWindow, ...] = ()
    requests_at_most: int = 0
    """More than `requests` where nothing tells of sizes: then windows are as long as they can be, or a day each."""
    event_bytes: float | None = None
    """Bytes of one event's line, on average."""
    days_here: int = 0
    """Besides those of `windows`: their exports are here already."""

    @property
    def days(self) -> int:
        return sum(len(planned.window) for planned in self.windows)

    @property
    def requests(self) -> int:
        return len(self.windows)

    @property
    def events(self) -> int | None:
        known = [planned.events for planned in self.windows if planned.events is not None]
        return sum(known) if len(known) == len(self.windows) else None

    @property
    def bytes(self) -> int | None:
        if self.events is None or self.event_bytes is None:
            return 0 if self.events == 0 else None
        return round(self.events * self.event_bytes)


class Plan:
    """The days still to be asked for: gives one window of them after the other, and learns from what comes.

    `sizes` are events by day, as far as they are known, also of days that are not asked for. A day of unknown size is
    taken for as large as its neighbours are on average. Where nothing is known at all the first window is one day.
    """

    def __init__(
        self,
        days: Iterable[date],
        limits: WindowLimits = WindowLimits(),
        sizes: Mapping[date, int] | None = None,
        event_bytes: float | None = None,
    ) -> None:
        self._limits = limits
        self._runs = deque(windows_over(days, max_days=date.max.toordinal()))
        """Days that follow each other, in the order in which they are asked for."""
        self._told: dict[date, float] = {}
        self._seen: dict[date, float] = {}
        self._known: list[date] = []
        """The days of both, sorted."""
        self._few = (limits.events or 0) / (10 * limits.days) or 1.0
        """Whether a day has some of so few events, or twice as many, makes no difference."""
        self._excess = 1.0
        """How many times what was told of it the last window held."""
        self._event_bytes = event_bytes
        self._events_seen = self._bytes_seen = 0
        self._longest = limits.days
        self._patience = PATIENCE
        self._whole = 0
        """Windows that came whole since one was cut, or windows became longer."""
        self._is_trying = False
        """Whether windows became longer after the last one that was cut."""
        self._days_read = self._odd_days = 0
        self._days_here = 0
        self._proven = 0
        """Days of the longest window that was read since one did not come whole, or had to be split."""
        self.tell(sizes or {})

    @property
    def is_done(self) -> bool:
        return not self._runs

    def tell(self, sizes: Mapping[date, int]) -> None:
        """Events of some days, from elsewhere. What exports said of a day counts more."""
        for day, events in sizes.items():
            self._note(self._told, day, events)

    def days_unknown(self) -> list[date]:
        """The days to ask for of which nothing tells: neither of them nor of a day near them."""
        if self._limits.events is None:
            return []
        return [day for run in self._runs for day in run.days if not self._is_known_near(day)]

    def next(self, coming: Sequence[Window] = (), unread: Sequence[Window] = ()) -> Window | None:
        """The next window, None after the last.

        While `coming`, windows given before, have not come yet, or `unread` have and are to be read, also
        None where it is better to wait: what they tell might make the next one longer, or show that it is too long.
        """
        if not self._runs:
            return None
        run = self._runs[0]
        window = Window(run.first, run.first + (self._length(run) - 1) * ONE_DAY)
        if (coming or unread) and not self._may_run_ahead(window, coming, unread):
            return None
        self._runs.popleft()
        if window.last < run.last:
            self._runs.appendleft(Window(window.last + ONE_DAY, run.last))
        return window

    def expected(self, window: Window) -> float:
        """The events of `window`, 0 where nothing tells."""
        sizes = [(day, self._size(day)) for day in window.days]
        return sum(self._average(self._near(day)) if size is None else size for day, size in sizes)

    def take(self, window: Window, events: int, size: int) -> bool:
        """An export of `window` is here from before, as for `came`: it need not be asked for.

        False where not all of its days are still to be asked for.
        """
        around = next((run for run in self._runs if run.first <= window.first and window.last <= run.last), None)
        if around is None:
            return False
        place = self._runs.index(around)
        del self._runs[place]
        if window.last < around.last:
            self._runs.insert(place, Window(window.last + ONE_DAY, around.last))
        if around.first < window.first:
            self._runs.insert(place, Window(around.first, window.first - ONE_DAY))
        self._days_here += len(window)
        self.came(window, events, size)
        return True

    def came(self, window: Window, events: int, size: int) -> None:
        """The export of `window` came whole, with so many lines, and bytes of them."""
        told = [self._told[day] for day in window.days if day in self._told and day not in self._seen]
        if len(told) == len(window):
            self._excess = max(1.0, events / sum(max(day, self._few) for day in told))
        for day in window.days:
            self._note(self._seen, day, events / len(window))
        self._events_seen += events
        self._bytes_seen += size
        if self._events_seen:
            self._event_bytes = self._bytes_seen / self._events_seen
        self._whole += 1
        if self._longest < self._limits.days and self._whole >= self._patience:
            self._longest = min(2 * self._longest, self._limits.days)
            self._whole, self._is_trying = 0, True

    def read(self, window: Window, *, is_odd: bool) -> None:
        """The export of `window` was read; a single day may be odd: no window of several days may hold it."""
        self._days_read += len(window)
        self._odd_days += is_odd
        self._proven = max(self._proven, len(window))

    def cut(self, window: Window) -> None:
        """No export of `window`, of several days, came whole: its days are asked for in shorter windows."""
        self._longest = max(1, len(window) // 2)
        if self._runs and self._runs[0].first == window.last + ONE_DAY:
            window = Window(window.first, self._runs.popleft().last)
        self._runs.appendleft(window)
        if self._is_trying:
            self._patience *= 2
        self._whole, self._is_trying = 0, False
        self._proven = 0

    def failed(self, day: date) -> None:
        """No export of `day` alone came whole."""
        self._proven = 0

    def split(self, window: Window) -> None:
        """`window`, of several days, holds an odd day: it is asked for again in halves."""
        last = window.first + (len(window) // 2 - 1) * ONE_DAY
        self._runs.extendleft([Window(last + ONE_DAY, window.last), Window(window.first, last)])
        self._proven = 0

    def forecast(self) -> Forecast:
        """What is asked for from here on."""
        ahead = self._copy()
        is_known = bool(self._known)
        windows: list[PlannedWindow] = []
        while (window := ahead.next()) is not None:
            events = round(ahead.expected(window)) if is_known else None
            windows.append(PlannedWindow(window, events))
            ahead._suppose(window, events or 0)
        is_open = not is_known and self._limits.events is not None
        at_most = sum(map(len, self._runs)) if is_open else len(windows)
        return Forecast(tuple(windows), at_most, self._event_bytes, self._days_here)

    def _copy(self) -> Plan:
        """One that can be played without changing this one."""
        twin = copy.copy(self)
        twin._runs, twin._known = self._runs.copy(), self._known.copy()
        twin._told, twin._seen = self._told.copy(), self._seen.copy()
        return twin

    def _may_run_ahead(self, window: Window, coming: Sequence[Window], unread: Sequence[Window]) -> bool:
        """Whether `window` is the next one also where `coming` are as large as expected and come whole, and these and
        `unread` hold nothing odd; as long a window did so before."""
        if len(window) > self._proven:
            return False
        if self._most_events() is not None:
            unknown = sum(self._size(day) is None for one in (*coming, window) for day in one.days)
            if unknown > TRUST * len(self._near(window.first)):
                return False
        then = self._copy()
        for one in coming:
            events = round(self.expected(one))
            then.came(one, events, round(events * (self._event_bytes or 0)))
        for one in (*coming, *unread):
            then.read(one, is_odd=False)
        return then._length(then._runs[0]) == len(window)

    def _length(self, run: Window) -> int:
        """Of the next window, which begins with `run`."""
        longest = min(len(run), self._longest)
        if self._odd_days:
            between = (self._days_read + ODD_DOUBT) / self._odd_days
            longest = min(longest, max(1, int(ODD_SHARE * between)))
        most = self._most_events()
        if most is None:
            return longest
        events = 0.0
        unknown = 0
        for length, day in enumerate(days_between(run.first, run.first + (longest - 1) * ONE_DAY)):
            size = self._size(day)
            if size is None:
                unknown += 1
                near = self._near(day)
                size = self._average(near)
                if length and unknown > TRUST * len(near):
                    return length
            events += size
            if length and events > most:
                return length
        return longest

    def _most_events(self) -> float | None:
        """In one window; None where it does not matter."""
        limits: list[float] = [] if self._limits.events is None else [self._limits.events]
        if self._limits.bytes is not None:  # nobody knows yet how many events that is before the first has come
            limits.append(self._limits.bytes / self._event_bytes if self._event_bytes else math.inf)
        return min(limits, default=None)

    def _size(self, day: date) -> float | None:
        """The events of a day of which something tells."""
        if day in self._seen:
            return self._seen[day]
        if day not in self._told:
            return None
        return max(self._told[day], self._few) * self._excess if self._excess > 1 else self._told[day]

    def _suppose(self, window: Window, events: int) -> None:
        """That `window` comes as expected."""
        for day in window.days:
            if day not in self._told:
                self._note(self._seen, day, events / len(window))

    def _near(self, day: date) -> list[date]:
        """The days nearest to `day` of which something is known, at most NEIGHBOURS."""
        place = bisect_left(self._known, day)
        around = self._known[max(0, place - NEIGHBOURS) : place + NEIGHBOURS]
        return sorted(around, key=lambda known: abs(known - day))[:NEIGHBOURS]

    def _average(self, days: list[date]) -> float:
        return sum(self._size(day) or 0.0 for day in days) / len(days) if days else 0.0

    def _is_known_near(self, day: date) -> bool:
        place = bisect_left(self._known, day)
        around = self._known[max(0, place - 1) : place + 1]
        return any(abs(known - day).days <= self._limits.days for known in around)

    def _note(self, sizes: dict[date, float], day: date, events: float) -> None:
        if day not in self._told and day not in self._seen:
            insort(self._known, day)
        sizes[day] = events


def requests_saved(days: int, limits: WindowLimits) -> int:
    """By knowing the sizes of `days` days, at most: without, each may have to be asked for alone."""
    return days - -(-days // limits.days)


def seconds_to_ask(requests: int, spent: Spent) -> float:
    """Until the last of so many exports may be asked for, where nobody else asks."""
    over = requests - (spent.allowed - spent.used)
    if over <= 0:
        return spent.next_free_s if requests else 0.0
    period_s = max(period for _, period in settings.LIMITS["export"])
    return max(spent.next_free_s, over / spent.allowed * period_s)
