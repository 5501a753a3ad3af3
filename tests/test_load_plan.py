"""What a load asks for: as few requests as the sizes of its days allow, less at once where that never comes whole."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from conftest import Clock, RunLoad, Sql
from export_lines import at, day_lines, days, line

from mixpanel_source.errors import IncompleteExportError, ServerError
from mixpanel_source.exports import EventFilter
from mixpanel_source.fetch import fetch_events
from mixpanel_source.load_plan import LoadPlan, plan_load
from mixpanel_source.project import Project
from mixpanel_source.resources.events import PackageLimits
from mixpanel_source.sandbox import Fault, Sandbox
from mixpanel_source.windows import DateRange, Window
from mixpanel_source.workspace import Workspace

pytestmark = pytest.mark.long

YEAR = days("2023-03-12", 365)
"""Up to yesterday."""


def asked(sandbox: Sandbox) -> list[tuple[str, str]]:
    """The windows exported since the last call, by their first day: those under way at once come in any order."""
    found = [(r.params["from_date"], r.params["to_date"]) for r in sandbox.requests if r.endpoint == "export"]
    sandbox.requests.clear()
    return sorted(found, key=lambda window: window[0])


def queries(sandbox: Sandbox) -> list[str]:
    return [request.endpoint for request in sandbox.requests if request.endpoint != "export"]


def lengths(windows: Iterable[tuple[str, str]]) -> list[int]:
    return [len(Window(date.fromisoformat(first), date.fromisoformat(last))) for first, last in windows]


def counts(of: Iterable[str], events: int) -> Fault:
    """Mixpanel's answer where each day had so many events: the exports of a test are small."""
    found = {"series": list(of), "values": {"E": dict.fromkeys(of, events)}}
    return Fault.body(json.dumps({"data": found, "legend_size": 1}).encode(), "application/json")


def fill(sandbox: Sandbox, found: Iterable[str], rows: int = 1) -> int:
    """Numbered events on each day; how many there are."""
    number = 0
    for day in found:
        sandbox.set_day(day, day_lines(day, rows, first=number))
        number += rows
    return number


def ns(sql: Sql) -> list[int]:
    return [n for (n,) in sql("select cast(properties->>'$.n' as int) as n from events order by n")]


def spent(sql: Sql) -> Any:
    return sql("select sum(requests) from event_days")[0][0]


# --- how many requests


@pytest.mark.parametrize(("events", "requests"), [(2_000, 13), pytest.param(2_000_000, 365, marks=pytest.mark.long)])
def test_a_year_takes_13_requests_of_a_small_project_and_one_a_day_of_a_big_one(
    events: int, requests: int, run_load: RunLoad, sandbox: Sandbox, sql: Sql
) -> None:
    fill(sandbox, YEAR)
    sandbox.faults.next("events", counts(YEAR, events))
    run_load(YEAR[0], YEAR[-1])
    assert queries(sandbox) == ["events/names", "events"]
    windows = asked(sandbox)
    assert len(windows) == requests
    assert len(set(windows)) == requests
    assert ns(sql) == list(range(365))
    assert sql("select count(*), sum(requests), bool_and(complete) from event_days") == [(365, requests, True)]
    run_load()  # the unsettled days, of which what was loaded tells: they are small
    assert asked(sandbox) == [("2024-03-06", "2024-03-10")]
    assert queries(sandbox) == []


def test_without_counts_the_first_windows_tell_how_large_the_next_may_be(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project, tmp_path: Path
) -> None:
    sandbox.plan_402 = ["events"]
    fill(sandbox, YEAR)
    run_load(YEAR[0], YEAR[-1])
    assert queries(sandbox) == ["events/names", "events"]
    assert lengths(asked(sandbox)) == [1, 6, *[30] * 11, 28]
    assert ns(sql) == list(range(365))
    fill(sandbox, YEAR[:40], 20)
    small = replace(project, max_window_events=39)
    run_load(YEAR[0], YEAR[39], project=small, database=tmp_path / "big.duckdb")
    assert lengths(asked(sandbox)) == [1] * 40


