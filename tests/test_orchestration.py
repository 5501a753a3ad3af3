"""Loads of an orchestrator's data interval; `tests/orchestrators` has those of Airflow and Dagster themselves."""

from __future__ import annotations

import threading
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from conftest import NOW, Clock, Sql, merge_broken_off

from mixpanel_source.credentials import Credentials
from mixpanel_source.destinations import Target
from mixpanel_source.errors import AuthenticationError, ConfigError, PlanError, WarehouseError
from mixpanel_source.orchestration import (
    database_of,
    days_between,
    days_of,
    load_days,
    load_table,
    windows_to_load,
)
from mixpanel_source.pipeline import locked
from mixpanel_source.project import Project
from mixpanel_source.sandbox import Sandbox
from mixpanel_source.source import configured_project
from mixpanel_source.windows import Window

TODAY = NOW.date()
OLD = Window(date(2024, 2, 1), date(2024, 2, 3))
"""Settled days."""
PROJECT = Project(Credentials("sandbox", "sandbox", "1", "us"))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def fill(sandbox: Sandbox, days: Window, rows: int = 2) -> None:
    for day in days.days:
        lines = [
            f'{{"event": "E", "properties": {{"time": {int(at(f"{day}T09:00Z").timestamp()) + n}, '
            f'"distinct_id": "u", "$insert_id": "{n}"}}}}'
            for n in range(rows)
        ]
        sandbox.set_day(str(day), [line.encode() for line in lines], rewrite_time=True)


def exports(sandbox: Sandbox) -> list[tuple[str, str]]:
    return [(one.params["from_date"], one.params["to_date"]) for one in sandbox.requests if one.endpoint == "export"]


def test_the_end_of_an_interval_is_not_included() -> None:
    days = days_of(PROJECT, at("2024-01-01T00:00Z"), at("2024-02-01T00:00Z"))
    assert days == Window(date(2024, 1, 1), date(2024, 1, 31))
    legacy = Project(PROJECT.credentials, project_timezone="America/New_York", legacy_local_time=True)
    # The day on which clocks go forward has 23 hours.
    assert days_of(legacy, at("2024-03-10T05:00Z"), at("2024-03-11T04:00Z")) == Window.of(date(2024, 3, 10))


