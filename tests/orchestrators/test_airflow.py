"""The Airflow DAGs against a Mixpanel on loopback, by `dag.test()`: no scheduler. See `make test-airflow`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import CronTriggerTimetable

from mixpanel_source.load import load
from mixpanel_source.load_plan import plan_load
from mixpanel_source.many_projects import dataset_of
from mixpanel_source.sandbox import Sandbox
from mixpanel_source.sandbox.faults import Fault
from mixpanel_source.source import configured_project
from mixpanel_source.windows import DateRange
from orchestrators.conftest import (
    KILLS,
    MONTH,
    TODAY,
    TWICE,
    accounts_of_dlt,
    count_in_sqlite,
    events_in,
    events_of,
    kill,
    rows,
)
from pipelines import airflow_dag
from soak.many_sandboxes import serving

Exports = Callable[[], list[tuple[str, str]]]

DAILY, BACKFILL, CURRENT, PROJECTS = (
    getattr(airflow_dag, f"mixpanel_{name}")() for name in ("daily", "backfill", "current", "projects")
)


def run(dag: Any, day: date | None = None, conf: dict[str, Any] | None = None) -> Any:
    """A run of the DAG; a manual run of a date has the last whole interval before it."""
    at = None if day is None else datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
    return dag.test(logical_date=at or datetime.now(UTC), run_conf=conf or {})


def states(done: Any) -> list[tuple[str, int, str]]:
    return sorted((ti.task_id, ti.map_index, str(ti.state)) for ti in done.get_task_instances())


def test_the_file_is_parsed_without_credentials_network_or_dlt(tmp_path: Path) -> None:
    code = """
