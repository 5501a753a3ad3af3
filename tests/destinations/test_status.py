"""What `status` and `plan` tell of a destination: the same as of a DuckDB file that is loaded alike."""

from __future__ import annotations

import json
import os
from contextlib import closing
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import mpload_here
import pytest
from conftest import Clock
from export_lines import day_lines, days

from destinations.conftest import KINDS
from destinations.test_contract import MakePlace
from mixpanel_source.cli.sandbox import environment
from mixpanel_source.destinations import Target, target_of, type_of
from mixpanel_source.errors import ConfigError, WarehouseError
from mixpanel_source.exports import EventFilter
from mixpanel_source.load import load
from mixpanel_source.load_plan import plan_load
from mixpanel_source.orchestration import verify_of
from mixpanel_source.pipeline import open_pipeline
from mixpanel_source.project import Project
from mixpanel_source.sandbox import Sandbox, SandboxServer
from mixpanel_source.status import LoadStatus, Status, status
from mixpanel_source.verify import Verification, verify
from mixpanel_source.windows import DateRange, Window
from mixpanel_source.workspace import Workspace


def march(first: int, last: int | None = None) -> Window:
    return Window(date(2024, 3, first), date(2024, 3, last or first))


def load_march(
    project: Project, target: Target, first: int, last: int, *more: str, event: str | None = None, refresh: bool = False
) -> int:
    """The export requests that were sent."""
    asked = DateRange(date(2024, 3, first), date(2024, 3, last), refresh)
    result = load(project, target, ["events", *more], asked=asked, filter_=EventFilter((event,) if event else ()))
    assert result.error is None
    return result.metrics.requests_by_api.get("export", 0)


def take_away(target: Target, condition: str) -> None:
    """Rows of `events`, as something else than a load does."""
    table_format = os.environ.get("DESTINATION__FILESYSTEM__PREFERRED_TABLE_FORMAT")
    if target.destination is not None and type_of(target.destination) == "filesystem":
        if table_format == "iceberg":
            from dlt.common.libs.pyiceberg import get_catalog

            with closing(get_catalog()) as catalog:
                catalog.load_table("mixpanel.events").delete(condition)
            return
        from deltalake import DeltaTable

        DeltaTable(f"{os.environ['DESTINATION__FILESYSTEM__BUCKET_URL']}/mixpanel/events").delete(condition)
        return
    with open_pipeline(target).sql_client() as client:
        client.execute_sql(f"DELETE FROM events WHERE {condition}")


def found(told: Status) -> dict[str, Any]:
    """What is comparable: a load ends when it ends."""
    assert told.loaded is not None
    assert told.loaded.last_load is not None
    known = vars(replace(told.loaded, last_load=None, profiles_loaded_at=None))
    return known | {"wrong": [text.partition(": see")[0].partition(": load")[0] for text in told.wrong]}


def everything(folder: Path) -> set[Path]:
    """But what SQLite and locks come and go with."""
    return {path for path in folder.rglob("*") if not path.name.endswith(("-wal", "-shm", ".lock"))}


def schemas() -> list[Any]:
    """Of the Postgres that the environment names, if it does."""
    names = ("DESTINATION__POSTGRES__CREDENTIALS", "DESTINATION__DUCKLAKE__CREDENTIALS__CATALOG")
    url = next((os.environ[name] for name in names if name in os.environ), "")
    if not url.startswith("postgres"):
        return []
    import psycopg2

    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT table_schema, table_name FROM information_schema.tables ORDER BY 1, 2")
        return list(cursor.fetchall())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ducklake-duckdb"])
def test_it_is_that_of_a_file_loaded_alike_and_makes_nothing(
    kind: str,
    make_place: MakePlace,
    sandbox: Sandbox,
    project: Project,
    clock: Clock,
    database: Path,
    tmp_path: Path,
) -> None:
    place = make_place(kind)
    there = everything(tmp_path), schemas()
    looked_into = target_of(place.destination, to_read=True)
    nothing = status(looked_into, project, clock.now)
    assert (nothing.loaded, nothing.where) == (LoadStatus(), str(looked_into))
    assert list(nothing.wrong) == [f"nothing is loaded yet into {looked_into}"]
    assert (everything(tmp_path), schemas()) == there
    for day in days("2024-03-01", 11):
        lines = [] if day.endswith("06") else [*day_lines(day, 2), *day_lines(day, 2, "B", first=2)]
        sandbox.set_day(day, [*lines, b"?"] if day.endswith("11") else lines)
    sandbox.set_profiles([{"$distinct_id": "u", "$properties": {}}])
    project = replace(project, max_rejected=1.0, typed_tables=False)
    asked = DateRange(march(4).first, march(7).first)
    assert plan_load(project, looked_into, asked=asked).days == [march(4, 7)]
    assert (everything(tmp_path), schemas()) == there
    plans = [plan_load(project, looked_into, asked=asked, count=True)]
    told: list[Status] = []
    spent = []
    for target in (place.target(), Target(database)):
        spent.append(load_march(project, target, 4, 7, "profiles"))
        load_march(project, target, 7, 8, event="B")
        load_march(project, target, 11, 11)
        take_away(target, "event_date = '2024-03-05' AND insert_id = 'i1'")
        before = everything(tmp_path), schemas()
        told.append(status(target_of(place.destination, to_read=True) if told == [] else target, project, clock.now))
        after = everything(tmp_path), schemas()
        assert (after[0] ^ before[0], after[1]) == (set(), before[1])
    plans.append(plan_load(project, looked_into, asked=DateRange(march(4).first, march(10).first), count=True))
    assert (plans[1].there, plans[1].days) == ([march(4, 7)], [march(8, 10)])
    spent.append(load_march(project, place.target(), 4, 10))
    assert [plan.forecast.requests for plan in plans] == [spent[0], spent[2]]
    with place.target().written_alone(0):
        busy = status(looked_into, project, clock.now)
    assert (busy.loaded, list(busy.wrong)) == (None, [])
    assert "another load writes to" in str(busy.problem)
    assert found(told[0]) == found(told[1])
    assert [budget.api for budget in told[0].requests] == [budget.api for budget in told[1].requests] != []
    known = found(told[0])
    assert (known["missing_days"], known["incomplete_days"]) == ([march(8, 10)], [march(11)])
    assert (known["suspect_days"], known["parts"]) == ([march(5)], {'{"event":"B"}': [march(8)]})
    assert (known["days"], known["rows"], known["rejected_lines"], known["profiles"]) == (4, 17, 1, 1)
    assert told[0].last_run is not None
    assert told[0].loaded is not None
    assert told[0].loaded.profiles_loaded_at is not None


