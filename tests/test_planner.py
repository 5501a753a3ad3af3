"""How days are cut into windows, from what is known of their sizes: nothing is asked here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixpanel_source.planner import NEIGHBOURS, PATIENCE, TRUST, Plan, WindowLimits, requests_saved, seconds_to_ask
from mixpanel_source.rate_limit import Spent
from mixpanel_source.windows import Window, days_between, windows_over

FIRST = date(2023, 1, 1)
YEAR = list(days_between(FIRST, date(2023, 12, 31)))
EVENT_BYTES = 500

Size = Callable[[date], int]


def day(number: int) -> date:
    return FIRST + timedelta(days=number)


@dataclass
class Asked:
    """The exports of a plan that is played to its end."""

    whole: list[Window] = field(default_factory=list)
    cut: list[Window] = field(default_factory=list)
    split: list[Window] = field(default_factory=list)
    left_out: list[Window] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return len(self.whole) + len(self.cut) + len(self.split) + len(self.left_out)

    @property
    def days(self) -> list[date]:
        return [one for window in [*self.whole, *self.left_out] for one in window.days]


def play(
    plan: Plan,
    size: Size,
    *,
    most: float = float("inf"),
    odd: Iterable[date] = (),
    event_bytes: int = EVENT_BYTES,
    at_once: int = 1,
) -> Asked:
    """Every window comes whole unless it has more than `most` events, and is split where it holds one of `odd` days.

    Up to `at_once` are under way, one comes when no other may be asked for, and others are asked for before it is read.
    """
    asked, odd_days = Asked(), set(odd)
    coming: list[Window] = []

    def ask_ahead() -> None:
        while len(coming) < at_once and (window := plan.next(coming)) is not None:
            coming.append(window)

    while True:
        ask_ahead()
        if not coming:
            break
        window = coming.pop(0)
        events = sum(map(size, window.days))
        is_odd = not odd_days.isdisjoint(window.days)
        if events > most:
            if len(window) > 1:
                asked.cut.append(window)
                plan.cut(window)
            else:
                plan.failed(window.first)
                asked.left_out.append(window)
            continue
        plan.came(window, events, events * event_bytes)
        if at_once > 1:
            ask_ahead()
        if is_odd and len(window) > 1:
            asked.split.append(window)
            plan.split(window)
        else:
            asked.whole.append(window)
            plan.read(window, is_odd=is_odd)
    assert plan.is_done
    return asked


def lengths(windows: Iterable[Window]) -> list[int]:
    return [len(window) for window in windows]


# --- how many requests


@pytest.mark.parametrize("are_known", [True, False])
def test_a_year_of_a_small_project_takes_at_most_14_requests(are_known: bool) -> None:
    plan = Plan(YEAR, sizes=dict.fromkeys(YEAR, 2_000) if are_known else {})
    asked = play(plan, lambda _: 2_000)
    assert lengths(asked.whole) == [30] * 12 + [5] if are_known else [1, 6, *[30] * 11, 28]
    assert asked.days == YEAR


@pytest.mark.parametrize("are_known", [True, False])
def test_a_year_of_a_big_project_takes_one_request_a_day(are_known: bool) -> None:
    plan = Plan(YEAR, sizes=dict.fromkeys(YEAR, 2_000_000) if are_known else {})
    assert lengths(play(plan, lambda _: 2_000_000).whole) == [1] * 365


def test_big_days_stand_alone_between_small_ones_that_are_joined() -> None:
    sizes = dict.fromkeys(YEAR[:20], 1_000) | {YEAR[4]: 5_000_000, YEAR[5]: 5_000_000, YEAR[15]: 999_999}
    assert lengths(play(Plan(YEAR[:20], sizes=sizes), sizes.__getitem__).whole) == [4, 1, 1, 9, 1, 4]


def test_a_window_holds_no_more_events_days_or_bytes_than_it_may() -> None:
    sizes = dict.fromkeys(YEAR[:12], 100)
    for limits, expected in [
        (WindowLimits(5, 1_000, None), [5, 5, 2]),
        (WindowLimits(30, 300, None), [3, 3, 3, 3]),
        (WindowLimits(30, 299, None), [2] * 6),
        (WindowLimits(30, 1_000, 100 * EVENT_BYTES * 4), [4, 4, 4]),
        (WindowLimits(7, None, None), [7, 5]),
    ]:
        plan = Plan(YEAR[:12], limits, sizes, EVENT_BYTES)
        assert lengths(play(plan, sizes.__getitem__).whole) == expected


def test_windows_grow_with_what_is_known_and_shrink_when_days_become_large() -> None:
    def size(one: date) -> int:
        return 1_000 if one < day(40) else 400_000

    asked = play(Plan(YEAR[:60]), size)
    # One of 30 days is asked for before anything tells that they are large now; then two days fit.
    assert lengths(asked.whole) == [1, 6, 30, 23]
    asked = play(Plan(YEAR[:90]), size)
    assert lengths(asked.whole) == [1, 6, 30, 30, *[2] * 11, 1]


def test_counts_that_turn_out_too_low_are_taken_for_lower_bounds() -> None:
    told = dict.fromkeys(YEAR[:90], 10)
    asked = play(Plan(YEAR[:90], sizes=told), lambda _: 600_000)
    assert lengths(asked.whole) == [30, *[1] * 60]
    nothing = dict.fromkeys(YEAR[:90], 0)
    assert lengths(play(Plan(YEAR[:90], sizes=nothing), lambda _: 600_000).whole) == [30, *[1] * 60]


def test_as_many_times_more_as_came_are_expected_of_what_is_told_of_others() -> None:
    plan = Plan(YEAR[:3], WindowLimits(1, 1_000), dict.fromkeys(YEAR[:3], 200))
    first = plan.next()
    assert first == Window.of(YEAR[0])
    plan.came(first, 300, 3_000)
    assert plan.expected(Window.of(YEAR[1])) == 300
    second = plan.next()
    assert second == Window.of(YEAR[1])
    plan.came(second, 100, 1_000)
    assert plan.expected(Window.of(YEAR[2])) == 200  # never less than what is told


def test_bytes_are_learned_from_the_exports() -> None:
    asked = play(Plan(YEAR[:90], sizes=dict.fromkeys(YEAR[:90], 10_000)), lambda _: 10_000, event_bytes=20_000)
    # 2 days of 10,000 events of 20 kB are 400 MB, and a third one is too much.
    assert lengths(asked.whole) == [30, *[2] * 30]


def test_a_new_day_is_joined_with_the_unsettled_ones_that_it_is_like() -> None:
    sizes = dict.fromkeys(YEAR[:9], 3_000)
    assert Plan(YEAR[5:10], sizes=sizes).next() == Window(YEAR[5], YEAR[9])
    big = dict.fromkeys(YEAR[:9], 700_000)
    assert lengths(play(Plan(YEAR[5:10], sizes=big), lambda _: 700_000).whole) == [1] * 5


def test_a_new_day_is_as_large_as_the_seven_nearest_are_on_average() -> None:
    sizes = {one: 100 * number for number, one in enumerate(YEAR[:10])}
    plan = Plan(YEAR[8:11], WindowLimits(2, 100_000), sizes)
    assert [planned.events for planned in plan.forecast().windows] == [800 + 900, sum(range(3, 10)) * 100 // 7]
    window = plan.next()
    assert window == Window(YEAR[8], YEAR[9])
    plan.came(window, 1_700, 1_700)  # which tells of days that are known already
    assert [planned.events for planned in plan.forecast().windows] == [(300 + 400 + 500 + 600 + 700 + 1_700) // 7]


# --- what it asks for


DAYS = st.lists(st.integers(0, 120).map(day), max_size=90)
SIZES = st.dictionaries(st.integers(-20, 140).map(day), st.integers(0, 400), max_size=60)
LIMITS = st.builds(
    WindowLimits, st.integers(1, 40), st.none() | st.integers(1, 2_000), st.none() | st.integers(1, 1_000_000)
)


@given(days=DAYS, sizes=SIZES, limits=LIMITS, truth=st.integers(0, 500), odd=st.sets(st.integers(0, 120).map(day)))
def test_every_day_is_asked_for_once_in_order_and_none_else(
    days: list[date], sizes: dict[date, int], limits: WindowLimits, truth: int, odd: set[date]
) -> None:
    asked = play(Plan(days, limits, sizes), lambda one: sizes.get(one, truth), odd=odd)
    assert asked.days == sorted(set(days))
    assert all(len(window) <= limits.days for window in [*asked.whole, *asked.split])
    assert not asked.cut
    for window in asked.whole:
        assert len(window) == 1 or odd.isdisjoint(window.days)


@given(days=DAYS, sizes=SIZES, limits=LIMITS, most=st.integers(1, 2_000))
def test_whatever_is_cut_every_day_comes_once_or_is_left_out_alone(
    days: list[date], sizes: dict[date, int], limits: WindowLimits, most: int
) -> None:
    asked = play(Plan(days, limits, sizes), lambda one: sizes.get(one, 100), most=most)
    assert asked.days == [] or sorted(asked.days) == sorted(set(days))
    assert [one for window in asked.left_out for one in window.days] == [
        one for one in sorted(set(days)) if sizes.get(one, 100) > most
    ]
    assert all(len(window) == 1 for window in asked.left_out)


@given(days=DAYS, events=st.lists(st.integers(0, 400), min_size=121, max_size=121), limits=LIMITS)
def test_what_is_known_to_be_large_is_never_joined(days: list[date], events: list[int], limits: WindowLimits) -> None:
    sizes = dict(zip(map(day, range(121)), events, strict=True))
    plan = Plan(days, limits, sizes, EVENT_BYTES)
    most = min(
        limits.events if limits.events is not None else float("inf"),
        limits.bytes / EVENT_BYTES if limits.bytes is not None else float("inf"),
    )
    windows = play(plan, sizes.__getitem__).whole
    for window in windows:
        assert len(window) == 1 or sum(sizes[one] for one in window.days) <= most
    for one, next_one in pairwise(windows):  # no window is shorter than it has to be
        joined = sum(sizes[each] for each in one.days) + sizes[next_one.first]
        assert next_one.first > one.last + timedelta(days=1) or len(one) == limits.days or joined > most
    assert Plan(days, limits, sizes, EVENT_BYTES).forecast().requests == len(windows)


@given(days=DAYS, limits=LIMITS)
def test_of_nothing_known_no_window_is_longer_than_what_came_before_it_can_tell(
    days: list[date], limits: WindowLimits
) -> None:
    windows = play(Plan(days, limits), lambda _: 0).whole
    if limits.events is None and limits.bytes is None:
        assert windows == windows_over(days, limits.days)
    else:
        seen = 0
        for window in windows:
            assert len(window) <= max(1, 6 * seen)
            seen += len(window)


# --- odd days


@pytest.mark.parametrize("number", [0, 13, 20, 29])
def test_one_odd_day_of_thirty_is_found_in_some_twelve_requests(number: int) -> None:
    days = YEAR[:30]
    asked = play(Plan(days, sizes=dict.fromkeys(days, 10)), lambda _: 10, odd=[days[number]])
    assert asked.days == days
    assert Window.of(days[number]) in asked.whole
    assert asked.requests <= 12


def test_where_each_day_is_odd_each_is_asked_for_alone_soon() -> None:
    plan = Plan(YEAR, sizes=dict.fromkeys(YEAR, 10))
    asked = play(plan, lambda _: 10, odd=YEAR)
    assert lengths(asked.whole) == [1] * 365
    assert lengths(asked.split) == [30, 15, 7, 3, 2]
    assert len(play(Plan(YEAR), lambda _: 10, odd=YEAR).split) <= 2  # the first day, alone, has told already


def test_some_odd_days_make_windows_shorter_and_rare_ones_do_not() -> None:
    every_tenth = play(Plan(YEAR, sizes=dict.fromkeys(YEAR, 10)), lambda _: 10, odd=YEAR[::10])
    assert every_tenth.requests < 270
    one = play(Plan(YEAR, sizes=dict.fromkeys(YEAR, 10)), lambda _: 10, odd=[YEAR[100]])
    assert one.requests <= 13 + 12


# --- windows that never come whole


def test_after_a_cut_window_no_other_is_as_long_until_some_came_whole() -> None:
    sizes = dict.fromkeys(YEAR, 10)
    asked = play(Plan(YEAR, sizes=sizes), lambda _: 10, most=100)
    assert lengths(asked.cut[:3]) == [30, 15, 14]
    assert lengths(asked.whole[:PATIENCE]) == [7] * PATIENCE
    assert asked.days == YEAR
    assert len(asked.cut) <= 6


def test_a_first_trouble_is_forgotten_soon_whatever_came_before() -> None:
    plan = Plan(YEAR, sizes=dict.fromkeys(YEAR, 10))
    for _ in range(6):
        window = plan.next()
        assert window is not None
        plan.came(window, 300, 3_000)
    window = plan.next()
    assert window is not None
    plan.cut(window)
    assert lengths(play(plan, lambda _: 10).whole) == [*[15] * 4, *[30] * 4, 5]


def test_each_trouble_that_comes_back_is_waited_for_twice_as_long() -> None:
    asked = play(Plan(YEAR, WindowLimits(4, None, None)), lambda _: 10, most=25)
    assert lengths(asked.whole[:-1]) == [2] * (len(YEAR) // 2)
    # The first, and those after 4, 8, 16, 32 and 64 windows that came whole.
    at = [0, 4, 12, 28, 60, 124]
    assert [window.first for window in asked.cut] == [YEAR[2 * number] for number in at]


def test_a_short_trouble_does_not_make_all_windows_short() -> None:
    plan = Plan(YEAR, sizes=dict.fromkeys(YEAR, 10))
    window = plan.next()
    while window is not None and len(window) > 1:
        plan.cut(window)
        window = plan.next()
    assert window == Window.of(YEAR[0])
    plan.came(window, 10, 100)
    windows = play(plan, lambda _: 10).whole
    assert lengths(windows) == [*[1] * 3, *[2] * 4, *[4] * 4, *[8] * 4, *[16] * 4, *[30] * 8, 1]


# --- several under way at once


@pytest.mark.parametrize("are_known", [True, False])
@pytest.mark.parametrize("events", [0, 2_000, 150_000, 2_000_000])
def test_several_exports_at_once_take_no_more_requests(events: int, are_known: bool) -> None:
    def lengths_at_once(at_once: int) -> list[int]:
        plan = Plan(YEAR, sizes=dict.fromkeys(YEAR, events) if are_known else {})
        return lengths(play(plan, lambda _: events, at_once=at_once).whole)

    assert lengths_at_once(4) == lengths_at_once(1)


@given(
    days=DAYS,
    sizes=SIZES,
    limits=LIMITS,
    truth=st.integers(0, 500),
    odd=st.sets(st.integers(0, 120).map(day), max_size=3),
    most=st.none() | st.integers(1, 2_000),
)
def test_several_at_once_miss_no_day_and_waste_no_more_than_those_under_way(
    days: list[date],
    sizes: dict[date, int],
    limits: WindowLimits,
    truth: int,
    odd: set[date],
    most: int | None,
) -> None:
    def played(at_once: int) -> Asked:
        plan = Plan(days, limits, sizes)
        how_large = lambda one: sizes.get(one, truth)  # noqa: E731
        return play(plan, how_large, odd=odd, most=most or float("inf"), at_once=at_once)

    one_by_one, at_once = played(1), played(4)
    assert sorted(at_once.days) == sorted(set(days))
    assert at_once.requests <= one_by_one.requests + 3 * (1 + len(one_by_one.cut) + len(one_by_one.split))


def test_nothing_runs_ahead_of_what_may_tell_how_long_windows_can_be() -> None:
    plan = Plan(YEAR, sizes=dict.fromkeys(YEAR, 10))
    first = plan.next()
    assert first == Window(YEAR[0], YEAR[29])
    assert plan.next([first]) is None  # nothing as long was read yet
    plan.came(first, 300, 3_000)
    assert plan.next(unread=[first]) is None
    second = plan.next()
    assert second is not None
    assert plan.next([second]) is None
    plan.read(first, is_odd=False)
    third = plan.next([second])
    assert third == Window(YEAR[60], YEAR[89])
    plan.cut(second)
    assert plan.next([third]) is None
    assert plan.next() == Window(YEAR[30], YEAR[44])


def test_what_is_coming_is_taken_for_whole_and_plain() -> None:
    plan = Plan(YEAR, WindowLimits(10, None, None))
    first = plan.next()
    assert first is not None
    plan.came(first, 10, 100)
    plan.read(first, is_odd=False)
    coming: list[Window] = []
    while len(coming) < 4:
        window = plan.next(coming)
        assert window is not None
        coming.append(window)
    assert lengths(coming) == [10] * 4


def test_the_first_goes_alone_even_a_single_day() -> None:
    plan = Plan(YEAR, WindowLimits(1, None, None))
    first = plan.next()
    assert first == Window.of(YEAR[0])
    assert plan.next([first]) is None


@pytest.mark.parametrize("trouble", ["cut", "split", "failed"])
def test_after_trouble_even_a_single_day_goes_alone(trouble: str) -> None:
    plan = Plan(YEAR, WindowLimits(1 if trouble == "failed" else 2, None, None))
    first = plan.next()
    assert first is not None
    plan.came(first, 10, 100)
    plan.read(first, is_odd=False)
    second = plan.next([])
    assert second is not None
    third = plan.next([second])
    assert third is not None
    if trouble == "failed":
        plan.failed(second.first)
    else:
        getattr(plan, trouble)(second)
    assert plan.next([third]) is None
    alone = plan.next()
    assert alone is not None
    assert len(alone) == 1


@pytest.mark.parametrize(("days", "ahead"), [(30 + 30 + 12, 12), (30 + 30 + 13, None), (90, None)])
def test_nothing_runs_ahead_into_more_days_that_nothing_tells_of_than_its_neighbours_can(
    days: int, ahead: int | None
) -> None:
    assert TRUST * NEIGHBOURS == 30 + 12
    plan = Plan(YEAR[:days], WindowLimits(30, 1_000), dict.fromkeys(YEAR[:30], 10))
    first = plan.next()
    assert first == Window(YEAR[0], YEAR[29])
    plan.came(first, 300, 3_000)
    plan.read(first, is_odd=False)
    second = plan.next()
    assert second == Window(YEAR[30], YEAR[59])
    third = plan.next([second])
    assert (third and len(third)) == ahead


# --- exports that are here from before


def test_what_is_here_is_not_asked_for_and_tells_of_its_neighbours() -> None:
    plan = Plan(YEAR)
    for window in (Window(YEAR[30], YEAR[59]), Window(YEAR[0], YEAR[6]), Window(YEAR[360], YEAR[364])):
        assert plan.take(window, 10 * len(window), 1_000)
        assert not plan.take(window, 1, 1)
    assert not plan.take(Window(YEAR[29], YEAR[31]), 1, 1)
    assert plan.days_unknown() == YEAR[90:330]
    forecast = plan.forecast()
    assert (forecast.days, forecast.days_here) == (365 - 42, 42)
    assert play(plan, lambda _: 10).days == [*YEAR[7:30], *YEAR[60:360]]


# --- what it foretells


def test_a_forecast_changes_nothing_and_is_what_is_asked_for_then() -> None:
    sizes = {one: 100_000 + 1_000 * number for number, one in enumerate(YEAR)}
    plan = Plan(YEAR, sizes=sizes, event_bytes=400)
    forecast = plan.forecast()
    assert plan.forecast() == forecast
    assert [planned.window for planned in forecast.windows] == play(plan, sizes.__getitem__, event_bytes=400).whole
    assert (forecast.days, forecast.events, forecast.bytes) == (365, sum(sizes.values()), 400 * sum(sizes.values()))
    assert forecast.requests == forecast.requests_at_most


def test_of_a_day_that_nothing_tells_of_as_much_is_expected_as_of_the_seven_nearest() -> None:
    before, after = dict.fromkeys(YEAR[:10], 100), dict.fromkeys(YEAR[20:30], 1_000)
    plan = Plan(YEAR, sizes=before | after)
    assert [plan.expected(Window.of(YEAR[number])) for number in (10, 15, 19)] == [
        100,
        (4 * 1_000 + 3 * 100) / 7,
        1_000,
    ]
    assert Plan(YEAR, sizes=dict.fromkeys(YEAR[:10], 0)).expected(Window.of(YEAR[10])) == 0
    assert Plan(YEAR).expected(Window.of(YEAR[10])) == 0


def test_a_forecast_goes_on_from_what_it_expects() -> None:
    plan = Plan(YEAR[:90], sizes=dict.fromkeys(YEAR[:30], 10))
    assert [window.events for window in plan.forecast().windows] == [300, 300, 300]


def test_where_nothing_is_known_a_forecast_says_between_what_the_requests_lie() -> None:
    forecast = Plan(YEAR).forecast()
    assert (forecast.requests, forecast.requests_at_most) == (14, 365)
    assert (forecast.events, forecast.bytes) == (None, None)
    none = Plan([]).forecast()
    assert (none.requests, none.requests_at_most, none.events, none.bytes) == (0, 0, 0, 0)
    fixed = Plan(YEAR, WindowLimits(7, None, None)).forecast()
    assert (fixed.requests, fixed.requests_at_most, fixed.events) == (53, 53, None)


@pytest.mark.parametrize(
    ("sizes", "unknown"),
    [
        ({}, YEAR),
        (dict.fromkeys(YEAR[:300], 1), YEAR[330:]),
        ({YEAR[100]: 5}, [*YEAR[:70], *YEAR[131:]]),
        ({FIRST - timedelta(days=1): 5}, YEAR[30:]),
    ],
)
def test_days_far_from_all_that_is_known_are_unknown(sizes: Mapping[date, int], unknown: list[date]) -> None:
    assert Plan(YEAR, sizes=sizes).days_unknown() == unknown


def test_of_windows_of_a_fixed_length_no_size_matters() -> None:
    assert Plan(YEAR, WindowLimits(7, None, None)).days_unknown() == []


def test_knowing_sizes_saves_at_most_the_requests_of_days_that_are_joined_then() -> None:
    assert [requests_saved(days, WindowLimits()) for days in (0, 1, 3, 4, 30, 365)] == [0, 0, 2, 3, 29, 352]
    assert requests_saved(10, WindowLimits(1)) == 0


@pytest.mark.parametrize(
    ("requests", "spent", "seconds"),
    [
        (0, Spent(60, 60, 600.0), 0.0),
        (10, Spent(0, 60, 0.0), 0.0),
        (60, Spent(0, 60, 0.0), 0.0),
        (1, Spent(3, 60, 120.0), 120.0),
        (1, Spent(60, 60, 600.0), 600.0),
        (400, Spent(52, 60, 0.0), 392 * 60.0),
        (11, Spent(50, 60, 0.0), 60.0),
    ],
)
def test_the_time_is_that_until_the_last_request_may_be_sent(requests: int, spent: Spent, seconds: float) -> None:
    assert seconds_to_ask(requests, spent) == seconds
