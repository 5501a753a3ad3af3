"""Snapshots: whole or not at all, beside the tables of loads, and only ever removed when asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from conftest import NOW, RunLoad, Sql
from database_reader import start_reader
from export_lines import at, day_lines, line
from ledger_requests import free_permit, spend

from mixpanel_source import settings
from mixpanel_source.cli import app
from mixpanel_source.errors import (
    ConfigError,
    IncompleteExportError,
    MixpanelDataError,
    TableExistsError,
    TableNotFoundError,
    WarehouseError,
)
from mixpanel_source.exports import EventFilter
from mixpanel_source.fetch import FetchResult, drop_all, drop_tables, fetch_events, fetch_profiles
from mixpanel_source.load import load
from mixpanel_source.progress import NoProgress
from mixpanel_source.project import Project
from mixpanel_source.rate_limit import RequestLedger
from mixpanel_source.sandbox import Fault, Sandbox, SandboxServer
from mixpanel_source.status import status
from mixpanel_source.warehouse import DatabaseBusyError
from mixpanel_source.windows import DateRange, Window

FIRST, LAST = date(2024, 3, 1), date(2024, 3, 2)
ODD = b'{"event":"E \xf0\x9f\x98\x80","properties":{"n":123456789012345678901234567890,"f":1.10,"s":"\\u0000"},"x":[1]}'

Fetch = Callable[..., FetchResult]


@pytest.fixture(autouse=True)
def _two_days(sandbox: Sandbox) -> None:
    twice = line(at("2024-03-01"), 1)
    sandbox.set_day("2024-03-01", [*day_lines("2024-03-01", 5, first=10), ODD, twice, twice])
    sandbox.set_day("2024-03-02", day_lines("2024-03-02", 4, first=20))
    sandbox.set_profiles(
        [{"$distinct_id": f"u{n}", "$properties": {"n": n, "$last_seen": "2024-03-01T10:00:00"}} for n in range(3)]
    )


@pytest.fixture
def fetch(project: Project, database: Path) -> Fetch:
    def run(name: str | None = None, **options: Any) -> FetchResult:
        return fetch_events(project, database, name, **{"from_date": FIRST, "to_date": LAST, **options})

    return run


def asked(sandbox: Sandbox) -> int:
    return len(sandbox.requests)


def tables(sql: Sql) -> set[str]:
    return {name for (name,) in sql("select table_name from duckdb_tables() where schema_name = 'mixpanel'")}


def test_a_snapshot_has_what_a_load_has(fetch: Fetch, run_load: RunLoad, sql: Sql) -> None:
    result = fetch("snap")
    run_load("2024-03-01", "2024-03-02")
    assert result.rows == sql("select count(*) from snap")[0][0] == sql("select count(*) from events")[0][0]
    columns = [row[0] for row in sql("describe events") if row[0] != "_dlt_load_id"]
    assert [row[:2] for row in sql("describe snap")] == [row[:2] for row in sql("describe events") if row[0] in columns]
    listed = ", ".join(columns)
    assert sql(f"(select {listed} from snap except all select {listed} from events)") == []


def test_a_snapshot_is_noted(fetch: Fetch, project: Project, database: Path, sql: Sql) -> None:
    events = fetch("some", filter_=EventFilter(("E 😀",), None))
    profiles = fetch_profiles(project, database, "people", where='properties["n"] > 0')
    assert (events.table, events.type, events.rows, events.date_range) == ("some", "events", 1, (FIRST, LAST))
    assert (profiles.table, profiles.type, profiles.rows, profiles.date_range) == ("people", "profiles", 2, None)
    noted = sql("select table_name, type, from_date, to_date, row_count, filters, fetched_at from fetches order by 1")
    assert [row[:5] for row in noted] == [
        ("people", "profiles", None, None, 2),
        ("some", "events", FIRST, LAST, 1),
    ]
    assert [json.loads(row[5]) for row in noted] == [{"where": 'properties["n"] > 0'}, {"events": ["E 😀"]}]
    assert [row[6] for row in noted] == [profiles.fetched_at, events.fetched_at]


def test_a_snapshot_of_nothing_is_an_empty_table(fetch: Fetch, project: Project, database: Path, sql: Sql) -> None:
    assert fetch("none", from_date=date(2024, 3, 3), to_date=date(2024, 3, 3)).rows == 0
    assert fetch_profiles(project, database, "nobody", where='properties["n"] > 100').rows == 0
    assert sql("select (select count(*) from none), (select count(*) from nobody)") == [(0, 0)]
    assert sql("select filters from fetches where table_name = 'none'") == [(None,)]


@pytest.mark.parametrize("name", ["snap", "SNAP"])
def test_a_name_that_is_taken_is_refused_before_anything_is_asked(
    fetch: Fetch, sandbox: Sandbox, sql: Sql, name: str
) -> None:
    fetch("snap")
    before = asked(sandbox)
    with pytest.raises(TableExistsError, match=f"there is a table {name} already"):
        fetch(name)
    assert asked(sandbox) == before
    assert sql("select count(*) from fetches") == [(1,)]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "two words",
        "1st",
        'a"b',
        "a;b",
        "x" * 64,
        "fetches",
        "event_days",
        "report_days",
        "Insights",
        "Profiles",
        "cohorts",
        "_dlt_x",
    ],
)
def test_a_name_that_cannot_be_is_refused(fetch: Fetch, sandbox: Sandbox, database: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        fetch(name)
    assert asked(sandbox) == 0
    assert not database.exists()


def test_a_fetch_that_fails_leaves_no_table(fetch: Fetch, sandbox: Sandbox, project: Project, sql: Sql) -> None:
    fetch("first")
    sandbox.faults.next("export", Fault.none(), *[Fault.cut(100)] * 10)
    with pytest.raises(IncompleteExportError):
        fetch("second")
    assert tables(sql) == {"first", "fetches"}
    assert sql("select table_name from fetches") == [("first",)]
    sandbox.faults.clear()
    assert fetch("second").rows == fetch("third").rows


def test_days_to_come_are_refused(fetch: Fetch, sandbox: Sandbox) -> None:
    with pytest.raises(ConfigError, match="in the future"):
        fetch("snap", to_date=date(2024, 4, 1))
    assert asked(sandbox) == 0


def test_a_load_does_not_add_to_a_snapshot(
    fetch: Fetch, run_load: RunLoad, sandbox: Sandbox, database: Path, sql: Sql
) -> None:
    assert fetch().table == "events"
    before = asked(sandbox)
    with pytest.raises(TableExistsError, match="the table events is a snapshot"):
        run_load("2024-03-01", "2024-03-02")
    assert asked(sandbox) == before
    run_load(resources=("profiles",))
    drop_tables(database, ["events"])
    run_load("2024-03-01", "2024-03-02")
    assert sql("select count(*) from event_days where complete") == [(2,)]
    with pytest.raises(TableExistsError):
        fetch()


def test_a_snapshot_that_comes_while_a_load_downloads_is_not_added_to(
    fetch: Fetch, run_load: RunLoad, sandbox: Sandbox, database: Path, project: Project, sql: Sql
) -> None:
    made: list[FetchResult] = []

    class Told(NoProgress):
        def loaded(self, window: Window, rows: int, size: int) -> None:
            if not made:
                made.append(fetch())

    result = load(project, database, ["events"], asked=DateRange(FIRST, LAST), progress=Told())
    assert isinstance(result.error, TableExistsError)
    assert sql("select count(*) from events") == [(made[0].rows,)]
    assert "event_days" not in tables(sql)


def test_a_snapshot_in_another_case_is_the_same_table(
    fetch: Fetch, run_load: RunLoad, sandbox: Sandbox, database: Path, sql: Sql
) -> None:
    fetch("Events")
    before = asked(sandbox)
    with pytest.raises(TableExistsError):
        run_load("2024-03-01", "2024-03-02")
    assert asked(sandbox) == before
    drop_tables(database, ["EVENTS"])
    assert "Events" not in tables(sql)


def test_status_tells_of_loads_and_not_of_snapshots(
    fetch: Fetch, run_load: RunLoad, project: Project, database: Path
) -> None:
    fetch()
    fetch_profiles(project, database)
    found = status(database, project, NOW).loaded
    assert found is not None
    assert (found.rows, found.days, found.profiles, found.last_load) == (0, 0, None, None)
    run_load(resources=("cohorts",))
    found = status(database, project, NOW).loaded
    assert found is not None
    assert (found.rows, found.profiles) == (0, None)
    assert found.last_load is not None


@pytest.mark.parametrize("odd", [{"events": "AB"}, {"events": ("A", "")}, {"where": ""}])
def test_a_filter_of_nothing_is_refused(odd: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        EventFilter(**odd)


def test_dropping_takes_all_or_none_and_only_snapshots(
    fetch: Fetch, run_load: RunLoad, project: Project, database: Path, sql: Sql
) -> None:
    run_load("2024-03-01", "2024-03-02")
    fetch("a")
    fetch("b")
    fetch_profiles(project, database, "c")
    for names, error in ((["a", "nothing"], TableNotFoundError), (["a", "events"], ConfigError)):
        with pytest.raises(error):
            drop_tables(database, names)
    assert {"a", "b", "c", "events"} < tables(sql)
    drop_tables(database, ["a", "a"])
    assert drop_all(database, "events") == ["b"]
    assert sql("select table_name from fetches") == [("c",)]
    assert drop_all(database) == ["c"]
    assert drop_all(database) == []
    assert {"a", "b", "c"}.isdisjoint(tables(sql))
    assert "events" in tables(sql)


def test_dropping_where_nothing_is_says_so(database: Path) -> None:
    with pytest.raises(WarehouseError, match="there is no database"):
        drop_tables(database, ["a"])


def test_dropping_does_not_wait_for_a_program_that_reads_the_database(fetch: Fetch, database: Path, sql: Sql) -> None:
    fetch("a")
    with start_reader(database, 60.0) as reader:
        for drop in (lambda: drop_tables(database, ["a"]), lambda: drop_all(database)):
            with pytest.raises(DatabaseBusyError, match=f"PID {reader.pid}"):
                drop()
        reader.kill()
    assert drop_all(database) == ["a"]


def test_a_snapshot_that_is_ready_waits_for_a_reader_and_tells_of_it(fetch: Fetch, database: Path, sql: Sql) -> None:
    fetch("a")
    waits: list[tuple[float, str]] = []

    class Told(NoProgress):
        def writing(self) -> None:
            self.reader = start_reader(database, 1.0)

        def waiting(self, seconds: float, why: str) -> None:
            waits.append((seconds, why))

    told = Told()
    fetch("b", progress=told)
    with told.reader as reader:
        assert waits == [(600.0, f"at most, as another process (PID {reader.pid}) holds {database}")]
    assert sql("select table_name from fetches order by 1") == [("a",), ("b",)]


@pytest.fixture
def mpload(
    server: SandboxServer,
    quick: None,
    database: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    given = {"USERNAME": "sandbox", "SECRET": "sandbox", "PROJECT_ID": "1", "REGION": "us", "BASE_URL": server.url}
    for name, value in {**given, "DB": str(database)}.items():
        monkeypatch.setenv(f"MP_{name}", value)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            app.main(arguments)
        out, err = capsys.readouterr()
        return int(str(done.value.code)), out, err

    return run


def test_the_command_line_fetches_and_drops(
    mpload: Callable[..., tuple[int, str, str]], database: Path, sql: Sql
) -> None:
    code, out, _ = mpload("fetch", "events", "march", "--from", "2024-03-01", "--to", "2024-03-02", "-f", "json")
    assert code == 0
    told = json.loads(out)
    assert (told["table"], told["type"], told["rows"]) == ("march", "events", 11)
    assert told["date_range"] == ["2024-03-01", "2024-03-02"]
    code, out, _ = mpload("fetch", "profiles", "--where", 'properties["n"] == 1', "-f", "jsonl")
    assert (code, json.loads(out)["rows"]) == (0, 1)
    code, out, err = mpload("fetch", "events", "march", "--from", "2024-03-01", "--to", "2024-03-02", "-f", "json")
    assert (code, out, json.loads(err)["error"]) == (1, "", TableExistsError.__name__)
    assert mpload("fetch", "events", "x", "--from", "2024-03-01")[0] == 3
    assert mpload("drop", "march")[0] == 3  # nobody to ask
    assert mpload("drop")[0] == 3
    assert mpload("drop", "march", "--all", "--force")[0] == 3
    assert mpload("drop", "nothing", "--force")[0] == 4
    assert {"march", "profiles"} < tables(sql)
    code, out, _ = mpload("drop", "march", "--force", "-f", "csv")
    assert (code, out) == (0, "dropped\r\nmarch\r\n")
    code, out, _ = mpload("drop", "--all", "--force", "-f", "json")
    assert (code, json.loads(out)) == (0, [{"dropped": "profiles"}])
    assert tables(sql) == {"fetches"}


def test_a_fetch_that_has_to_wait_says_beforehand_what_it_takes(
    mpload: Callable[..., tuple[int, str, str]], server: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(settings.LIMITS, "export", ((60, 3600.0),))
    ledger = RequestLedger(settings.data_folder() / "ledger.sqlite", origin=server.url, project_id="1")
    spend(ledger, "export", 59)
    monkeypatch.setattr(RequestLedger, "permit", lambda *_, **__: free_permit())
    days = ("--from", "2024-03-01", "--to", "2024-03-02")
    code, _, err = mpload("fetch", "events", "a", *days)
    assert (code, err.startswith("mpload: 2 days: 2 requests, about ")) == (0, True)
    assert mpload("fetch", "events", "b", *days, "--no-wait")[2] == ""


def test_errors_are_of_one_family() -> None:
    assert issubclass(TableExistsError, MixpanelDataError)
