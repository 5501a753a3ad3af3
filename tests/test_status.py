"""What `status` tells of a database, of what is missing in it, and of the loads that worked on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import pytest
from conftest import Clock, RunLoad
from export_lines import day_lines, days
from filelock import FileLock

from mixpanel_source.credentials import Credentials
from mixpanel_source.errors import AuthenticationError, MixpanelDataError, WarehouseError
from mixpanel_source.load_record import read_records, record_path, recorded
from mixpanel_source.project import Project
from mixpanel_source.sandbox import Sandbox
from mixpanel_source.status import LoadStatus, status
from mixpanel_source.warehouse import lock_path
from mixpanel_source.windows import Window


def march(first: int, last: int | None = None) -> Window:
    return Window(date(2024, 3, first), date(2024, 3, last or first))


def loaded(database: Path, project: Project | None, clock: Clock) -> LoadStatus:
    found = status(database, project, clock.now).loaded
    assert found is not None
    return found


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


# --- what is wrong


def test_a_day_that_something_else_changed_is_suspect_and_what_is_wrong_is_told(
    run_load: RunLoad, sandbox: Sandbox, project: Project, database: Path, clock: Clock
) -> None:
    def wrong(max_days_behind: int = 3) -> list[str]:
        return list(status(database, project, clock.now, max_days_behind=max_days_behind).wrong)

    assert wrong() == [f"nothing is loaded yet: there is no {database}"]
    for day in days("2024-03-05", 6):
        sandbox.set_day(day, day_lines(day, 2))
    run_load("2024-03-05", "2024-03-08")
    assert wrong() == []
    assert wrong(max_days_behind=1) == ["the last 2 days are not loaded"]
    run_load("2024-03-07", "2024-03-07", refresh=True, events=("E",))  # it has its own row beside that of the day
    assert loaded(database, project, clock).suspect_days == []
    with duckdb.connect(str(database)) as connection:
        connection.execute("DELETE FROM mixpanel.events WHERE event_date = '2024-03-06' AND insert_id = 'i1'")
    assert loaded(database, project, clock).suspect_days == [march(6)]
    run_load("2024-03-10", "2024-03-11")
    clock.now += timedelta(days=1)
    assert wrong() == [
        "days missing between others: 2024-03-09",
        "days loaded before they were over, and not since: 2024-03-11",
        "days not as their loads left them: see mpload verify --repair: 2024-03-06",
    ]


# --- days


def test_days_that_are_missing_incomplete_and_unsettled_are_told_apart(
    run_load: RunLoad, sandbox: Sandbox, project: Project, database: Path, clock: Clock
) -> None:
    for day in days("2024-03-01", 11):
        sandbox.set_day(day, day_lines(day, 2))
    run_load("2024-03-01", "2024-03-04")
    run_load("2024-03-07", "2024-03-07")
    run_load("2024-03-11", "2024-03-11")
    found = loaded(database, project, clock)
    assert (found.days, found.first_day, found.last_day) == (5, date(2024, 3, 1), date(2024, 3, 7))
    assert (found.missing_days, found.incomplete_days) == ([march(5, 6), march(8, 10)], [march(11)])
    assert (found.unsettled_days, found.days_behind) == ([march(7)], 3)
    assert loaded(database, replace(project, lookback_days=7), clock).unsettled_days == [march(4), march(7)]
    assert loaded(database, replace(project, lookback_days=0), clock).unsettled_days == []
    assert loaded(database, None, clock).unsettled_days == [march(7)]
    before = replace(project, start_date=date(2024, 2, 28))
    assert loaded(database, before, clock).missing_days[0] == Window(date(2024, 2, 28), date(2024, 2, 29))
    clock.now = datetime(2024, 3, 12, 3, tzinfo=UTC)
    assert loaded(database, project, clock).days_behind == 4
    new_york = replace(project, project_timezone="America/New_York", legacy_local_time=True)
    assert loaded(database, new_york, clock).days_behind == 3


def test_days_of_which_only_some_events_are_loaded_are_told_by_their_filter(
    run_load: RunLoad, sandbox: Sandbox, project: Project, database: Path, clock: Clock
) -> None:
    for day in days("2024-03-01", 4):
        sandbox.set_day(day, [*day_lines(day, 2, "A"), *day_lines(day, 2, "B", first=2)])
    run_load("2024-03-01", "2024-03-03", events=("A",))
    run_load("2024-03-02", "2024-03-02", events=("B",))
    assert loaded(database, project, clock).days == 0
    run_load("2024-03-03", "2024-03-03")
    found = loaded(database, project, clock)
    assert found.parts == {'{"event":"A"}': [march(1, 2)], '{"event":"B"}': [march(2)]}
    assert (found.days, found.first_day, found.rows) == (1, date(2024, 3, 3), 4 + 4 + 2)


def test_profiles_are_counted_with_the_time_of_their_load(
    run_load: RunLoad, sandbox: Sandbox, project: Project, database: Path, clock: Clock
) -> None:
    run_load("2024-03-01", "2024-03-01")
    assert loaded(database, project, clock).profiles is None
    sandbox.set_profiles([{"$distinct_id": "u", "$properties": {}}])
    begun = datetime.now(UTC)
    run_load(resources=("profiles",))
    found = loaded(database, project, clock)
    assert found.profiles == 1
    assert found.profiles_loaded_at is not None
    assert begun <= found.profiles_loaded_at <= datetime.now(UTC)
    assert found.last_load == found.profiles_loaded_at


def test_status_makes_nothing(database: Path, tmp_path: Path) -> None:
    before = files(tmp_path)
    found = status(database, Project(Credentials("user", "secret", "1", "us")))
    assert (found.loaded, found.problem) == (LoadStatus(), f"nothing is loaded yet: there is no {database}")
    assert (found.requests[0].spent, found.requests[0].allowed) == (0, 60)
    half = Project(Credentials("user", "secret", "1", "us"), request_share=0.5)
    assert status(database, half).requests[0].allowed == 30
    assert files(tmp_path) == before


def test_status_answers_where_nothing_can_be_written(
    run_load: RunLoad, sandbox: Sandbox, project: Project, database: Path, clock: Clock, tmp_path: Path
) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    run_load("2024-03-01", "2024-03-01")
    everything = sorted(files(tmp_path) | {tmp_path})
    modes = {path: path.stat().st_mode for path in everything}
    for path in reversed(everything):
        path.chmod(modes[path] & ~0o222)
    try:
        found = status(database, project, clock.now)
        with pytest.raises(WarehouseError, match="Permission denied"):
            run_load("2024-03-02", "2024-03-02")
    finally:
        for path in everything:
            path.chmod(modes[path])
    assert found.loaded is not None
    assert found.loaded.days == 1
    assert found.last_run is not None


# --- loads


def test_the_last_load_is_told_with_its_end_and_its_error(
    run_load: RunLoad, sandbox: Sandbox, project: Project, database: Path, clock: Clock
) -> None:
    begun = datetime.now(UTC)
    run_load("2024-03-01", "2024-03-01")
    running, last = read_records(database)
    assert last is not None
    assert last.ended_at is not None
    assert begun <= last.began_at <= last.ended_at <= datetime.now(UTC)
    assert (running, last.pid, last.outcome, last.error) == (None, os.getpid(), "done", None)
    with pytest.raises(AuthenticationError):
        run_load("2024-03-02", "2024-03-02", project=replace(project, credentials=wrong(project)))
    last = status(database, project, clock.now).last_run
    assert last is not None
    assert last.error is not None
    assert last.outcome == "failed"
    assert last.error.startswith("AuthenticationError: ")
    assert "\n" not in last.error
    assert "pl4nted" not in record_path(database).read_text("utf-8")
    assert record_path(database).stat().st_mode & 0o077 == 0


def wrong(project: Project) -> Credentials:
    return Credentials("sandbox", "pl4nted-secret", project.credentials.project_id, "us")


def test_a_load_that_runs_is_told_with_the_one_before_it(database: Path) -> None:
    with FileLock(lock_path(database)), recorded(database, lambda: MixpanelDataError("first\nline")):
        pass
    before = read_records(database)[1]
    assert before is not None
    assert (before.outcome, before.error) == ("failed", "MixpanelDataError: first line")
    with FileLock(lock_path(database)), recorded(database, lambda: None):
        running, last = read_records(database)
        assert running is not None
        assert (running.pid, running.ended_at, running.outcome) == (os.getpid(), None, None)
        assert last == before
    assert read_records(database)[0] is None


@pytest.mark.parametrize(
    ("error", "outcome", "told"),
    [(KeyboardInterrupt(), "stopped", "KeyboardInterrupt"), (ValueError("pl4nted"), "failed", "ValueError")],
)
def test_a_load_that_ends_by_an_error_of_others_is_told_without_its_words(
    error: BaseException, outcome: str, told: str, database: Path
) -> None:
    with pytest.raises(type(error)), recorded(database, lambda: None):
        raise error
    _, last = read_records(database)
    assert last is not None
    assert (last.outcome, last.error) == (outcome, told)
    assert last.ended_at is not None


def test_a_load_that_was_killed_is_stopped(database: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom filelock import FileLock\n"
        "from mixpanel_source.load_record import recorded\nfrom mixpanel_source.warehouse import lock_path\n"
        "path = Path(sys.argv[1])\n"
        "with FileLock(lock_path(path)), recorded(path, lambda: None): time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(database)])
    until = time.monotonic() + 30
    while read_records(database)[0] is None and time.monotonic() < until:
        time.sleep(0.05)
    running, last = read_records(database)
    assert running is not None
    assert (running.pid, last) == (process.pid, None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    running, last = read_records(database)
    assert (running, last and last.pid, last and last.outcome, last and last.ended_at) == (
        None, process.pid, "stopped", None,
    )  # fmt: skip
    with FileLock(lock_path(database)), recorded(database, lambda: None):
        assert read_records(database)[1] == last


def test_a_record_that_cannot_be_read_is_none(database: Path) -> None:
    path = record_path(database)
    path.parent.mkdir(parents=True)
    for text in ("", "{}", "[1]", '[{"began_at": 1}]', "[]", json.dumps([{"began_at": "x", "ended_at": None}])):
        path.write_text(text)
        assert read_records(database) == (None, None)


def test_a_load_whose_beginning_cannot_be_noted_does_not_begin(
    database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mixpanel_source.load_record.tempfile.mkstemp", full)
    with pytest.raises(WarehouseError) as caught, recorded(database, lambda: None):
        raise AssertionError
    assert str(caught.value) == f"cannot write in the data folder {tmp_path / 'data'}: No space left on device"
    assert caught.value.hint is not None
    assert "free some space" in caught.value.hint


def test_a_record_is_that_of_the_database_wherever_it_is_named_from(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(database.parent)
    assert record_path(Path(database.name)) == record_path(database)
