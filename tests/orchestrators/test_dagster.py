"""The Dagster assets against a Mixpanel on loopback, each in a process and instance of its own or this one's."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest

from mixpanel_source.load import load
from mixpanel_source.load_plan import plan_load
from mixpanel_source.many_projects import dataset_of
from mixpanel_source.sandbox import Sandbox
from mixpanel_source.source import configured_project
from mixpanel_source.windows import DateRange
from orchestrators.conftest import (
    FIRST,
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
from pipelines import dagster_assets as assets
from soak.many_sandboxes import serving

Exports = Callable[[], list[tuple[str, str]]]


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dg.RetryPolicy, "calculate_delay", lambda self, attempt: 0.0)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


class Materialize:
    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance

    def __call__(
        self, first: date | None = None, last: date | None = None, *, selection: Any = None, refresh: bool = False
    ) -> dg.ExecuteInProcessResult:
        """The events of a day or a range of days, without checks; or what is selected."""
        key: dict[str, Any] = {}
        if first is not None:
            ends = str(first), str(last or first)
            key = {"tags": dict(zip(assets.RANGE, ends, strict=True))} if last else {"partition_key": ends[0]}
        return dg.materialize(
            [*(assets.defs.assets or ()), *(assets.defs.asset_checks or ())],
            selection=selection or dg.AssetSelection.assets(assets.EVENTS).without_checks(),
            instance=self.instance,
            run_config={"ops": {"mixpanel_events": {"config": {"refresh": refresh}}}} if refresh else None,
            raise_on_error=False,
            **key,
        )


@pytest.fixture
def materialize(instance: dg.DagsterInstance, database: Path) -> Materialize:
    return Materialize(instance)


def checks_of(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {check.check_name: check.passed for check in result.get_asset_check_evaluations()}


def test_an_account_is_a_partition_and_the_schedule_asks_for_all(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    other = Sandbox(project_id="2", limits=False)
    other.add_events(events_of(TODAY - timedelta(days=1), 5))
    config = tmp_path / "config.toml"
    account = '[accounts.%s]\nusername = "sandbox"\nsecret = "%s"\nproject_id = "%s"\nregion = "us"\n'
    accounts = (("one", "sandbox", "1"), ("two", "sandbox", "2"), ("wrong", "no", "2"))
    config.write_text("".join(account % keys for keys in accounts))
    config.chmod(0o600)
    for name, value in {"MP_CONFIG_PATH": config, "MP_DATA_DIR": tmp_path / "data"}.items():
        monkeypatch.setenv(name, str(value))
    (tmp_path / "dagster").mkdir()
    instance = dg.DagsterInstance.local_temp(str(tmp_path / "dagster"))  # a schedule takes no ephemeral one
    at = dg.build_schedule_context(instance=instance, scheduled_execution_time=datetime.now(UTC))
    requests: Any = assets.projects_schedule(at)
    assert [request.partition_key for request in requests] == ["one", "two", "wrong"]
    outcomes = {}
    with serving([sandbox, other]) as server:
        monkeypatch.setenv("MP_BASE_URL", server.url)
        for request in requests:
            done = dg.materialize(
                [assets.mixpanel_project], partition_key=request.partition_key, instance=instance, raise_on_error=False
            )
            outcomes[request.partition_key] = done.success
    assert outcomes == {"one": True, "two": True, "wrong": False}
    counted = [rows(tmp_path / "data" / f"{id_}.duckdb", "SELECT count(*) FROM events") for id_ in (1, 2)]
    assert counted == [[(90,)], [(5,)]]


def test_accounts_of_dlts_secrets_are_loaded_into_a_destination_and_only_what_failed_anew(
    three_projects: None,
    exports: Exports,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reload_dlt: Callable[[], None],
) -> None:
    monkeypatch.setattr(assets, "DESTINATION", "sqlalchemy")
    (tmp_path / ".dlt").mkdir()
    (tmp_path / "dagster").mkdir()
    (tmp_path / ".dlt/secrets.toml").write_text(accounts_of_dlt(tmp_path, one="sandbox", two="sandbox", wrong="no"))
    monkeypatch.chdir(tmp_path)
    reload_dlt()
    instance = dg.DagsterInstance.local_temp(str(tmp_path / "dagster"))

    def run() -> dict[str, bool]:
        at = dg.build_schedule_context(instance=instance, scheduled_execution_time=datetime.now(UTC))
        requests: Any = assets.projects_schedule(at)
        return {
            request.partition_key: dg.materialize(
                [assets.mixpanel_project], partition_key=request.partition_key, instance=instance, raise_on_error=False
            ).success
            for request in requests
        }

    assert run() == {"one": True, "two": True, "wrong": False}
    assert [count_in_sqlite(dataset_of(name)) for name in ("one", "two")] == [90, 5]
    assert count_in_sqlite(dataset_of("one"), "profiles") == 2
    before = len(exports())
    monkeypatch.setenv("SOURCES__MIXPANEL__ACCOUNTS__WRONG__SECRET", "sandbox")
    assert run() == {"one": True, "two": True, "wrong": True}
    assert [count_in_sqlite(dataset_of(name)) for name in ("one", "two", "wrong")] == [90, 5, 7]
    assert exports()[before:] == [(str(TODAY - timedelta(days=5)), str(TODAY - timedelta(days=1)))]


CHECKS = dg.AssetSelection.checks_for_assets(assets.EVENTS)
LOOKS = dg.AssetSelection.checks(*(dg.AssetCheckKey(assets.EVENTS, name) for name in ("complete", "fresh")))


def test_the_definitions_load_without_credentials_network_or_anything_written(tmp_path: Path) -> None:
    code = """