import socket, sys
import airflow.sdk
def refuse(*args): raise AssertionError("the network is used")
socket.socket.connect = socket.getaddrinfo = refuse
before = set(sys.modules)
from pipelines import airflow_dag
print({name.split(".")[0] for name in set(sys.modules) - before} & {"dlt", "duckdb", "pyarrow", "mixpanel_source"})
"""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "AIRFLOW_HOME": str(tmp_path),
        "PYTHONPATH": str(Path.cwd()),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_run_loads_exactly_its_interval_and_again_changes_nothing(
    database: Path, sandbox: Sandbox, exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = MONTH[3]
    assert states(run(DAILY, day)) == [("load", -1, "success")]
    assert exports() == [(str(day), str(day))]
    assert rows(database, "SELECT event_date, count(*) FROM events GROUP BY ALL") == [(day, 3)]
    assert states(run(DAILY, day)) == [("load", -1, "success")]
    assert len(exports()) == 1
    sandbox.add_events(events_of(day, 5)[3:])
    # Under `dag.test()` a run begins at its logical date.
    monkeypatch.setattr(airflow_dag, "began_at", lambda dag_run: datetime.now(UTC))
    assert states(run(DAILY, day, conf={"refresh": True})) == [("load", -1, "success")]
    assert rows(database, "SELECT event_date, count(*), count(DISTINCT event_id) FROM events GROUP BY ALL") == [
        (day, 5, 5)
    ]


def test_an_empty_interval_is_an_error(database: Path, exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DAILY, "timetable", CronTriggerTimetable("0 0 * * *", timezone="UTC"))
    assert states(run(DAILY, MONTH[3])) == [("load", -1, "failed")]
    assert exports() == []


def test_a_mapped_backfill_of_a_month_is_one_straight_load_and_asks_for_no_more_than_the_plan_says(
    database: Path, sandbox: Sandbox, exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCES__MIXPANEL__MAX_WINDOW_EVENTS", "24")  # eight days, but for two that are larger
    for day in MONTH[:2]:
        sandbox.add_events(events_of(day, 20)[3:])
    project = configured_project()
    plan = plan_load(project, database, asked=DateRange(MONTH[0], MONTH[-1]), count=True)
    assert plan.forecast.requests == 6
    days = {"from_date": str(MONTH[0]), "to_date": str(MONTH[-1])}
    sandbox.faults.next("export", Fault.none(), Fault.http(403))
    done = states(run(BACKFILL, conf=days))
    assert sorted(state for task, _, state in done if task == "load") == ["failed", *["success"] * 5]
    assert len(exports()) == 6
    # Just the one that failed: Airflow decides which, and so how many requests its days are expected to take.
    again = [state for task, _, state in states(run(BACKFILL, conf=days)) if task == "load"]
    assert set(again) == {"success"}
    assert len(exports()) == 6 + len(again)
    repeated = sorted(exports()[6:])
    assert (repeated[0][0], repeated[-1][1]) == exports()[1]
    straight = tmp_path / "straight.duckdb"
    assert load(project, straight, ["events"], asked=DateRange(MONTH[0], MONTH[-1])).error is None
    assert events_in(database) == events_in(straight)
    assert len(events_in(database)) == 90 + 2 * 17


def test_days_and_tables_go_to_another_destination(
    database: Path, exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESTINATION__SQLALCHEMY__CREDENTIALS", f"sqlite:///{tmp_path}/all.db")
    monkeypatch.setattr(airflow_dag, "DESTINATION", "sqlalchemy")
    monkeypatch.setattr(airflow_dag, "DATASET", "of_us")
    days = {"from_date": str(MONTH[0]), "to_date": str(MONTH[-1])}
    for _ in range(2):
        assert {state for _, _, state in states(run(BACKFILL, conf=days))} <= {"success", "skipped"}
        assert (count_in_sqlite("of_us"), len(exports())) == (90, 1)
    assert states(run(DAILY, MONTH[3])) == [("load", -1, "success")]
    assert len(exports()) == 1
    assert {state for _, _, state in states(run(CURRENT))} == {"success"}
    assert (count_in_sqlite("of_us"), count_in_sqlite("of_us", "profiles")) == (120, 2)
    assert not database.exists()


def test_a_month_in_any_order_twice_with_two_loads_killed_is_one_straight_load(
    database: Path, exports: Exports, tmp_path: Path
) -> None:
    """What the tasks call; the engine itself would need a minute for every ten runs."""

    class Run:
        start_date = datetime.now(UTC)

    project = configured_project()
    for n, day in enumerate(TWICE):
        run = Run()
        run.start_date = datetime.now(UTC)
        if n in KILLS:
            code = """
from datetime import datetime
from pipelines.airflow_dag import load_events
from mixpanel_source.source import configured_project
class Run:
    start_date = datetime.fromisoformat(sys.argv[3])
