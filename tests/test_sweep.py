"""The sweep: late events of settled days, found by when they were processed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from conftest import NOW, Clock, RunLoad, Sql
from export_lines import at, day_lines, days, line

from mixpanel_source.load_plan import plan_load
from mixpanel_source.project import Project
from mixpanel_source.sandbox import Fault, Sandbox
from mixpanel_source.sweep import Sweep, sweeps_due
from mixpanel_source.windows import LoadedDay, Window

WHOLE = Window(date(2024, 2, 20), date(2024, 2, 26))
TAKEN = "2024-02-22"


def swept(sandbox: Sandbox) -> list[tuple[str, str]]:
    """The days of each sweep."""
    asked = [request.params for request in sandbox.requests if "where" in request.params]
    return [(params["from_date"], params["to_date"]) for params in asked]


def exported(sandbox: Sandbox) -> Counter[str]:
    """How often each day was exported as a whole; forgets what was asked so far."""
    windows = [request.params for request in sandbox.requests if request.endpoint == "export"]
    counts = Counter(
        str(day)
        for params in windows
        if "where" not in params
        for day in Window(date.fromisoformat(params["from_date"]), date.fromisoformat(params["to_date"])).days
    )
    sandbox.requests.clear()
    return counts


@pytest.fixture
def sweeping(project: Project, run_load: RunLoad, sandbox: Sandbox, clock: Clock) -> Project:
    """A week that settled long ago, loaded in one go; all later days are empty."""
    for number, day in enumerate(days("2024-02-20", 7)):
        sandbox.set_day(day, day_lines(day, 3, first=100 * number))
    project = replace(project, sweep_days=30, lookback_days=2, start_date=WHOLE.first)
    run_load("2024-02-20", "2024-03-10", project=project)
    assert swept(sandbox) == []
    sandbox.requests.clear()
    sandbox.late_events = True
    clock.now = NOW + timedelta(days=1)
    return project


def arrives_late(sandbox: Sandbox, day: str, moment: datetime, n: int = 900) -> None:
    late = line(at(day, 5), n, mp_processing_time_ms=round(moment.timestamp() * 1000))
    sandbox.set_day(day, [*sandbox.events.block(date.fromisoformat(day), True).lines(), late])


def test_late_events_of_settled_days_are_found_by_one_request_and_their_days_loaded_again(
    sweeping: Project, run_load: RunLoad, sandbox: Sandbox, clock: Clock, sql: Sql
) -> None:
    arrives_late(sandbox, TAKEN, NOW + timedelta(hours=3))
    result = run_load(project=sweeping)
    assert swept(sandbox) == [("2024-02-20", "2024-03-08")]
    assert exported(sandbox) == Counter([TAKEN, "2024-03-09", "2024-03-10", "2024-03-11"])
    assert result.late_days == [date.fromisoformat(TAKEN)]
    assert sql(f"SELECT count(*), max(insert_id) FROM events WHERE event_date = '{TAKEN}'") == [(4, "i900")]
    assert sql("SELECT count(*), count(DISTINCT swept_at) FROM event_sweeps") == [(18, 1)]

    clock.now += timedelta(days=1)
    assert run_load(project=sweeping).late_days == []
    assert swept(sandbox) == [("2024-02-20", "2024-03-09")]
    assert exported(sandbox) == Counter(["2024-03-10", "2024-03-11", "2024-03-12"])


def test_without_being_told_to_and_for_dates_or_parts_nothing_is_swept(
    sweeping: Project, run_load: RunLoad, sandbox: Sandbox
) -> None:
    run_load(project=replace(sweeping, sweep_days=0))
    run_load("2024-02-20", "2024-02-26", project=sweeping)
    run_load(project=sweeping, events=("E",))
    assert swept(sandbox) == []


@pytest.mark.parametrize(
    "failure", ["refused", *(pytest.param(failure, marks=pytest.mark.long) for failure in ("cut", "blind", "deaf"))]
)
def test_a_sweep_that_fails_is_told_changes_nothing_and_is_made_up_for(
    failure: str, sweeping: Project, run_load: RunLoad, sandbox: Sandbox, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrives_late(sandbox, TAKEN, NOW + timedelta(hours=3))
    with monkeypatch.context() as patch:
        if failure == "refused":
            sandbox.faults.next("export", Fault.http(400, "where: unknown property mp_processing_time_ms"))
        elif failure == "cut":
            sandbox.faults.next("export", *[Fault.terminated_early()] * 4)
        else:
            where = "false" if failure == "blind" else "true"
            patch.setattr("mixpanel_source.sweep._where", lambda _: where)
        result = run_load(project=sweeping)
    [warning] = result.warnings
    assert warning.startswith(
        "late events of 2024-02-20 to 2024-03-08 were not looked for (the next load tries again): "
    )
    words = {"refused": "unknown property", "cut": "did not come whole", "blind": "lacks rows", "deaf": "not narrow"}
    assert words[failure] in warning
    assert TAKEN not in exported(sandbox)
    assert sql("SELECT count(*) FROM event_days WHERE day = '2024-03-11' AND complete") == [(1,)]
    assert sql("SELECT 1 FROM duckdb_tables() WHERE table_name = 'event_sweeps'") == []
    assert run_load(project=sweeping).late_days == [date.fromisoformat(TAKEN)]


@pytest.mark.long
def test_a_late_day_that_is_not_exported_again_is_late_for_the_next_load(
    sweeping: Project, run_load: RunLoad, sandbox: Sandbox, sql: Sql
) -> None:
    arrives_late(sandbox, TAKEN, NOW + timedelta(hours=3))
    broken = [Fault.none(), *[Fault.terminated_early()] * 4]
    sandbox.faults.next("export", *broken)
    result = run_load(project=replace(sweeping, window_days=1), raises=False)
    assert "did not come whole" in str(result.error)
    assert sql("SELECT count(*), count(*) FILTER (day = '2024-02-22') FROM event_sweeps") == [(17, 0)]
    sandbox.requests.clear()
    assert run_load(project=sweeping).late_days == [date.fromisoformat(TAKEN)]
    assert exported(sandbox)[TAKEN] == 1
    assert run_load(project=sweeping).late_days == []
    assert sql(f"SELECT count(*) FROM event_sweeps WHERE day = '{TAKEN}'") == [(1,)]


def test_plan_tells_of_the_requests_of_a_sweep(sweeping: Project, database: Path, sandbox: Sandbox) -> None:
    found = plan_load(sweeping, database)
    assert (found.sweep_requests, sandbox.requests) == (1, [])
    assert plan_load(replace(sweeping, sweep_days=0), database).sweep_requests == 0


def test_deletions_and_new_identities_show_within_the_lookback(
    project: Project, run_load: RunLoad, sandbox: Sandbox, clock: Clock, sql: Sql
) -> None:
    day = "2024-03-10"
    sandbox.set_day(day, day_lines(day, 3))
    run_load(day, day)
    first, second, _ = day_lines(day, 3)
    sandbox.set_day(day, [first.replace(b'"u0"', b'"ann"'), second])
    clock.now = NOW + timedelta(days=1)
    run_load()
    assert sql("SELECT distinct_id, insert_id FROM events ORDER BY insert_id") == [("ann", "i0"), ("u1", "i1")]


def loaded(day: date, exported_at: datetime) -> LoadedDay:
    return LoadedDay(day, exported_at, complete=True)


def due(days_: list[LoadedDay], swept_at: dict[date, datetime] | None = None, most: int = 3) -> list[Sweep]:
    return sweeps_due(
        days_, swept_at or {}, sweep_days=30, lookback_days=2, now=NOW, calendar=ZoneInfo("UTC"), most=most
    )


def test_days_share_a_sweep_as_long_as_it_brings_late_events_alone() -> None:
    each_day = [date(2024, 3, 1) + timedelta(days=n) for n in range(8)]
    at_once = [loaded(day, NOW) for day in each_day]
    assert [one.window for one in due(at_once)] == [Window(date(2024, 3, 1), date(2024, 3, 8))]
    # As loads of each morning leave them: settled two days after their end. A row of the last day of a window must not
    # have been processed after the first one was exported.
    daily = [loaded(day, datetime(day.year, day.month, day.day, 6, tzinfo=UTC) + timedelta(days=3)) for day in each_day]
    windows = [one.window for one in due(daily, most=2)]
    assert windows == [Window(date(2024, 3, 6), date(2024, 3, 8)), Window(date(2024, 3, 3), date(2024, 3, 5))]
    yesterday = dict.fromkeys(each_day, NOW - timedelta(days=1))
    assert [(one.window, one.first_moment) for one in due(daily, yesterday)] == [
        (Window(date(2024, 3, 1), date(2024, 3, 8)), NOW - timedelta(days=1, hours=1))
    ]
    long_ago = loaded(date(2024, 2, 9), NOW)
    unsettled = loaded(date(2024, 3, 10), NOW)
    assert due([long_ago, unsettled]) == []