def test_what_was_loaded_tells_how_large_days_are_and_neighbours_how_large_new_ones_are(
    run_load: RunLoad, sandbox: Sandbox, project: Project, clock: Clock
) -> None:
    fill(sandbox, days("2024-03-01", 11), 5)
    project = replace(project, start_date=date(2024, 3, 1), max_window_events=15)
    run_load(project=project)
    assert queries(sandbox) == ["events/names", "events"]
    assert lengths(asked(sandbox)) == [3, 3, 3, 1]
    # The 6th to the 10th are not settled; of the 11th nothing is known.
    clock.now = clock.now.replace(day=12)
    run_load(project=project)
    assert queries(sandbox) == []
    assert asked(sandbox) == [("2024-03-06", "2024-03-08"), ("2024-03-09", "2024-03-11")]
    run_load("2024-03-01", "2024-03-10", refresh=True, project=replace(project, window_days=4))
    assert lengths(asked(sandbox)) == [4, 4, 2]


@pytest.mark.parametrize(
    ("last", "filter_", "expected"),
    [
        (4, EventFilter(), ["events/names", "events"]),
        (3, EventFilter(), []),  # they can save two requests, and cost as many
        (3, EventFilter(("E", "F")), ["events"]),
        (2, EventFilter(("E",)), []),
        (10, EventFilter((), 'properties["n"] > 3'), []),
        (10, EventFilter(tuple(f"{'long' * 20} {n}" for n in range(100))), []),
    ],
)
def test_counts_are_asked_for_where_they_can_save_more_requests_than_they_cost(
    last: int, filter_: EventFilter, expected: list[str], sandbox: Sandbox, project: Project, database: Path
) -> None:
    fill(sandbox, days("2024-03-01", 10), 2)
    march = DateRange(date(2024, 3, 1), date(2024, 3, last))
    for fixed in (project, replace(project, window_days=3)):
        assert plan_load(fixed, database, asked=march, filter_=filter_).forecast.events is None
    assert sandbox.requests == []
    found = plan_load(project, database, asked=march, filter_=filter_, count=True)
    assert queries(sandbox) == expected
    assert (found.forecast.events, found.sizes["counted"]) == ((2 * last, last) if expected else (None, 0))
    plan_load(project, database, asked=march, filter_=filter_, count=True)
    assert queries(sandbox) == expected  # the answer is kept


@pytest.mark.parametrize(
    "fault",
    [
        Fault.http(401),
        Fault.http(402),
        Fault.http(403),
        Fault.http(500),
        Fault.rate_limited(3000),
        Fault.slow_query(),
        Fault.html(),
        Fault.reset(),
        Fault.body(b'{"error":"no"}', "application/json"),
        Fault.body(b"[1]", "application/json"),
    ],
)
def test_counts_that_cannot_be_had_are_asked_for_once_and_done_without(
    fault: Fault, sandbox: Sandbox, project: Project, database: Path
) -> None:
    fill(sandbox, days("2024-03-01", 10))
    sandbox.faults.next("events", fault)
    found = plan_load(project, database, asked=DateRange(date(2024, 3, 1)), count=True)
    assert queries(sandbox) == ["events/names", "events"]
    assert (found.forecast.events, found.forecast.requests, found.forecast.requests_at_most) == (None, 3, 10)


def test_counts_are_those_of_days_that_reports_know_of(
    sandbox: Sandbox, project: Project, database: Path, clock: Clock
) -> None:
    """Where the project's own day has not begun that is a day of the export already."""
    clock.now = clock.now.replace(hour=2)
    far = replace(project, project_timezone="America/Los_Angeles")
    sandbox.project_timezone = "America/Los_Angeles"
    fill(sandbox, days("2024-03-01", 11))
    found = plan_load(far, database, asked=DateRange(date(2024, 3, 1), date(2024, 3, 11)), count=True)
    assert [r.params["to_date"] for r in sandbox.requests if r.endpoint == "events"] == ["2024-03-10"]
    assert found.sizes == {"loaded": 0, "counted": 10, "neighbours": 1, "unknown": 0}


def test_a_snapshot_is_asked_for_in_windows_too(sandbox: Sandbox, project: Project, database: Path) -> None:
    fill(sandbox, YEAR[:50])
    fetched = fetch_events(
        project, database, from_date=date.fromisoformat(YEAR[0]), to_date=date.fromisoformat(YEAR[49])
    )
    assert fetched.rows == 50
    assert lengths(asked(sandbox)) == [1, 6, 30, 13]


# --- exports that never come whole