def test_mpload_tells_it_in_the_same_words_with_the_same_exit_code(
    make_place: MakePlace, server: SandboxServer, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place("sqlite")
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    where = ("--destination", place.destination, "--dataset", "other", "-f", "json")
    nothing = mpload_here.run(["status", *where])
    assert (nothing.code, "nothing is loaded yet into sqlalchemy" in nothing.err) == (1, True)
    load_march(project, target_of(place.destination, "other"), 4, 5)
    told = json.loads(mpload_here.run(["status", *where]).out)
    assert (told["days"], told["missing_days"][0]["from"]) == (2, "2024-03-06")
    assert told["database"].endswith(", dataset other")
    done = mpload_here.run(["status", *where, "--max-days-behind", "99999"])
    assert (done.code, json.loads(done.out)["wrong"]) == (0, [])
    planned = json.loads(mpload_here.run(["plan", *where, "--from", "2024-03-04", "--to", "2024-03-07"]).out)
    assert (planned["days"], planned["days_there"][0]["days"], planned["database"]) == (2, 2, told["database"])
    loaded = Workspace().status(destination=place.destination, dataset="other").loaded
    assert loaded is not None
    assert loaded.days == 2


@pytest.mark.parametrize("command", ["status", "plan"])
def test_what_cannot_be_asked_is_an_error_without_secrets(
    command: str, server: SandboxServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DESTINATION__POSTGRES__CREDENTIALS", "postgresql://u:pl4nted@127.0.0.1:1/x")
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    done = mpload_here.run([command, "--destination", "postgres", "-f", "json"])
    assert (done.code, json.loads(done.err.splitlines()[-1])["error"]) == (1, "WarehouseError")
    assert "cannot read postgres" in done.err
    assert "pl4nted" not in done.err + done.out
    assert not (tmp_path / "data" / "destinations").exists()


def test_a_lake_is_verified_and_repaired_as_a_file(
    make_place: MakePlace, sandbox: Sandbox, project: Project, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place("ducklake-sqlite")
    for day in days("2024-03-01", 8):
        sandbox.set_day(day, [*day_lines(day, 3), *day_lines(day, 2, "B", first=3)])
    project = replace(project, typed_tables=False)
    found: list[tuple[Verification, Verification]] = []
    first, last = date(2024, 3, 1), date(2024, 3, 3)
    with pytest.raises(WarehouseError, match="nothing is loaded"):
        verify(project, target_of("ducklake", to_read=True))
    for target in (place.target(), Target(database)):
        load_march(project, target, 1, 2)
        take_away(target, "event_date = '2024-03-02' AND insert_id = 'i1'")
        looked_into = target_of("ducklake", to_read=True) if found == [] else target
        before = verify(project, looked_into, from_date=first, to_date=last)
        found.append((before, verify(project, target, from_date=first, to_date=last, repair=True)))
    assert found[0] == found[1]
    before, after = found[0]
    assert {(count.day.day, count.verdict) for count in before.wrong} >= {(2, "different"), (3, "missing")}
    assert (after.wrong, [day.day for day in after.repaired]) == ([], [2, 3])
    assert verify_of(project, place.target()) == verify_of(project, Target(database))
    monkeypatch.setattr("mixpanel_source.verify.LOCK_WAIT_S", 0.0)
    with place.target().written_alone(0), pytest.raises(WarehouseError, match="another load writes"):
        verify(project, target_of("ducklake", to_read=True))


def test_another_destination_is_not_verified(make_place: MakePlace, project: Project) -> None:
    place = make_place("sqlite")
    with pytest.raises(ConfigError, match="DuckDB files and ducklake alone"):
        verify(project, target_of(place.destination, to_read=True))
