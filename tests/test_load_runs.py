"""`load_runs`: what each load did and spent, and how it ended."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb
import pytest
from conftest import RunLoad, Sql
from export_lines import day_lines

from mixpanel_source import load_record
from mixpanel_source.credentials import Credentials
from mixpanel_source.errors import AuthenticationError, ConfigError
from mixpanel_source.fetch import fetch_events
from mixpanel_source.forget import forget
from mixpanel_source.load import load
from mixpanel_source.load_record import read_records, record_path
from mixpanel_source.progress import NoProgress
from mixpanel_source.project import Project
from mixpanel_source.sandbox import Fault, Sandbox
from mixpanel_source.windows import DateRange, Window

FIRST = date(2024, 3, 1)
OUTCOMES = "SELECT outcome, error FROM load_runs ORDER BY began_at"


@pytest.fixture(autouse=True)
def _days(sandbox: Sandbox) -> None:
    for day in ("2024-03-01", "2024-03-02"):
        sandbox.set_day(day, day_lines(day, 30))
    sandbox.set_profiles([{"$distinct_id": "u1", "$properties": {}}])


def test_a_load_is_a_row_of_what_it_did_and_spent(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    sandbox.faults.next("engage", Fault.http(500))
    before = datetime.now(UTC)
    result = run_load("2024-03-01", "2024-03-02", resources=("events", "profiles"))
    [row] = sql("SELECT resources, from_date, to_date, outcome, error, message, warnings, rows, days FROM load_runs")
    days = FIRST, date(2024, 3, 2)
    assert row == (["events", "profiles"], *days, "done", None, None, [], 61, 2)
    [(began_at, ended_at, requests, by_api, retries, waits)] = sql(
        "SELECT began_at, ended_at, requests, requests_by_api, retries, waits FROM load_runs"
    )
    assert before <= began_at < ended_at <= datetime.now(UTC)
    asked = [request.endpoint for request in sandbox.requests]
    by_family = {"export": asked.count("export"), "query": len(asked) - asked.count("export")}
    assert (requests, json.loads(by_api), retries, waits) == (len(asked), by_family, 1, 1)
    [(received, size, *stages)] = sql(
        "SELECT received_bytes, property_bytes, download_s, convert_s, write_s, typed_s FROM load_runs"
    )
    assert received > 0
    assert [(size,)] == sql("SELECT sum(bytes) FROM event_days")
    assert all(stage > 0 for stage in stages)
    packages = "SELECT DISTINCT _dlt_load_id FROM events UNION SELECT _dlt_load_id FROM profiles ORDER BY 1"
    assert sql("SELECT unnest(load_ids) FROM load_runs ORDER BY 1") == sql(packages)
    assert (result.metrics.rows, result.metrics.requests) == (61, len(asked))


def test_a_load_that_fails_or_is_interrupted_has_a_row_too(
    run_load: RunLoad, project: Project, database: Path, sql: Sql
) -> None:
    class Interrupted(NoProgress):
        def loaded(self, window: Window, rows: int, size: int) -> None:
            raise KeyboardInterrupt

    wrong = replace(project, credentials=Credentials("sandbox", "wrong-secret", "1", "us"))
    with pytest.raises(AuthenticationError):
        run_load("2024-03-01", "2024-03-01", project=wrong)
    with pytest.raises(KeyboardInterrupt):
        load(project, database, ("events",), asked=DateRange(FIRST, date(2024, 3, 1)), progress=Interrupted())
    assert sql(OUTCOMES) == [("failed", "AuthenticationError"), ("stopped", "KeyboardInterrupt")]
    [(message, requests), (_, again)] = sql("SELECT message, requests FROM load_runs ORDER BY began_at")
    assert "answered 401" in message
    assert min(requests, again) > 0


def test_a_load_that_was_killed_or_could_not_write_its_row_has_one_after_the_next(
    run_load: RunLoad, database: Path, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(load_record, "write_runs", lambda *_: False)
        run_load("2024-03-01", "2024-03-01")
        run_load("2024-03-02", "2024-03-02")
    killed, *older = json.loads(record_path(database).read_text("utf-8"))
    killed |= {"outcome": None, "ended_at": None, "metrics": None}
    record_path(database).write_text(json.dumps([killed, *older]))
    assert [record and record.outcome for record in read_records(database)] == [None, "stopped"]
    run_load("2024-03-01", "2024-03-02")
    [last] = json.loads(record_path(database).read_text("utf-8"))
    record_path(database).write_text(json.dumps([last | {"is_in_table": False}]))  # killed right after the row was
    run_load("2024-03-01", "2024-03-02")
    rows = sql("SELECT from_date, outcome, rows, ended_at IS NULL FROM load_runs ORDER BY began_at")
    assert rows == [
        (FIRST, "done", 30, False),
        (date(2024, 3, 2), "stopped", None, True),
        (FIRST, "done", 0, False),
        (FIRST, "done", 0, False),
    ]


def test_a_database_of_an_earlier_version_gets_the_columns_it_lacks(
    run_load: RunLoad, database: Path, sql: Sql
) -> None:
    run_load("2024-03-01", "2024-03-01")
    with duckdb.connect(str(database)) as connection:
        connection.execute("ALTER TABLE mixpanel.load_runs DROP COLUMN write_s")
        connection.execute("ALTER TABLE mixpanel.load_runs ADD COLUMN of_mine INTEGER")
    run_load("2024-03-02", "2024-03-02")
    assert sql("SELECT write_s > 0, of_mine FROM load_runs ORDER BY began_at") == [(None, None), (True, None)]


def test_a_snapshot_cannot_have_the_name_and_an_old_one_is_left_alone(
    run_load: RunLoad, project: Project, database: Path, sql: Sql
) -> None:
    with pytest.raises(ConfigError, match="a table of loads"):
        fetch_events(project, database, "Load_Runs", from_date=FIRST, to_date=FIRST)
    fetch_events(project, database, "mine", from_date=FIRST, to_date=FIRST)
    with duckdb.connect(str(database)) as connection:
        connection.execute("ALTER TABLE mixpanel.mine RENAME TO Load_Runs")
        connection.execute("UPDATE mixpanel.fetches SET table_name = 'Load_Runs'")
    run_load("2024-03-01", "2024-03-01")
    assert sql("SELECT count(*), count(DISTINCT event_name) FROM load_runs") == [(30, 1)]


@pytest.mark.long
def test_a_row_that_names_a_person_goes_with_them(run_load: RunLoad, database: Path, sql: Sql) -> None:
    run_load("2024-03-01", "2024-03-01")
    run_load("2024-03-02", "2024-03-02")
    with duckdb.connect(str(database)) as connection:
        connection.execute("UPDATE mixpanel.load_runs SET warnings = ['of ann@x: odd'] WHERE from_date = '2024-03-01'")
        connection.execute("UPDATE mixpanel.load_runs SET message = 'of joann@x' WHERE from_date = '2024-03-02'")
    assert forget(database, ["ann@x"]).rows == {"load_runs": 1}
    assert sql("SELECT message FROM load_runs") == [("of joann@x",)]
