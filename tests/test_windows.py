"""Which days a load asks for: windows, the lookback, the project's calendar, and what `event_days` tells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixpanel_source.errors import ConfigError
from mixpanel_source.event_days import loaded_days
from mixpanel_source.windows import (
    DateRange,
    LoadedDay,
    Window,
    days_between,
    days_to_load,
    settles_at,
    windows_over,
)

UTC_CALENDAR = ZoneInfo("UTC")
NEW_YORK = ZoneInfo("America/New_York")
KOLKATA = ZoneInfo("Asia/Kolkata")
AUCKLAND = ZoneInfo("Pacific/Auckland")
NOON = datetime(2024, 3, 11, 12, tzinfo=UTC)

Row = tuple[date, str | None, datetime, bool, int, int]
"""day, filter, exported_at, complete, rows, bytes: what is read of `event_days`."""

CALENDARS = st.sampled_from([UTC_CALENDAR, NEW_YORK, KOLKATA, AUCKLAND, ZoneInfo("Pacific/Kiritimati")])
DAYS = st.dates(date(2024, 2, 1), date(2024, 4, 30))


def march(day: int) -> date:
    return date(2024, 3, day)


def settled(*days: int) -> list[LoadedDay]:
    """Days of March that nothing can happen to any more."""
    return [LoadedDay(march(day), datetime(2024, 6, 1, tzinfo=UTC), True) for day in days]


def todo(
    asked: DateRange = DateRange(),
    loaded: Iterable[LoadedDay] = (),
    *,
    start_date: date | None = None,
    first_load_days: int = 3,
    lookback_days: int = 2,
    now: datetime = NOON,
    calendar: ZoneInfo = UTC_CALENDAR,
) -> list[date]:
    return days_to_load(
        asked,
        loaded,
        start_date=start_date,
        first_load_days=first_load_days,
        lookback_days=lookback_days,
        now=now,
        calendar=calendar,
    )


def between(first: int, last: int) -> list[date]:
    return [march(day) for day in range(first, last + 1)]


# --- windows


def test_a_window_cannot_end_before_it_begins() -> None:
    with pytest.raises(ValueError, match="cannot end"):
        Window(march(2), march(1))


def test_a_window_holds_both_its_ends_and_nothing_outside() -> None:
    window = Window(date(2024, 2, 28), date(2024, 3, 1))
    assert window.days == [date(2024, 2, 28), date(2024, 2, 29), date(2024, 3, 1)]
    assert len(window) == 3
    assert date(2024, 2, 28) in window
    assert date(2024, 3, 1) in window
    assert date(2024, 2, 27) not in window
    assert date(2024, 3, 2) not in window
    assert str(window) == "2024-02-28 to 2024-03-01"
    assert str(Window.of(march(1))) == "2024-03-01"


def test_no_day_lies_between_a_day_and_one_before_it() -> None:
    assert list(days_between(march(2), march(1))) == []
    assert list(days_between(march(2), march(2))) == [march(2)]


def test_windows_break_at_gaps_and_at_their_longest_length() -> None:
    days = [march(day) for day in (9, 1, 2, 3, 4, 5, 7, 7)]
    assert windows_over(days, 2) == [
        Window(march(1), march(2)),
        Window(march(3), march(4)),
        Window.of(march(5)),
        Window.of(march(7)),
        Window.of(march(9)),
    ]
    assert windows_over([], 2) == []
    with pytest.raises(ValueError, match="at least one day"):
        windows_over(days, 0)


@given(st.lists(DAYS), st.integers(1, 40))
def test_windows_hold_exactly_the_days_given_in_order_and_no_fewer_would_do(days: list[date], longest: int) -> None:
    windows = windows_over(days, longest)
    assert [day for window in windows for day in window.days] == sorted(set(days))
    assert all(len(window) <= longest for window in windows)
    for one, next_one in pairwise(windows):
        assert next_one.first > one.last + timedelta(days=1) or len(one) == longest


# --- when a day is settled


@pytest.mark.parametrize(
    ("calendar", "expected"),
    [
        (UTC_CALENDAR, datetime(2024, 3, 14, 0, tzinfo=UTC)),
        # 10 March 2024 is the day New York's clocks go forward: the end lies in summer time.
        (NEW_YORK, datetime(2024, 3, 14, 4, tzinfo=UTC)),
        (KOLKATA, datetime(2024, 3, 13, 18, 30, tzinfo=UTC)),
        (AUCKLAND, datetime(2024, 3, 13, 11, tzinfo=UTC)),
    ],
)
def test_a_day_settles_the_lookback_after_its_end_in_the_projects_calendar(
    calendar: ZoneInfo, expected: datetime
) -> None:
    assert settles_at(march(11), 2, calendar) == expected
    assert not LoadedDay(march(11), expected - timedelta(microseconds=1), True).is_settled(2, calendar)
    assert LoadedDay(march(11), expected, True).is_settled(2, calendar)
    assert not LoadedDay(march(11), expected, False).is_settled(2, calendar)


def test_with_no_lookback_a_day_is_settled_at_its_end() -> None:
    assert settles_at(march(9), 0, NEW_YORK) == datetime(2024, 3, 10, 5, tzinfo=UTC)
    assert settles_at(march(10), 0, NEW_YORK) == datetime(2024, 3, 11, 4, tzinfo=UTC)


# --- days to load, with no dates


def test_a_first_load_takes_the_days_before_today() -> None:
    assert todo(first_load_days=3) == between(8, 10)


def test_a_first_load_begins_at_the_start_date() -> None:
    assert todo(start_date=march(5)) == between(5, 10)
    assert todo(start_date=march(10)) == between(10, 10)
    assert todo(start_date=march(11)) == []
    assert todo(start_date=date(2025, 1, 1)) == []


def test_settled_days_are_left_alone_and_unsettled_and_missing_ones_asked_for() -> None:
    exported = datetime(2024, 3, 8, 12, tzinfo=UTC)
    loaded = [LoadedDay(march(day), exported, True) for day in (1, 2, 4, 5, 6, 7)]
    # 5 March ended on the 6th, and settles at the start of the 8th.
    assert todo(loaded=loaded) == [march(3), *between(6, 10)]


def test_a_day_exported_while_it_was_going_on_is_asked_for_again() -> None:
    loaded = [*settled(8, 9), LoadedDay(march(10), datetime(2024, 3, 10, 20, tzinfo=UTC), False)]
    assert todo(loaded=loaded) == [march(10)]


def test_days_loaded_before_the_start_date_draw_the_start_back() -> None:
    assert todo(loaded=settled(4, 7), start_date=march(7)) == [march(5), march(6), *between(8, 10)]


def test_a_start_date_before_the_first_loaded_day_is_filled_up() -> None:
    assert todo(loaded=settled(7, 8), start_date=march(5)) == [march(5), march(6), march(9), march(10)]


def test_without_a_start_date_a_load_goes_on_from_the_first_loaded_day_however_old() -> None:
    assert todo(loaded=settled(1, 2, 3), first_load_days=3) == between(4, 10)


def test_a_to_date_alone_ends_the_load_there() -> None:
    assert todo(DateRange(to_date=march(9)), first_load_days=3) == [march(8), march(9)]
    assert todo(DateRange(to_date=march(11)), first_load_days=3) == between(8, 11)


def test_refresh_without_dates_takes_every_day_since_the_first_anew() -> None:
    assert todo(DateRange(refresh=True), settled(7, 8, 9, 10)) == between(7, 10)


# --- days to load, of a range


def test_of_a_range_the_days_that_are_not_complete_are_asked_for() -> None:
    loaded = [*settled(2, 4), LoadedDay(march(3), NOON, False), LoadedDay(march(9), NOON, True)]
    assert todo(DateRange(march(1), march(5)), loaded) == [march(1), march(3), march(5)]
    assert todo(DateRange(march(9), march(9)), loaded) == []


def test_refresh_takes_all_days_of_the_range() -> None:
    assert todo(DateRange(march(1), march(3), True), settled(1, 2, 3, 4)) == between(1, 3)


def test_a_range_without_an_end_goes_up_to_yesterday() -> None:
    assert todo(DateRange(march(8))) == between(8, 10)
    with pytest.raises(ConfigError, match="2024-03-11 is not over yet") as caught:
        todo(DateRange(march(11)))
    assert caught.value.hint == "add --to 2024-03-11 to load the part of it there is"


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        (DateRange(march(1), march(12)), "ask for days up to today"),
        (DateRange(date(1999, 12, 31)), "begin with a later one"),
        (DateRange(march(3), march(2)), "swap the dates"),
    ],
)
def test_a_range_that_cannot_be_is_told_with_the_way_out(asked: DateRange, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        todo(asked)
    assert caught.value.hint == hint


def test_a_range_may_end_today_and_not_later() -> None:
    assert todo(DateRange(march(11), march(11))) == [march(11)]
    for asked in (DateRange(march(1), march(12)), DateRange(to_date=march(12)), DateRange(march(12), march(12))):
        with pytest.raises(ConfigError, match="2024-03-12 is in the future: today is 2024-03-11"):
            todo(asked)


def test_a_range_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ends .2024-03-02. before it begins .2024-03-03."):
        todo(DateRange(march(3), march(2)))


def test_a_range_that_begins_in_the_future_says_so() -> None:
    for asked in (DateRange(march(12)), DateRange(march(13), march(12)), DateRange(march(12), march(11))):
        with pytest.raises(ConfigError, match=r"2024-03-1[23] is in the future: today is 2024-03-11"):
            todo(asked)
    with pytest.raises(ConfigError, match="9999-12-31 is in the future"):
        todo(DateRange(to_date=date.max))


def test_days_before_2000_are_refused() -> None:
    assert todo(DateRange(date(2000, 1, 1), date(2000, 1, 1))) == [date(2000, 1, 1)]
    for asked in (DateRange(date(1999, 12, 31)), DateRange(date.min, march(1)), DateRange(to_date=date.min)):
        with pytest.raises(ConfigError, match="no days before 2000-01-01"):
            todo(asked)
    with pytest.raises(ConfigError, match="no days before 2000-01-01"):
        todo(start_date=date.min)


def test_an_end_before_the_first_day_is_told() -> None:
    with pytest.raises(ConfigError, match=r"nothing to load up to 2024-03-01.* begins at 2024-03-02") as caught:
        todo(DateRange(to_date=march(1)), settled(2, 3))
    assert caught.value.hint == "say the first day, too: --from 2024-03-01"
    assert todo(DateRange(to_date=march(2)), settled(2, 3)) == []


@pytest.mark.parametrize(
    ("now", "calendar", "today"),
    [
        (datetime(2024, 3, 11, 3, 59, tzinfo=UTC), NEW_YORK, march(10)),
        (datetime(2024, 3, 11, 4, 0, tzinfo=UTC), NEW_YORK, march(11)),
        # The day before, still in winter time, ends an hour later in UTC.
        (datetime(2024, 3, 10, 4, 59, tzinfo=UTC), NEW_YORK, march(9)),
        (datetime(2024, 3, 10, 5, 0, tzinfo=UTC), NEW_YORK, march(10)),
        (datetime(2024, 3, 10, 18, 29, tzinfo=UTC), KOLKATA, march(10)),
        (datetime(2024, 3, 10, 18, 30, tzinfo=UTC), KOLKATA, march(11)),
        (datetime(2024, 3, 10, 10, 59, tzinfo=UTC), AUCKLAND, march(10)),
        (datetime(2024, 3, 10, 11, 0, tzinfo=UTC), AUCKLAND, march(11)),
        (datetime(2024, 3, 10, 23, 59, tzinfo=UTC), UTC_CALENDAR, march(10)),
    ],
)
def test_today_and_yesterday_are_those_of_the_projects_calendar(now: datetime, calendar: ZoneInfo, today: date) -> None:
    yesterday = today - timedelta(days=1)
    assert todo(first_load_days=1, now=now, calendar=calendar) == [yesterday]
    assert todo(DateRange(yesterday, today), now=now, calendar=calendar) == [yesterday, today]
    with pytest.raises(ConfigError, match="future"):
        todo(DateRange(to_date=today + timedelta(days=1)), now=now, calendar=calendar)


def test_the_present_may_be_given_in_any_zone() -> None:
    now = datetime(2024, 3, 11, 4, 30, tzinfo=UTC).astimezone(KOLKATA)
    assert todo(first_load_days=1, now=now, calendar=NEW_YORK) == [march(10)]


@given(
    loaded=st.lists(
        st.builds(
            LoadedDay,
            DAYS,
            st.datetimes(datetime(2024, 2, 1), datetime(2024, 5, 1), timezones=st.just(UTC)),
            st.booleans(),
        ),
        unique_by=lambda day: day.day,
    ),
    start_date=st.none() | DAYS,
    lookback_days=st.integers(0, 40),
    now=st.datetimes(datetime(2024, 2, 1), datetime(2024, 5, 1), timezones=st.just(UTC)),
    calendar=CALENDARS,
)
def test_a_load_without_dates_leaves_out_only_settled_days(
    loaded: list[LoadedDay], start_date: date | None, lookback_days: int, now: datetime, calendar: ZoneInfo
) -> None:
    days = todo(loaded=loaded, start_date=start_date, lookback_days=lookback_days, now=now, calendar=calendar)
    today = now.astimezone(calendar).date()
    first = min([day.day for day in loaded] + ([start_date] if start_date else []) or [today - timedelta(days=3)])
    final = {
        day.day
        for day in loaded
        if day.complete and day.exported_at >= settles_at(day.day, 0, calendar) + timedelta(days=lookback_days, hours=1)
    }
    expected = [day for day in days_between(first, today - timedelta(days=1)) if day not in final]
    # Clocks that change in between move the end of the lookback by an hour.
    unsure = {
        day.day
        for day in loaded
        if abs(day.exported_at - settles_at(day.day, 0, calendar) - timedelta(days=lookback_days)) <= timedelta(hours=1)
    }
    assert [day for day in days if day not in unsure] == [day for day in expected if day not in unsure]


# --- what `event_days` says


def row(day: int, filter_: str | None = None, exported_hour: int = 0, complete: bool = True) -> Row:
    return march(day), filter_, datetime(2024, 3, 20, exported_hour, tzinfo=UTC), complete, 1, 100


def known(rows: Sequence[Row], labels: Sequence[str | None]) -> list[tuple[int, int, bool]]:
    return [(day.day.day, day.exported_at.hour, day.complete) for day in loaded_days(rows, labels)]


ALL: list[str | None] = [None]
A, B = '{"event":"A"}', '{"event":"B"}'


@pytest.mark.parametrize(
    ("rows", "labels", "expected"),
    [
        ([], ALL, []),
        ([row(2), row(1)], ALL, [(1, 0, True), (2, 0, True)]),
        ([row(1, None, 1), row(1, None, 2)], ALL, [(1, 2, True)]),
        ([row(1, None, 1, True), row(1, None, 2, False)], ALL, [(1, 1, True)]),
        ([row(1, A)], ALL, []),
        ([row(1, A)], [A], [(1, 0, True)]),
        ([row(1, A)], [B], []),
        ([row(1, A)], [A, B], []),
        ([row(1, A, 1), row(1, B, 2)], [A, B], [(1, 1, True)]),
        ([row(1, A, 3), row(1, B, 2, False)], [A, B], [(1, 2, False)]),
        ([row(1, None, 5)], [A, B], [(1, 5, True)]),
        ([row(1, A, 7), row(1, None, 5)], [A, B], [(1, 5, True)]),
        ([row(1, A, 7), row(1, None, 5)], [A], [(1, 7, True)]),
        ([row(1, A, 7, False), row(1, None, 5)], [A], [(1, 5, True)]),
        ([row(1, '{"where":"x"}', 7)], [A], []),
        ([row(1, '{"where":"x"}', 7)], ALL, []),
    ],
)
def test_a_day_holds_what_was_exported_of_it(rows: list[Row], labels: list[str | None], expected: list[Any]) -> None:
    assert known(rows, labels) == expected


@pytest.mark.parametrize(
    ("rows", "labels", "sizes"),
    [
        ([row(1, A), row(1, B)], [A], [(1, 100)]),
        ([row(1, A), row(1, B)], [A, B], [(2, 200)]),
        ([row(1, None, 5), row(1, A, 7)], ALL, [(1, 100)]),
        ([row(1, None, 5)], [A, B], [(1, 100)]),
        ([row(1, A, 7), row(1, None, 5)], [A, B], [(2, 200)]),
    ],
)
def test_the_rows_of_a_day_are_those_of_all_its_parts(
    rows: list[Row], labels: list[str | None], sizes: list[tuple[int, int]]
) -> None:
    assert [(day.rows, day.bytes) for day in loaded_days(rows, labels)] == sizes