import socket
def refuse(*args): raise AssertionError("the network is used")
socket.socket.connect = socket.getaddrinfo = refuse
import dagster as dg
from pipelines import dagster_assets
dg.Definitions.validate_loadable(dagster_assets.defs)
print(*sorted(key.path[-1] for key in dagster_assets.defs.resolve_asset_graph().get_all_asset_keys()))
"""
    home = tmp_path / "nobody"
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {"events", "profiles", "cohorts", "segmentation"} <= set(done.stdout.split())
    assert list(home.rglob("*.duckdb")) == []
    assert list(home.glob(".mp*")) == []


def test_a_partition_is_exactly_its_day_with_its_figures(
    materialize: Materialize, instance: dg.DagsterInstance, database: Path
) -> None:
    day = MONTH[3]
    assert materialize(day).success
    assert rows(database, "SELECT event_date, count(*) FROM events GROUP BY ALL") == [(day, 3)]
    event = instance.get_latest_materialization_event(assets.EVENTS)
    assert event is not None
    assert event.asset_materialization is not None
    told = {name: value.value for name, value in event.asset_materialization.metadata.items()}
    size = rows(database, "SELECT bytes FROM event_days")[0][0]
    assert {name: told[name] for name in ("rows", "bytes", "requests", "days")} == {
        "rows": 3,
        "bytes": size,
        "requests": 1,
        "days": 1,
    }
    assert event.asset_materialization.partition == str(day)


def test_a_settled_day_is_asked_for_again_only_with_refresh(
    materialize: Materialize, sandbox: Sandbox, database: Path, exports: Exports
) -> None:
    day = MONTH[0]
    assert materialize(day).success
    sandbox.add_events(events_of(day, 5)[3:])
    assert materialize(day).success
    assert len(exports()) == 1
    assert materialize(day, refresh=True).success
    assert len(exports()) == 2
    assert rows(database, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(5, 5)]


def test_a_backfill_of_a_month_asks_for_no_more_than_the_plan_says(
    materialize: Materialize, instance: dg.DagsterInstance, database: Path, exports: Exports
) -> None:
    project = configured_project()
    plan = plan_load(project, database, asked=DateRange(MONTH[0], MONTH[-1]), count=True)
    assert materialize(MONTH[0], MONTH[-1]).success
    assert 0 < len(exports()) <= plan.forecast.requests
    done = instance.get_materialized_partitions(assets.EVENTS)
    assert done == {str(day) for day in MONTH}


def test_a_month_in_any_order_twice_with_two_runs_killed_is_one_straight_load(
    materialize: Materialize, database: Path, tmp_path: Path
) -> None:
    code = """
