"""Load packages: when one is written, and what a wait, a reader, Ctrl-C and an error leave of those before it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import duckdb
import pytest
from conftest import RunLoad, Sql
from database_reader import start_reader
from dlt.destinations.exceptions import DatabaseTerminalException
from dlt.destinations.impl.duckdb.sql_client import DuckDbSqlClient
from export_lines import day_lines

from mixpanel_source import settings
from mixpanel_source.destinations import Target
from mixpanel_source.errors import QueryError, ServerError, WarehouseError
from mixpanel_source.load import load
from mixpanel_source.pipeline import open_pipeline
from mixpanel_source.progress import NoProgress
from mixpanel_source.project import Project
from mixpanel_source.resources.events import PackageLimits
from mixpanel_source.sandbox import Fault, Sandbox
from mixpanel_source.typed import TypedUpdate, bring_in_step
from mixpanel_source.warehouse import pipelines_folder
from mixpanel_source.windows import DateRange

LOAD = import_module("mixpanel_source.load")
PIPELINE = import_module("mixpanel_source.pipeline")
FIRST, LAST = "2024-03-01", "2024-03-06"
ASKED = DateRange(date(2024, 3, 1), date(2024, 3, 6))


@pytest.fixture(autouse=True)
def _six_days(sandbox: Sandbox) -> None:
    for number in range(6):
        day = f"2024-03-0{number + 1}"
        sandbox.set_day(day, day_lines(day, 3, first=10 * number))


@pytest.fixture
def project(project: Project) -> Project:
    """Each day is an export of its own."""
    return replace(project, window_days=1)


@pytest.fixture
def small_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each day is a load package of its own."""
    monkeypatch.setattr(LOAD, "PackageLimits", lambda: PackageLimits(bytes=1))


def packages(sql: Sql) -> list[int]:
    """The days of each load package, in order."""
    return [days for _, days in sql("select _dlt_load_id, count(*) from event_days group by all order by 1")]


