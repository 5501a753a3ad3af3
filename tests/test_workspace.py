"""`Workspace`: what the command line does, as library calls."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import pytest
from export_lines import at, line

import mixpanel_source
from mixpanel_source import Workspace, settings
from mixpanel_source.discovery import Discovery
from mixpanel_source.errors import (
    AuthenticationError,
    ConfigError,
    QueryError,
    ServerError,
    TableExistsError,
    WarehouseError,
)
from mixpanel_source.project import Project
from mixpanel_source.reports import Reports
from mixpanel_source.sandbox import Fault, Sandbox, SandboxServer

DAY = "2024-03-05"


@pytest.fixture(autouse=True)
def _environment(sandbox: Sandbox, server: SandboxServer, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"USERNAME": "sandbox", "SECRET": "sandbox", "PROJECT_ID": "1", "REGION": "us", "BASE_URL": server.url}
    for name, value in given.items():
        monkeypatch.setenv(f"MP_{name}", value)
    sandbox.set_day(DAY, [line(at(DAY, n), n, "AB"[n % 2]) for n in range(6)])
    sandbox.set_profiles([{"$distinct_id": "u1", "$properties": {"plan": "pro"}}])
    sandbox.set_cohorts([{"id": 5, "name": "Payers", "members": ["u1"]}])


def test_it_loads_asks_and_tells(tmp_path: Path) -> None:
    with Workspace(path=tmp_path / "own.duckdb") as ws:
        result = ws.load(from_date=DAY, to_date=DAY)
        assert [(table.table, table.rows) for table in result.tables] == [("events", 6), ("profiles", 1)]
        assert ws.sql("select event_name, count(*) as n from events group by all order by 1").columns == [
            "event_name",
            "n",
        ]
        assert ws.sql_rows("select event_name, count(*) from events group by all order by 1") == [("A", 3), ("B", 3)]
        assert ws.sql_scalar("select count(*) from profiles") == 1
        tables = ["event_days", "events", "load_runs", "profiles", "rejected_lines"]
        assert [table.name for table in ws.tables()] == tables
        assert ("event_date", "DATE") in ws.schema("events")
        loaded = ws.status().loaded
        assert loaded is not None
        assert (loaded.days, loaded.first_day) == (1, date.fromisoformat(DAY))
        assert ws.info()["project_id"] == "1"
        with pytest.raises(QueryError):
            ws.sql("delete from events")


def test_it_has_snapshots_beside_loads(tmp_path: Path) -> None:
    with Workspace(path=tmp_path / "own.duckdb") as ws:
        assert ws.fetch_events("a", DAY, DAY, events=["A"]).rows == 3
        assert ws.connection.execute("select count(*) from a").fetchall() == [(3,)]  # is closed for the next one
        assert ws.fetch_profiles().table == "profiles"
        with pytest.raises(TableExistsError):
            ws.fetch_profiles()
        with pytest.raises(ConfigError, match="needs its days"):
            ws.fetch_events("b")
        ws.drop("a")
        assert ws.drop_all("profiles") == ["profiles"]
        assert [table.name for table in ws.tables()] == ["fetches"]


def test_it_explores_and_reports(sandbox: Sandbox) -> None:
    with Workspace() as ws:
        assert ws.cohorts()[0]["name"] == "Payers"
        assert ws.segmentation("A", DAY, DAY).total == 3
        before = len(sandbox.requests)
        assert ws.cohorts()[0]["name"] == "Payers"
        assert len(sandbox.requests) == before
        assert ws.api.me()["status"] == "ok"


@pytest.mark.parametrize("of", [Reports, Discovery])
def test_it_has_every_report_and_every_list_with_its_own_signature(of: type) -> None:
    names = [name for name, member in inspect.getmembers(of, inspect.isfunction) if not name.startswith("_")]
    assert names
    for name in names:
        own = getattr(Workspace, {"values": "property_values"}.get(name, name))
        if name != "values":
            assert inspect.signature(own) == inspect.signature(getattr(of, name))
            assert own.__doc__ == getattr(of, name).__doc__


def test_an_ephemeral_one_leaves_nothing(sandbox: Sandbox) -> None:
    paths: list[Path] = []

    def use() -> None:
        with Workspace.ephemeral() as ws:
            ws.load("events", from_date=DAY, to_date=DAY)
            paths.append(ws.path)
            assert ws.path.exists()
            assert ws.sql_scalar("select count(*) from events") == 6
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert not paths[0].parent.exists()
    assert list((settings.data_folder() / "pipelines").rglob("*")) == []
    forgotten = Workspace.ephemeral()
    path = forgotten.path
    assert path.parent.exists()
    del forgotten
    gc.collect()
    assert not path.parent.exists()


def test_one_of_a_file_needs_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Workspace(path=tmp_path / "own.duckdb") as ws:
        ws.load("events", from_date=DAY, to_date=DAY)
    for name in ("USERNAME", "SECRET", "PROJECT_ID", "REGION"):
        monkeypatch.delenv(f"MP_{name}")
    with Workspace.open(tmp_path / "own.duckdb") as ws:
        assert ws.sql_scalar("select count(*) from events") == 6
        assert ws.status().requests == []
        for ask in (ws.events, lambda: ws.load()):
            with pytest.raises(AuthenticationError, match="without credentials"):
                ask()
    with Workspace.open(tmp_path / "nothing.duckdb") as ws, pytest.raises(WarehouseError, match="there is no database"):
        ws.sql("select 1")


def test_project_and_region_take_the_place_of_the_accounts_own(tmp_path: Path) -> None:
    with Workspace(project_id="77", region="eu") as ws:
        assert (ws.account.credentials.project_id, ws.account.credentials.region) == ("77", "eu")
        assert ws.path.name == "77.duckdb"
    with pytest.raises(ConfigError, match="region 'mars'"):
        Workspace(region="mars")


def test_the_first_error_of_a_load_is_raised(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.faults.next("export", *[Fault.http(500)] * 4)
    with Workspace(path=tmp_path / "own.duckdb") as ws:
        with pytest.raises(ServerError):
            ws.load(from_date=DAY, to_date=DAY)
        assert ws.sql_scalar("select count(*) from profiles") == 1


def test_its_name_is_imported_when_it_is_used() -> None:
    assert mixpanel_source.Workspace is Workspace


def test_a_text_in_the_place_of_a_list_of_events_is_refused(sandbox: Sandbox) -> None:
    with Workspace.ephemeral() as ws:
        asks: list[Callable[..., object]] = [ws.load, ws.plan, ws.verify, partial(ws.fetch_events, "some")]
        for ask in asks:
            with pytest.raises(ConfigError, match="a list of names, not the text 'Sign Up'"):
                ask(from_date=DAY, to_date=DAY, events="Sign Up")
    assert sandbox.requests == []