import dagster as dg
from pipelines import dagster_assets as assets
config = {"ops": {"mixpanel_events": {"config": {"refresh": True}}}}
with dg.DagsterInstance.ephemeral() as instance:
    dg.materialize([assets.mixpanel_events], partition_key=sys.argv[2], run_config=config, instance=instance)
"""
    for n, day in enumerate(TWICE):
        if n in KILLS:
            kill(KILLS[n], code, str(day))
        assert materialize(day, refresh=True).success
    assert len(KILLS) == 2
    straight = tmp_path / "straight.duckdb"
    assert load(configured_project(), straight, ["events"], asked=DateRange(MONTH[0], MONTH[-1])).error is None
    assert events_in(database) == events_in(straight)
    assert len(events_in(database)) == 90


def test_what_no_retry_helps_is_not_retried_and_says_what_to_do(
    materialize: Materialize, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCES__MIXPANEL__CREDENTIALS__SECRET", "wrong")
    result = materialize(MONTH[0])
    [failed] = [event for event in result.all_events if event.is_step_failure]
    assert "AuthenticationError" in str(failed.step_failure_data.error)
    assert "wrong" not in str(failed.step_failure_data)


def test_a_table_is_an_asset_of_its_own(materialize: Materialize, database: Path) -> None:
    result = materialize(selection=dg.AssetSelection.assets(assets.SPECS["profiles"].key))
    assert result.success
    assert rows(database, "SELECT distinct_id FROM profiles ORDER BY ALL") == [("u0",), ("u1",)]
    [event] = result.asset_materializations_for_node("mixpanel_profiles")
    assert {name: event.metadata[name].value for name in ("rows", "requests")} == {"rows": 2, "requests": 1}


def test_checks_pass_where_all_is_there_and_each_fails_for_its_own_reason(
    materialize: Materialize, database: Path
) -> None:
    yesterday = TODAY - timedelta(days=1)
    assert materialize(FIRST, yesterday).success
    assert checks_of(materialize(selection=CHECKS)) == {"complete": True, "fresh": True, "counts_agree": True}

    with duckdb.connect(str(database)) as connection:
        connection.execute(f"DELETE FROM mixpanel.events WHERE event_date = DATE '{MONTH[0]}'")
    assert checks_of(materialize(selection=CHECKS)) == {"complete": True, "fresh": True, "counts_agree": False}

    with duckdb.connect(str(database)) as connection:
        connection.execute(f"DELETE FROM mixpanel.event_days WHERE day IN ('{MONTH[5]}', '{yesterday}')")
    assert checks_of(materialize(selection=CHECKS)) == {"complete": False, "fresh": False, "counts_agree": False}


def test_days_and_tables_go_to_another_destination_and_the_checks_look_there(
    materialize: Materialize, database: Path, exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESTINATION__SQLALCHEMY__CREDENTIALS", f"sqlite:///{tmp_path}/all.db")
    monkeypatch.setattr(assets, "DESTINATION", "sqlalchemy")
    monkeypatch.setattr(assets, "DATASET", "of_us")
    assert checks_of(materialize(selection=LOOKS)) == {}  # nothing can be told
    yesterday = TODAY - timedelta(days=1)
    assert materialize(FIRST, yesterday).success
    assert materialize(selection=dg.AssetSelection.assets(["mixpanel", "profiles"])).success
    assert (count_in_sqlite("of_us"), count_in_sqlite("of_us", "profiles")) == (120, 2)
    assert checks_of(materialize(selection=LOOKS)) == {"complete": True, "fresh": True}
    before = len(exports())
    assert materialize(MONTH[3]).success
    assert len(exports()) == before
    with sqlite3.connect(tmp_path / "all.db") as connection:
        connection.execute(f"ATTACH '{tmp_path}/all__of_us.db' AS of_us")
        connection.execute("DELETE FROM of_us.event_days WHERE day = ?", [str(MONTH[5])])
    assert checks_of(materialize(selection=LOOKS)) == {"complete": False, "fresh": True}
    assert not database.exists()


def test_the_schedule_loads_yesterday_and_what_may_still_change(
    instance: dg.DagsterInstance, database: Path, exports: Exports
) -> None:
    due = datetime(TODAY.year, TODAY.month, TODAY.day, 6, tzinfo=UTC)
    context = dg.build_schedule_context(instance=instance, scheduled_execution_time=due)
    request = assets.events_schedule(context)
    assert isinstance(request, dg.RunRequest)
    job = assets.defs.resolve_job_def("mixpanel_events_daily")
    assert job.execute_in_process(instance=instance, tags=request.tags, raise_on_error=False).success
    loaded = rows(database, "SELECT min(day), max(day), count(*) FROM event_days")
    assert loaded == [(TODAY - timedelta(days=6), TODAY - timedelta(days=1), 6)]
    assert job.execute_in_process(instance=instance, tags=request.tags, raise_on_error=False).success
    first = str(TODAY - timedelta(days=5))  # the day before it was settled when it was loaded
    assert exports()[-1] == (first, str(TODAY - timedelta(days=1)))


@pytest.mark.parametrize("are_let_in", [1, 3])
def test_runs_that_begin_together_write_one_by_one_and_ask_for_nothing_twice(
    are_let_in: int, database: Path, exports: Exports, tmp_path: Path
) -> None:
    """With the pool at its first use, and where it lets all in: of two that ask for a slot at the same moment Dagster
    (1.13) may let in both, where it keeps its slots in SQLite."""
    home = tmp_path / "dagster"
    home.mkdir()
    if are_let_in == 1:
        shutil.copy("pipelines/dagster.yaml", home)
    code = """