def when_events_are_written(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """`act` is called as dlt replaces rows of `events`."""
    original = DuckDbSqlClient.execute_sql

    def execute_sql(self: DuckDbSqlClient, sql: Any, *args: Any, **kwargs: Any) -> Any:
        if str(sql).startswith('DELETE FROM "mixpanel"."events"'):
            act()
        return original(self, sql, *args, **kwargs)

    monkeypatch.setattr(DuckDbSqlClient, "execute_sql", execute_sql)


@pytest.mark.parametrize(
    ("is_held_up", "behind_bytes", "times"), [(False, 1 << 30, 1), (True, 1 << 30, 6), (False, 1, 6)]
)
def test_typed_tables_follow_several_packages_at_once_but_not_after_a_wait(
    database: Path,
    project: Project,
    small_packages: None,
    sql: Sql,
    monkeypatch: pytest.MonkeyPatch,
    is_held_up: bool,
    behind_bytes: int,
    times: int,
) -> None:
    made: list[int] = []

    def in_step(*of: Any, **how: Any) -> TypedUpdate:
        update = bring_in_step(*of, **how)
        made.append(update.days)
        return update

    monkeypatch.setattr(LOAD, "BATCH_BYTES", behind_bytes)
    monkeypatch.setattr("mixpanel_source.exports.Exports.is_held_up", lambda self, for_s: is_held_up)
    monkeypatch.setattr(LOAD, "bring_in_step", in_step)
    assert load(project, database, ["events"], asked=ASKED).error is None
    assert (len(made), sum(made)) == (times, 6)
    assert sql("select count(*) from mixpanel_typed.typed_days") == [(6,)]


def test_a_load_of_little_is_one_package(run_load: RunLoad, sql: Sql) -> None:
    run_load(FIRST, LAST)
    assert packages(sql) == [6]


def test_what_is_there_is_written_before_a_long_wait_for_the_request_limit(
    database: Path, project: Project, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An hour of 3 seconds and 2 requests, in which anything over half a second is a long wait.
    monkeypatch.setitem(settings.LIMITS, "export", ((2, 3.0),))
    monkeypatch.setattr("mixpanel_source.downloads.SHORT_WAIT_S", 0.5)
    result = load(project, database, ["events"], asked=ASKED)
    assert result.error is None
    assert packages(sql) == [2, 2, 2]


def test_what_is_there_is_written_before_an_export_that_takes_long(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOAD, "PackageLimits", lambda: PackageLimits(seconds=1.0))
    sandbox.faults.next("export", Fault.none(), Fault.none(), Fault.stall(3.0))
    run_load(FIRST, LAST, project=replace(project, concurrent_exports=1))
    assert packages(sql)[0] == 2
    assert sum(packages(sql)) == 6


def test_an_error_ends_the_load_after_the_packages_before_it(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project, small_packages: None
) -> None:
    sandbox.faults.next("export", Fault.none(), Fault.none(), Fault.http(500))
    result = run_load(FIRST, LAST, project=replace(project, retries=0, concurrent_exports=1), raises=False)
    assert isinstance(result.error, ServerError)
    assert packages(sql) == [1, 1]


def test_ctrl_c_while_a_package_is_written_lets_it_be_finished_and_ends_the_load(
    run_load: RunLoad,
    database: Path,
    project: Project,
    sql: Sql,
    monkeypatch: pytest.MonkeyPatch,
    small_packages: None,
) -> None:
    run_load(FIRST, FIRST)
    before = signal.getsignal(signal.SIGINT)
    told: list[str] = []

    class Told(NoProgress):
        def interrupted(self) -> None:
            told.append("interrupted")

    with monkeypatch.context() as patch:
        when_events_are_written(patch, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            load(project, database, ["events"], asked=replace(ASKED, refresh=True), progress=Told())
    assert told == ["interrupted"]
    assert signal.getsignal(signal.SIGINT) is before
    assert sql("select day::varchar from event_days") == [(FIRST,)]
    assert sql("select count(*), count(distinct _dlt_load_id) from events") == [(3, 1)]
    assert sql("select count(*) from _dlt_loads where status = 0") == [(2,)]
    run_load(FIRST, LAST)
    assert sql("select count(*), count(distinct event_id) from events") == [(18, 18)]


def test_ctrl_c_ends_the_load_also_where_the_writing_fails(
    run_load: RunLoad, sql: Sql, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.set_profiles([{"$distinct_id": "u1", "$properties": {}}])
    run_load(FIRST, FIRST)

    def fail() -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.1)  # the main thread's turn to see it
        raise DatabaseTerminalException(RuntimeError("the power is gone"))

    with monkeypatch.context() as patch:
        when_events_are_written(patch, fail)
        with pytest.raises(KeyboardInterrupt):
            run_load(FIRST, LAST, refresh=True, resources=("events", "profiles"))
    assert not sql("select 1 from duckdb_tables() where table_name = 'profiles'")
    assert sql("select count(*) from events") == [(3,)]


def test_a_second_ctrl_c_ends_it_at_once_and_the_days_stay_as_they_were(
    run_load: RunLoad, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_load(FIRST, FIRST)

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.1)  # the main thread's turn to see it
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        when_events_are_written(patch, twice)
        with pytest.raises(KeyboardInterrupt):
            run_load(FIRST, LAST, refresh=True)
    run_load(FIRST, LAST)
    assert sql("select count(*), count(distinct event_id) from events") == [(18, 18)]
    assert len(sql("select * from event_days where complete")) == 6


READ_ONCE = "import duckdb, sys; duckdb.connect(sys.argv[1], read_only=True)"


class Reading(NoProgress):
    """A program opens the database while the first export is under way."""

    def __init__(self, database: Path, seconds: float) -> None:
        self.waits: list[str] = []
        self._start = partial(start_reader, database, seconds)
        self._process: subprocess.Popen[str] | None = None

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None
        return self._process

    def received(self, compressed_bytes: int) -> None:
        if self._process is None:
            self._process = self._start()

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process as process:
            process.kill()

    def waiting(self, seconds: float, why: str) -> None:
        self.waits.append(why)


def test_a_package_waits_for_a_program_that_reads_the_database(
    run_load: RunLoad, database: Path, project: Project, sql: Sql
) -> None:
    run_load(FIRST, FIRST)
    with Reading(database, 1.5) as reading:
        result = load(project, database, ["events"], asked=ASKED, progress=reading)
    assert result.error is None
    assert packages(sql) == [1, 5]
    assert len(reading.waits) == 1
    assert f"PID {reading.process.pid}" in reading.waits[0]


@pytest.mark.long
def test_a_program_that_never_closes_the_database_ends_the_load_and_is_named(
    run_load: RunLoad, database: Path, project: Project, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_load(FIRST, FIRST)
    monkeypatch.setattr(PIPELINE, "READERS_WAIT_S", 0.3)
    with Reading(database, 60.0) as reading:
        result = load(project, database, ["events"], asked=ASKED, progress=reading)
    assert isinstance(result.error, WarehouseError)
    assert f"PID {reading.process.pid}" in result.error.message
    assert packages(sql) == [1]
    run_load(FIRST, LAST)
    assert packages(sql) == [1, 5]


def test_nobody_opens_the_database_while_a_package_is_written(
    run_load: RunLoad, database: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_load(FIRST, FIRST)
    refusals: list[str] = []
    original = DuckDbSqlClient.open_connection

    class Told(NoProgress):
        def writing(self) -> None:
            monkeypatch.setattr(DuckDbSqlClient, "open_connection", open_connection)

    def open_connection(self: DuckDbSqlClient) -> Any:
        # Between two steps of dlt, which each open the database and close it.
        done = subprocess.run([sys.executable, "-c", READ_ONCE, str(database)], capture_output=True, text=True)
        refusals.append(done.stderr)
        return original(self)

    result = load(project, database, ["events"], asked=ASKED, progress=Told())
    assert result.error is None
    assert len(refusals) > 3
    assert all("lock" in refusal for refusal in refusals)
    with duckdb.connect(str(database), read_only=True):
        pass


def test_nothing_of_the_data_stays_in_dlts_folder(
    run_load: RunLoad, database: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, small_packages: None
) -> None:
    sandbox.set_profiles([{"$distinct_id": "u1", "$properties": {"note": "PLANTED-PROFILE"}}])
    monkeypatch.setattr(PIPELINE, "PACKAGES_KEPT", 2)
    run_load(FIRST, LAST, resources=("events", "profiles"))
    kept = [path for path in pipelines_folder(database).rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if path.suffix == ".parquet" or b"PLANTED-PROFILE" in path.read_bytes()]
    assert len(open_pipeline(Target(database)).list_completed_load_packages()) == 2


def test_what_broken_off_extractions_leave_is_gone_with_the_next_load(
    run_load: RunLoad, database: Path, sandbox: Sandbox
) -> None:
    folder = pipelines_folder(database) / "mixpanel" / "normalize"

    def left() -> list[str]:
        return [path.name for path in folder.iterdir() if path.is_dir() and path.name != "extracted"]

    for _ in range(2):
        sandbox.faults.next("export", Fault.http(400, "no"))
        with pytest.raises(QueryError):
            run_load(FIRST, FIRST)
        assert len(left()) == 1  # of this load alone
    run_load(FIRST, FIRST)
    assert left() == []