def test_a_window_that_never_comes_whole_is_asked_for_in_shorter_ones(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    march = days("2024-02-10", 30)
    number = fill(sandbox, march, 3)
    sandbox.export_lines = 30
    run_load(march[0], march[-1], project=replace(project, retries=1, start_date=date(2024, 2, 10)))
    assert ns(sql) == list(range(number))
    assert sql("select event_date, count(*) from events group by 1 having count(*) <> 3") == []
    windows = asked(sandbox)
    assert lengths(windows) == [30, 30, 15, 15, 7, 7, 7, 7, 2]
    assert sql("select count(*), bool_and(complete) from event_days") == [(30, True)]
    assert spent(sql) == len(windows)
    assert sql("select sum(attempts) from event_days") == [(5,)]


def test_a_window_that_is_too_slow_for_mixpanel_is_asked_for_in_shorter_ones(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    march = days("2024-03-01", 8)
    fill(sandbox, march)
    sandbox.faults.next("export", Fault.slow_query(), Fault.http(504))
    once = replace(project, retries=0)
    run_load(march[0], march[-1], project=once)
    assert lengths(asked(sandbox)) == [8, 4, 2, 2, 2, 2]
    assert ns(sql) == list(range(8))
    assert spent(sql) == 6
    sandbox.faults.next("export", Fault.http(503))
    with pytest.raises(ServerError, match="503"):
        run_load(march[0], march[-1], refresh=True, project=once)
    sandbox.faults.next("export", Fault.slow_query())
    with pytest.raises(ServerError, match="Timeout"):
        run_load(march[0], march[0], refresh=True, project=once)


BIG_DAY = "2024-03-05"


def fill_big_day(sandbox: Sandbox) -> None:
    """Small days, and one of 19 events that is too big for an export of 10; none of its events is."""
    fill(sandbox, days("2024-03-01", 8))
    names = ["A"] * 7 + ["B"] * 6 + ["C"] * 4 + ["D"] * 2
    lines = [line(at(BIG_DAY, number), 100 + number, name) for number, name in enumerate(names)]
    sandbox.set_day(BIG_DAY, lines)
    sandbox.export_lines = 10


def by_name(sql: Sql) -> list[tuple[str, int]]:
    return sql(f"select event_name, count(*) from events where event_date = '{BIG_DAY}' group by 1 order by 1")


def test_a_day_that_never_comes_whole_is_loaded_in_part_by_its_events_and_never_called_complete(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    fill_big_day(sandbox)
    once = replace(project, retries=0)
    for _ in range(2):
        with pytest.raises(IncompleteExportError, match=r"^1 day is loaded in part only \(2024-03-05\): .* not come"):
            run_load("2024-03-01", "2024-03-08", project=once)
        assert by_name(sql) == [("A", 7), ("B", 6), ("C", 4), ("D", 2)]
        assert sql(f"select filter, rows, complete from event_days where day = '{BIG_DAY}' order by 1") == [
            (f'{{"event":"{name}"}}', rows, True) for name, rows in zip("ABCDE", (7, 6, 4, 2, 0), strict=True)
        ]
        assert sql("select count(*), bool_and(complete) from event_days where filter is null") == [(7, True)]
    sandbox.export_lines = None
    run_load("2024-03-01", "2024-03-08", project=once)
    assert by_name(sql) == [("A", 7), ("B", 6), ("C", 4), ("D", 2)]
    assert sql(f"select filter, rows, complete from event_days where day = '{BIG_DAY}'") == [(None, 19, True)]


def test_what_has_a_name_that_mixpanel_does_not_tell_is_missed_and_that_is_told(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    """Names are those of the last 31 days."""
    old = "2023-05-05"
    sandbox.set_day(old, [line(at(old, n), n, "Now" if n % 2 else "Then") for n in range(12)])
    sandbox.set_day("2024-03-10", day_lines("2024-03-10", 2, "Now", first=50))
    sandbox.export_lines = 10
    with pytest.raises(IncompleteExportError, match=r"in part only \(2023-05-05\)"):
        run_load(old, old, project=replace(project, retries=0))
    assert ns(sql) == [1, 3, 5, 7, 9, 11]
    assert sql("select filter from event_days") == [('{"event":"Now"}',)]
    run_load(old, old, events=("Then",))
    with pytest.raises(IncompleteExportError):
        run_load(old, old, project=replace(project, retries=0))
    assert ns(sql) == list(range(12))  # what was named before stays


def test_a_day_that_is_there_as_a_whole_stays_as_it_is(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    fill_big_day(sandbox)
    sandbox.export_lines = None
    run_load(BIG_DAY, BIG_DAY)
    before = sql("select * from events order by event_id"), sql("select * from event_days")
    fill_big_day(sandbox)
    asked(sandbox)
    with pytest.raises(IncompleteExportError, match=r"^1 day is not loaded \(2024-03-05\)"):
        run_load(BIG_DAY, BIG_DAY, refresh=True, project=replace(project, retries=0))
    assert (sql("select * from events order by event_id"), sql("select * from event_days")) == before
    assert len(asked(sandbox)) == 1


def test_the_parts_of_a_day_may_come_in_load_packages_of_their_own(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("mixpanel_source.load"), "PackageLimits", lambda: PackageLimits(bytes=1))
    fill_big_day(sandbox)
    result = run_load(BIG_DAY, BIG_DAY, project=replace(project, retries=0), raises=False)
    assert by_name(sql) == [("A", 7), ("B", 6), ("C", 4), ("D", 2)]
    assert sql("select count(distinct _dlt_load_id) from event_days")[0][0] > 1
    assert (result.tables[0].rows, result.tables[0].days) == (19, 1)


def test_events_asked_for_by_name_are_complete_in_parts(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    fill_big_day(sandbox)
    result = run_load("2024-03-01", "2024-03-08", events=("A", "B", "C"), project=replace(project, retries=0))
    assert by_name(sql) == [("A", 7), ("B", 6), ("C", 4)]
    assert (result.tables[0].rows, result.tables[0].days) == (17, 8)
    assert sql("select count(*), bool_and(complete) from event_days") == [(24, True)]
    assert spent(sql) == len(asked(sandbox))
    run_load("2024-03-01", "2024-03-08", events=("C", "A"))
    assert asked(sandbox) == []
    sandbox.export_lines = 5
    with pytest.raises(IncompleteExportError, match=r"1 day is loaded in part only \(2024-03-05\)"):
        run_load(BIG_DAY, BIG_DAY, events=("A", "C"), refresh=True, project=replace(project, retries=0))


def test_a_snapshot_with_a_day_that_never_comes_whole_is_not_made(
    sandbox: Sandbox, project: Project, database: Path
) -> None:
    fill_big_day(sandbox)
    once = replace(project, retries=0)
    with pytest.raises(IncompleteExportError, match=r"1 day is not loaded \(2024-03-05\)"):
        fetch_events(once, database, "whole", from_date=date(2024, 3, 1), to_date=date(2024, 3, 8))
    assert queries(sandbox) == []  # a part of a day is of no use here
    named = EventFilter(("A", "B", "C"))
    fetched = fetch_events(once, database, "named", from_date=date(2024, 3, 1), to_date=date(2024, 3, 8), filter_=named)
    assert fetched.rows == 17


def test_where_nothing_ever_comes_whole_a_load_stops_asking_for_less(
    run_load: RunLoad, sandbox: Sandbox, project: Project
) -> None:
    march = days("2024-03-01", 4)
    for day in march:
        sandbox.set_day(day, [line(at(day, n), n, f"E{n}") for n in range(40)])
    sandbox.export_lines = 0
    with pytest.raises(IncompleteExportError, match=r"^4 days are not loaded \(2024-03-01, 2024-03-02, "):
        run_load(march[0], march[-1], project=replace(project, retries=0))
    # The window, its half, the first day, parts of it, and the other days.
    assert len(asked(sandbox)) == 2 + 1 + 12 + 3


def test_without_names_a_day_that_never_comes_whole_is_left_out(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    fill_big_day(sandbox)
    sandbox.plan_402 = ["events/names"]
    with pytest.raises(IncompleteExportError, match=r"^1 day is not loaded \(2024-03-05\)"):
        run_load("2024-03-01", "2024-03-08", project=replace(project, retries=0))
    assert sql("select count(*), bool_and(complete) from event_days") == [(7, True)]


# --- rows that do not say their day


def test_the_days_with_odd_rows_are_found_by_halves(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    march = days("2024-02-10", 30)
    number = fill(sandbox, march, 2)
    odd = b'{"event":"E","properties":{"time":"soon","n":%d}}'
    sandbox.set_day(march[12], [*day_lines(march[12], 2, first=24), odd % number])
    run_load(march[0], march[-1])
    windows = asked(sandbox)
    assert (march[12], march[12]) in windows
    assert len(windows) <= 14
    assert sql(f"select event_date::varchar from events where properties->>'$.n' = '{number}'") == [(march[12],)]
    assert ns(sql) == list(range(number + 1))
    assert sql("select event_date from events group by 1 having count(*) <> 2") == [(date.fromisoformat(march[12]),)]
    assert (spent(sql), sql("select sum(attempts) from event_days")) == (len(windows), [(len(windows) - 5,)])


def test_where_every_day_has_odd_rows_each_is_soon_asked_for_alone(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql
) -> None:
    march = days("2024-02-10", 30)
    for number, day in enumerate(march):
        sandbox.set_day(day, [line(at(day), number), b"99"])
    run_load(march[0], march[-1])
    windows = asked(sandbox)
    assert len(windows) <= 30 + 10
    assert ns(sql) == list(range(30))
    assert sql("select count(*), count(distinct from_date) from rejected_lines") == [(30, 30)]
    assert spent(sql) == len(windows)


def test_a_day_that_is_empty_now_is_asked_for_again_with_its_window(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql
) -> None:
    march = days("2024-03-01", 8)
    fill(sandbox, march, 2)
    run_load(march[0], march[-1])
    asked(sandbox)
    bodies = [day_lines(day, 2, first=2 * number) for number, day in enumerate(march)]
    without = b"".join(text + b"\n" for lines in [*bodies[:3], *bodies[4:]] for text in lines)
    sandbox.faults.next("export", Fault.body(without))
    result = run_load(march[0], march[-1], refresh=True)
    assert asked(sandbox) == [(march[0], march[-1])] * 2
    assert (ns(sql), result.warnings) == (list(range(16)), [])


# --- what is told beforehand


@pytest.fixture
def workspace(project: Project, database: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    assert project.base_url is not None
    for name, value in {
        "MP_USERNAME": "sandbox",
        "MP_SECRET": "sandbox",
        "MP_PROJECT_ID": "1",
        "MP_REGION": "us",
        "MP_BASE_URL": project.base_url,
    }.items():
        monkeypatch.setenv(name, value)
    return Workspace(path=database)


def test_a_plan_tells_what_a_load_then_asks_for(workspace: Workspace, sandbox: Sandbox) -> None:
    march = days("2024-03-01", 10)
    fill(sandbox, march, 3)

    def plan(**options: Any) -> LoadPlan:
        return workspace.plan(from_date=march[0], to_date=march[-1], **options)

    before = plan()
    assert before.days == [Window(date(2024, 3, 1), date(2024, 3, 10))]
    assert (before.there, before.forecast.events, before.spent.used) == ([], None, 0)
    assert not workspace.path.exists()
    counted = plan(count=True)
    assert (counted.forecast.requests, counted.forecast.events, counted.forecast.bytes) == (1, 30, None)
    workspace.load("events", from_date=march[2], to_date=march[5])
    assert len(asked(sandbox)) == 1
    after = plan()
    assert after.days == [Window(date(2024, 3, 1), date(2024, 3, 2)), Window(date(2024, 3, 7), date(2024, 3, 10))]
    assert after.there == [Window(date(2024, 3, 3), date(2024, 3, 6))]
    assert (after.forecast.requests, after.forecast.events) == (2, 18)
    assert after.sizes == {"loaded": 0, "counted": 0, "neighbours": 6, "unknown": 0}
    assert after.forecast.bytes is not None
    assert after.forecast.bytes > 18 * 50
    assert plan(refresh=True).sizes["loaded"] == 4
    # Where both tell, it is what was loaded.
    far = days("2024-01-01", 70)
    sandbox.faults.next("events", counts(far, 2_000_000))
    both = workspace.plan(from_date=far[0], to_date=march[-1], refresh=True, count=True)
    assert (both.sizes["loaded"], both.sizes["counted"]) == (4, 32)
    [window] = [one.window for one in both.forecast.windows if date(2024, 3, 3) in one.window]
    assert date(2024, 3, 6) in window
    sandbox.requests.clear()
    assert plan(events=["E"]).forecast.requests == 2
    assert plan(where="true").sizes["unknown"] == 10
    assert sandbox.requests == []
    workspace.load("events", from_date=march[0], to_date=march[-1])
    assert len(asked(sandbox)) == 2
    done = plan()
    assert (done.days, done.forecast.requests, done.seconds, done.forecast.bytes) == ([], 0, 0.0, 0)
    assert Counter(len(window) for window in done.there) == {10: 1}