@pytest.mark.parametrize(
    ("start", "end", "problem"),
    [
        (None, None, "no data interval"),
        ("2024-01-02T00:00Z", "2024-01-02T00:00Z", "is empty"),
        ("2024-01-02T00:00Z", "2024-01-01T00:00Z", "is empty"),
        ("2024-01-01T06:00Z", "2024-01-02T06:00Z", "not whole days"),
        ("2024-01-01T00:00Z", "2024-01-01T01:00Z", "not whole days"),
    ],
)
def test_an_interval_that_is_no_days_is_refused(start: str | None, end: str | None, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        days_of(PROJECT, start and at(start), end and at(end))  # type: ignore[arg-type]


def test_a_day_that_is_not_over_is_refused(clock: Clock) -> None:
    today = at(f"{TODAY}T00:00Z")
    with pytest.raises(ConfigError, match="not over"):
        days_of(PROJECT, today, today + timedelta(days=1))


@pytest.mark.long
def test_a_retry_asks_for_what_its_run_has_not_loaded_yet(
    project: Project, sandbox: Sandbox, database: Path, clock: Clock
) -> None:
    recent = Window(TODAY - timedelta(days=2), TODAY - timedelta(days=1))
    both = Window(OLD.first, recent.last)
    fill(sandbox, both, 1)
    load_days(project, Target(database), recent)
    clock.now = began = NOW + timedelta(hours=1)
    fill(sandbox, recent, 3)
    assert [day.rows for day in load_days(project, Target(database), recent, since=began).days] == [3, 3]
    clock.now += timedelta(hours=1)
    before = len(exports(sandbox))
    assert load_days(project, Target(database), recent, since=began).requests == 0
    assert len(exports(sandbox)) == before
    assert load_days(project, Target(database), recent, since=clock.now).requests == 1  # another run


def test_settled_days_are_asked_for_again_only_with_refresh(
    project: Project, sandbox: Sandbox, database: Path, clock: Clock, sql: Sql
) -> None:
    fill(sandbox, OLD)
    load_days(project, Target(database), OLD)
    clock.now += timedelta(hours=1)
    fill(sandbox, OLD, 1)
    assert load_days(project, Target(database), OLD).requests == 0
    done = load_days(project, Target(database), OLD, refresh=True)  # of sizes that are known by now
    assert (done.requests, done.rows, len(done.days)) == (1, 3, 3)
    assert sql("SELECT count(*) FROM events") == [(3,)]


@pytest.mark.long
def test_a_retry_of_a_refresh_takes_up_what_its_run_has_on_the_disk_and_nothing_older(
    project: Project, sandbox: Sandbox, database: Path, clock: Clock, sql: Sql
) -> None:
    fill(sandbox, OLD)
    load_days(project, Target(database), OLD)
    fill(sandbox, OLD, 3)
    clock.now = began = NOW + timedelta(hours=1)

    def broken_off() -> int:
        before = len(exports(sandbox))
        clock.now += timedelta(minutes=1)
        with merge_broken_off("events"), pytest.raises(WarehouseError):
            load_days(project, Target(database), OLD, since=began, refresh=True)
        return len(exports(sandbox)) - before

    assert broken_off() == 1
    assert broken_off() == 0
    clock.now += timedelta(minutes=1)
    assert load_days(project, Target(database), OLD, since=began, refresh=True).requests == 0
    assert sql("SELECT count(*) FROM events") == [(9,)]
    began = clock.now = clock.now + timedelta(hours=1)
    assert broken_off() == 1
    fill(sandbox, OLD, 4)
    clock.now += timedelta(minutes=1)
    done = load_days(project, Target(database), OLD, since=clock.now, refresh=True)  # another run
    assert done.requests
    assert sql("SELECT count(*) FROM events") == [(12,)]


@pytest.mark.long
def test_windows_as_planned_are_asked_for_at_once(project: Project, sandbox: Sandbox, database: Path) -> None:
    project = Project(project.credentials, base_url=project.base_url, max_window_events=10)
    days = days_between("2024-02-01", "2024-02-11")
    fill(sandbox, Window(days.first, days.first), 12)
    fill(sandbox, Window(days.first + timedelta(days=1), days.last), 1)
    windows = windows_to_load(project, Target(database), days)
    assert [str(one.window) for one in windows] == ["2024-02-01", "2024-02-02 to 2024-02-11"]
    for one in windows:
        load_days(project, Target(database), one.window, at_once=one.events is not None)
    assert len(exports(sandbox)) == 2
    assert windows_to_load(project, Target(database), days) == []


def test_a_load_waits_for_the_one_that_works_on_the_file(project: Project, sandbox: Sandbox, database: Path) -> None:
    fill(sandbox, OLD)
    done = threading.Event()

    def load_and_tell() -> None:
        load_days(project, Target(database), OLD)
        done.set()

    with locked(database):
        thread = threading.Thread(target=load_and_tell)
        thread.start()
        assert not done.wait(0.5)
        assert exports(sandbox) == []
    thread.join(timeout=60)
    assert done.is_set()


def test_a_table_that_the_plan_lacks_is_an_error(project: Project, sandbox: Sandbox, database: Path) -> None:
    sandbox.plan_402 = ["cohorts/list"]
    with pytest.raises(PlanError, match="cohorts"):
        load_table(project, Target(database), "cohorts")


def test_a_project_comes_from_dlts_settings_or_from_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AuthenticationError):
        configured_project()
    for name, value in zip(("USERNAME", "SECRET", "PROJECT_ID", "REGION"), ("me", "hush", "7", "eu"), strict=True):
        monkeypatch.setenv(f"MP_{name}", value)
    assert configured_project().credentials == Credentials("me", "hush", "7", "eu")
    for name, value in zip(("USERNAME", "SECRET", "PROJECT_ID", "REGION"), ("you", "hush", "8", "in"), strict=True):
        monkeypatch.setenv(f"SOURCES__MIXPANEL__CREDENTIALS__{name}", value)
    monkeypatch.setenv("SOURCES__MIXPANEL__START_DATE", "2024-01-01")
    monkeypatch.setenv("SOURCES__MIXPANEL__LOOKBACK_DAYS", "9")
    monkeypatch.setenv("SOURCES__MIXPANEL__COHORT_HISTORY", "true")  # no setting of a project
    project = configured_project()
    assert project.credentials == Credentials("you", "hush", "8", "in")
    assert (project.start_date, project.lookback_days) == (date(2024, 1, 1), 9)
    assert database_of(project).name == "8.duckdb"
    monkeypatch.setenv("MP_DB", "here.duckdb")
    assert database_of(project) == tmp_path / "here.duckdb"