load_events(configured_project(), sys.argv[2], sys.argv[2], dag_run=Run, refresh=True)
"""
            kill(KILLS[n], code, str(day), run.start_date.isoformat())
        airflow_dag.load_events(project, str(day), str(day), dag_run=run, refresh=True)
    assert len(KILLS) == 2
    assert len(exports()) == len(TWICE)  # a retry takes up what the killed one had exported
    straight = tmp_path / "straight.duckdb"
    assert load(project, straight, ["events"], asked=DateRange(MONTH[0], MONTH[-1])).error is None
    assert events_in(database) == events_in(straight)
    assert len(events_in(database)) == 90


def test_what_has_no_interval_is_loaded_as_it_is_now(database: Path) -> None:
    assert [state for _, _, state in states(run(CURRENT))] == ["success", "success"]
    assert rows(database, "SELECT max(event_date) FROM events") == [(TODAY - timedelta(days=1),)]
    assert rows(database, "SELECT count(*) FROM profiles") == [(2,)]


def test_accounts_of_the_config_file_are_loaded_by_a_task_each(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    other = Sandbox(project_id="2", limits=False)
    other.add_events(events_of(TODAY - timedelta(days=1), 5))
    config = tmp_path / "config.toml"
    account = '[accounts.%s]\nusername = "sandbox"\nsecret = "sandbox"\nproject_id = "%s"\nregion = "us"\n'
    config.write_text(account % ("one", 1) + account % ("two", 2))
    config.chmod(0o600)
    for name, value in {"MP_CONFIG_PATH": config, "MP_DATA_DIR": tmp_path / "data"}.items():
        monkeypatch.setenv(name, str(value))
    with serving([sandbox, other]) as server:
        monkeypatch.setenv("MP_BASE_URL", server.url)
        assert states(run(PROJECTS)) == [
            ("accounts", -1, "success"), ("every_account", -1, "success"),
            ("load", 0, "success"), ("load", 1, "success"), ("views", -1, "success"),
        ]  # fmt: skip
    assert rows(tmp_path / "data" / "2.duckdb", "SELECT count(*) FROM events") == [(5,)]
    assert rows(tmp_path / "data" / "1.duckdb", "SELECT count(*) FROM events") == [(90,)]


def test_accounts_of_dlts_secrets_are_loaded_into_a_destination_and_only_what_failed_anew(
    three_projects: None,
    exports: Exports,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reload_dlt: Callable[[], None],
) -> None:
    monkeypatch.setattr(airflow_dag, "DESTINATION", "sqlalchemy")

    def run_with(**secrets: str) -> tuple[list[str], str, str]:
        monkeypatch.setenv("AIRFLOW_VAR_DLT_SECRETS_TOML", accounts_of_dlt(tmp_path, **secrets))
        reload_dlt()
        done = run(PROJECTS)
        found = states(done)
        [views] = [state for task, _, state in found if task == "views"]
        return [state for task, _, state in found if task == "load"], views, str(done.state)

    loads, views, all_ = run_with(one="sandbox", two="sandbox", wrong="no")
    assert (loads, views, all_) == (["success", "success", "failed"], "success", "failed")
    assert [count_in_sqlite(dataset_of(name)) for name in ("one", "two")] == [90, 5]
    assert count_in_sqlite(dataset_of("one"), "profiles") == 2
    before = len(exports())
    loads, views, all_ = run_with(one="sandbox", two="sandbox", wrong="sandbox")
    assert (loads, views, all_) == (["success"] * 3, "success", "success")
    assert [count_in_sqlite(dataset_of(name)) for name in ("one", "two", "wrong")] == [90, 5, 7]
    assert exports()[before:] == [(str(TODAY - timedelta(days=5)), str(TODAY - timedelta(days=1)))]


@pytest.mark.parametrize("where", ["connection", "dlt_secrets_toml"])
def test_credentials_come_from_a_connection_or_from_dlts_secrets(
    where: str, database: Path, monkeypatch: pytest.MonkeyPatch, reload_dlt: Callable[[], None]
) -> None:
    url = os.environ["SOURCES__MIXPANEL__BASE_URL"]
    for name in list(os.environ):
        if name.startswith("SOURCES__"):
            monkeypatch.delenv(name)
    if where == "connection":
        extra = f'{{"project_id": "1", "region": "us", "base_url": "{url}"}}'
        connection = f'{{"conn_type": "generic", "login": "sandbox", "password": "sandbox", "extra": {extra}}}'
        monkeypatch.setenv("AIRFLOW_CONN_MIXPANEL", connection)
    else:
        monkeypatch.setenv(
            "AIRFLOW_VAR_DLT_SECRETS_TOML",
            f'[sources.mixpanel]\nbase_url = "{url}"\n[sources.mixpanel.credentials]\n'
            'username = "sandbox"\nsecret = "sandbox"\nproject_id = "1"\nregion = "us"\n',
        )
    reload_dlt()  # a worker has a process for each task
    assert states(run(DAILY, MONTH[0])) == [("load", -1, "success")]
    assert rows(database, "SELECT count(*) FROM events") == [(3,)]