import os, sys, time, dagster as dg
from pathlib import Path
from mixpanel_source import orchestration
from pipelines import dagster_assets as assets
home, load_days = Path(os.environ["DAGSTER_HOME"]), orchestration.load_days
def once_they_are_in(*args, **kwargs):
    (home / f"{os.getpid()}.in").touch()
    while len(list(home.glob("*.in"))) < int(sys.argv[2]):
        time.sleep(0.1)
    return load_days(*args, **kwargs)
orchestration.load_days = once_they_are_in
with dg.DagsterInstance.get() as instance:
    result = dg.materialize([assets.mixpanel_events], partition_key=sys.argv[1], instance=instance)
sys.exit(not result.success or any(event.is_step_up_for_retry for event in result.all_events))
"""
    environment = {**os.environ, "DAGSTER_HOME": str(home), "PYTHONPATH": str(Path.cwd())}
    with dg.DagsterInstance.from_config(str(home)):
        pass  # its files are made once

    def run(day: date) -> int:
        return subprocess.run(
            [sys.executable, "-c", code, str(day), str(are_let_in)], env=environment, check=False, timeout=100
        ).returncode

    with ThreadPoolExecutor() as threads:
        assert list(threads.map(run, [MONTH[0], MONTH[0], MONTH[1]])) == [0, 0, 0]
    with dg.DagsterInstance.from_config(str(home)) as instance:
        limits = {limit.name: limit.limit for limit in instance.event_log_storage.get_pool_limits()}
        assert limits.get(assets.POOL) == (1 if are_let_in == 1 else None)
    assert sorted(exports()) == [(str(day), str(day)) for day in MONTH[:2]]
    assert rows(database, "SELECT count(*), count(DISTINCT event_date) FROM events") == [(6, 2)]
    loads = rows(database, "SELECT began_at, ended_at FROM load_runs ORDER BY began_at")
    assert len(loads) == 2
    assert loads[0][1] <= loads[1][0]
