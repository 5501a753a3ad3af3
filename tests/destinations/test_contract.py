"""What holds of each destination: days are exact, JSON is as it came, and nothing is lost or there twice."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import dlt
import mpload_here
import psycopg2
import pyarrow as pa
import pytest
from dlt.destinations.exceptions import DatabaseTerminalException
from dlt.extract import DltSource

from destinations.conftest import EVENT_DAYS, EVENTS, KINDS, Place, asking, contents, odd_lines
from destinations.loading import client_class, load_into, project_at
from mixpanel_source.destination_sql import lake_opened
from mixpanel_source.destinations import Target, target_of
from mixpanel_source.engage import MembersAsked, ProfilesAsked
from mixpanel_source.errors import ConfigError, MixpanelDataError, WarehouseError
from mixpanel_source.exports import EventFilter
from mixpanel_source.load import load
from mixpanel_source.project import Project
from mixpanel_source.report_questions import questions_of
from mixpanel_source.sandbox import Sandbox, SandboxServer
from mixpanel_source.source import mixpanel_source
from mixpanel_source.warehouse import query
from mixpanel_source.windows import DateRange
from soak.postgres import PostgresServer

SPREAD = 20
"""Steps that one load may take more than another."""

MakePlace = Callable[[str], Place]


def straight(url: str, database: Path, days: Sequence[str]) -> Target:
    """One load of all days into a DuckDB file."""
    target = Target(database)
    asked = DateRange(date.fromisoformat(days[0]), date.fromisoformat(days[-1]))
    result = load(project_at(url), target, asked=asked)
    assert result.error is None
    return target


TESTS = Path(__file__).parent.parent


def plain_source(project: Project, first: str, last: str) -> DltSource:
    credentials: Any = project.credentials
    return mixpanel_source(
        first, last, refresh=True, credentials=credentials, base_url=project.base_url, max_rejected=1.0
    )


def process(
    url: str, place: Place, *ranges: str, kill_at: int | str = 0, data: Path | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "destinations.loading", url, place.destination, str(kill_at), *ranges],
        env={**os.environ, "PYTHONPATH": str(TESTS), **({"MP_DATA_DIR": str(data)} if data else {})},
        stdout=subprocess.PIPE,
        text=True,
    )


IN_S3 = ("delta-s3", "iceberg-s3", "ducklake-s3")


@pytest.mark.parametrize("kind", [*KINDS, *IN_S3])
def test_partitions_in_any_order_and_killed_loads_make_what_one_load_makes(
    kind: str, make_place: MakePlace, server: SandboxServer, month: list[str], database: Path
) -> None:
    place = make_place(kind)
    partitions = [month[n : n + place.days_at_once] for n in range(0, len(month), place.days_at_once)]
    chance = random.Random(kind)
    for run in range(2):
        chance.shuffle(partitions)
        killed = partitions[:2] if run else []
        steps = 0
        for days in killed:
            span = f"{days[0]}:{days[-1]}"
            steps = steps or int(process(server.url, place, span).communicate()[0])
            loading = process(server.url, place, span, kill_at=chance.randint(steps // 3, steps - SPREAD))
            assert (loading.communicate()[0], loading.returncode) == ("", -signal.SIGKILL)
        for days in partitions:
            load_into(place.destination, server.url, date.fromisoformat(days[0]), date.fromisoformat(days[-1]))
    load_into(place.destination, server.url, date(2024, 2, 1), date(2024, 2, 1), "profiles")
    expected = contents(straight(server.url, database, month))
    found = contents(place.target())
    assert found == expected
    assert len(expected["event_days"]) == 30
    assert all(expected.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_day_that_comes_back_smaller_or_empty_is_smaller_or_empty(
    kind: str, make_place: MakePlace, server: SandboxServer, sandbox: Sandbox, month: list[str], database: Path
) -> None:
    place = make_place(kind)
    days = month[:4]
    first, last = map(date.fromisoformat, (days[0], days[-1]))
    load_into(place.destination, server.url, first, last)
    sandbox.set_day(days[1], odd_lines(days[1], 1))
    sandbox.set_day(days[2], [])
    load_into(place.destination, server.url, date.fromisoformat(days[1]), date.fromisoformat(days[2]))
    expected = contents(straight(server.url, database, days), "events", "event_days")
    assert contents(place.target(), "events", "event_days") == expected


class BrokenOff(DatabaseTerminalException):
    def __init__(self) -> None:
        super().__init__(RuntimeError("broken off"))


def break_off_merge(destination: str, broken: pytest.MonkeyPatch, stopped: list[Any]) -> None:
    """The days are deleted from `events`, and nothing is inserted."""
    client = client_class(destination)
    original = client.execute_sql

    def execute_sql(self: Any, sql: Any, *args: Any, **kwargs: Any) -> Any:
        if insert := re.search(r"INSERT INTO (?!\S*_staging)\S*\bevents\W", str(sql)):
            stopped.append(sql)
            if deletes := str(sql)[: insert.start()].strip():  # dlt may send both at once
                original(self, deletes)
            raise BrokenOff
        return original(self, sql, *args, **kwargs)

    broken.setattr(client, "execute_sql", execute_sql)


def break_off_delta(_: str, broken: pytest.MonkeyPatch, stopped: list[Any]) -> None:
    """Of the rows of `events` the first batch is written, and no more."""
    import deltalake

    original = deltalake.write_deltalake

    def write(table: Any, rows: Any, **how: Any) -> None:
        if "event_date" not in rows.schema.names:
            original(table, rows, **how)
            return

        def first_batch() -> Iterator[Any]:
            yield rows.read_next_batch()
            stopped.append(table)
            raise RuntimeError("broken off")

        with suppress(Exception):
            original(table, pa.RecordBatchReader.from_batches(rows.schema, first_batch()), **how)
        raise BrokenOff

    broken.setattr(deltalake, "write_deltalake", write)


def break_off_iceberg(_: str, broken: pytest.MonkeyPatch, stopped: list[Any]) -> None:
    """All files of `events` are written, and never become the table's."""
    from pyiceberg.catalog.sql import SqlCatalog

    original = SqlCatalog.commit_table

    def commit(self: Any, table: Any, *args: Any) -> Any:
        if table.name()[-1] == "events":
            stopped.append(table)
            raise BrokenOff
        return original(self, table, *args)

    broken.setattr(SqlCatalog, "commit_table", commit)


@pytest.mark.parametrize(
    ("kind", "break_off"),
    [
        ("postgres", break_off_merge),
        ("sqlite", break_off_merge),
        ("ducklake-duckdb", break_off_merge),
        ("delta", break_off_delta),
        ("iceberg", break_off_iceberg),
    ],
)
def test_a_replacement_that_stops_half_way_leaves_the_days_as_they_were(
    kind: str,
    break_off: Callable[[str, pytest.MonkeyPatch, list[Any]], None],
    make_place: MakePlace,
    server: SandboxServer,
    month: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = make_place(kind)
    first, last = map(date.fromisoformat, month[:2])
    load_into(place.destination, server.url, first, last)
    tables = ("events", "event_days", "rejected_lines")
    before = contents(place.target(), *tables)
    stopped: list[Any] = []
    with monkeypatch.context() as broken:
        break_off(place.destination, broken, stopped)
        with pytest.raises(WarehouseError):
            load_into(place.destination, server.url, first, last)
    assert stopped
    assert contents(place.target(), "events") == {"events": before["events"]}
    load_into(place.destination, server.url, first, last)
    assert contents(place.target(), *tables) == before


def by_two_machines(url: str, place: Place, days: Sequence[str], folder: Path) -> None:
    """Each loads every other day, both at once."""
    writers = [
        process(url, place, *(f"{day}:{day}" for day in days[half::2]), data=folder / f"machine{half}")
        for half in (0, 1)
    ]
    assert [(writer.communicate()[0] != "", writer.returncode) for writer in writers] == [(True, 0), (True, 0)]


@pytest.mark.parametrize(
    "kind", ["postgres", "sqlite", "ducklake-postgres", "ducklake-sqlite", "delta", "iceberg", *IN_S3]
)
def test_writers_of_two_machines_lose_nothing_from_the_first_load_on(
    kind: str, make_place: MakePlace, server: SandboxServer, month: list[str], database: Path, tmp_path: Path
) -> None:
    place = make_place(kind)
    count = 6 if place.days_at_once == 1 else 3
    days = month[: 2 * count]
    by_two_machines(server.url, place, days, tmp_path)
    expected = contents(straight(server.url, database, days), "events", "event_days")
    assert contents(place.target(), "events", "event_days") == expected


def test_two_first_loads_at_once_into_datasets_of_a_new_lake(
    make_place: MakePlace, server: SandboxServer, month: list[str], tmp_path: Path
) -> None:
    make_place("ducklake-postgres")
    writers = [
        process(server.url, Place(f"ducklake/{name}", 1), f"{month[0]}:{month[0]}", data=tmp_path / name)
        for name in ("one", "two")
    ]
    assert [(writer.communicate()[0] != "", writer.returncode) for writer in writers] == [(True, 0), (True, 0)]
    for name in ("one", "two"):
        with lake_opened(target_of("ducklake", name)) as connection:
            assert query(connection, "SELECT count(*) FROM events").rows == [(3,)]


def test_a_wait_for_another_load_into_postgres_ends(make_place: MakePlace) -> None:
    target = make_place("postgres").target()
    again = target.written_alone(0.1)
    with target.written_alone(0.1), pytest.raises(WarehouseError, match="another load writes"), again:
        pass


@pytest.mark.parametrize("kind", ["postgres", "delta"])
def test_two_spellings_of_a_dataset_are_written_one_at_a_time(kind: str, make_place: MakePlace) -> None:
    name = make_place(kind).destination
    again = target_of(name, "my_data").written_alone(0.1)
    with target_of(name, "MyData").written_alone(0.1), pytest.raises(WarehouseError, match="another load"), again:
        pass


def test_a_server_that_ends_idle_sessions_leaves_the_lock(
    make_place: MakePlace, postgres_server: PostgresServer
) -> None:
    target = make_place("postgres").target()
    with closing(psycopg2.connect(postgres_server.url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        role = os.environ["DESTINATION__POSTGRES__CREDENTIALS"].rpartition("/")[2]
        cursor.execute(f"ALTER ROLE {role} SET idle_session_timeout = '400ms'")
        again = target.written_alone(0.1)
        with target.written_alone(0.1):
            cursor.execute("SELECT pg_sleep(0.8)")
            with pytest.raises(WarehouseError, match="another load writes"), again:
                pass


def test_a_load_whose_lock_is_lost_fails(
    make_place: MakePlace, postgres_server: PostgresServer, server: SandboxServer, month: list[str]
) -> None:
    target = make_place("postgres").target()
    with closing(psycopg2.connect(postgres_server.url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory'"

        def lose() -> Any:
            cursor.execute(ended)
            return cursor.fetchone()

        with pytest.raises(WarehouseError, match="was lost"), target.written_alone(0.1):
            assert lose() == (1,)

        with pytest.MonkeyPatch.context() as patch:
            load_tables = dlt.Pipeline.load
            patch.setattr(dlt.Pipeline, "load", lambda self, *a, **k: (lose(), load_tables(self, *a, **k))[1])
            day = date.fromisoformat(month[0])
            result = load(project_at(server.url), target, asked=DateRange(day, day))
        assert "was lost" in str(result.error)


@pytest.mark.parametrize("kind", ["postgres", "sqlite", "delta", "iceberg"])
def test_the_plain_dlt_way_replaces_exactly_too(
    kind: str,
    make_place: MakePlace,
    server: SandboxServer,
    month: list[str],
    database: Path,
    project: Project,
    tmp_path: Path,
) -> None:
    place = make_place(kind)
    for run in range(2):
        pipeline = dlt.pipeline(
            "plain", destination=place.destination, dataset_name="mixpanel", pipelines_dir=str(tmp_path / f"dlt{run}")
        )
        pipeline.run(plain_source(project, month[0], month[2]))
    assert contents(place.target()) == contents(straight(server.url, database, month[:3]))


def odd_event(name: str, day: str, **properties: Any) -> bytes:
    seconds = int(datetime.fromisoformat(f"{day}T09:00Z").timestamp())
    return json.dumps({"event": name, "properties": {"time": seconds, "distinct_id": "u", **properties}}).encode()


ODD_NAMES = ("it's {odd}; \n|| chr(65) ||", "Alter\0 'x", "plain")
PARTS = {
    "events": EVENTS,
    "event_days": f"{EVENT_DAYS}, filter",
    "segmentation": "report, segment, day, value",
    "report_days": "table_name, report, question, day, complete",
    "cohorts": "id, name, count",
    "cohort_members": "cohort_id, distinct_id",
    "group_profiles": "data_group_id, distinct_id, CAST(properties AS TEXT)",
    "profiles": "distinct_id, CAST(properties AS TEXT)",
}


@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_parts_of_tables_are_replaced_as_in_duckdb(
    kind: str, make_place: MakePlace, server: SandboxServer, sandbox: Sandbox, database: Path
) -> None:
    targets = make_place(kind).target(), Target(database)
    reports = {"segmentation": [{"report": "it's", "event": "plain"}, {"report": "b", "event": "B"}]}
    questions = [question for table, rows in reports.items() for question in questions_of(table, rows)]
    project = replace(project_at(server.url), data_group_ids=("7", "8"), questions=questions, typed_tables=False)
    days = "2024-03-01", "2024-03-02"
    both = DateRange(date(2024, 3, 1), date(2024, 3, 2), refresh=True)

    def serve(run: int) -> None:
        for day in days:
            names = (*ODD_NAMES, f"E{run}")
            sandbox.set_day(day, [odd_event(name, day, run=run, **{"$insert_id": name[:4]}) for name in names])
        cohorts = [{"id": 5, "name": "gone", "members": ["u0"]}, {"id": 9, "name": f"c{run}", "members": [f"u{run}"]}]
        sandbox.set_cohorts(cohorts[run:])
        for group in ("7", "8"):
            sandbox.set_profiles([{"$distinct_id": f"g{run}", "$properties": {"of": group}}], group)
        sandbox.set_profiles([{"$distinct_id": f"u{n}", "$properties": {"n": n, "run": run}} for n in range(3 - run)])

    def load_both(*resources: str, project: Project = project, asked: DateRange = both, **how: Any) -> None:
        for target in targets:
            result = load(project, target, resources, asked=asked, **how)
            assert result.error is None

    def same(*tables: str) -> None:
        for table in tables:
            rows = []
            for target in targets:
                with asking(target) as ask:
                    rows.append(sorted(map(repr, ask(f"SELECT {PARTS[table]} FROM {table}", table) or [])))
            assert rows[0] == rows[1], table
            assert rows[0], table

    serve(0)
    load_both("events", "profiles", "group_profiles", "cohorts", "cohort_members", "segmentation")
    same(*PARTS)
    serve(1)
    load_both("events", filter_=EventFilter(ODD_NAMES[:2]))
    same("events", "event_days")
    load_both("events", filter_=EventFilter(where='properties["run"] == 1'))
    load_both("events", asked=DateRange(date(2024, 3, 1), date(2024, 3, 1), refresh=True))
    same("events", "event_days")
    load_both("profiles", profiles=ProfilesAsked(where='properties["n"] == 1'))
    load_both("group_profiles", "cohorts", project=replace(project, data_group_ids=("8",)))
    load_both("cohort_members", members=MembersAsked((9,)))
    load_both("segmentation", asked=DateRange(date(2024, 3, 2), date(2024, 3, 3)))
    same(*PARTS)
    with pytest.raises(ConfigError, match="keep no history"):
        load(project, targets[0], ["profiles"], profiles=ProfilesAsked(history=True))


@pytest.mark.parametrize("destination", ["filesystem", "clickhouse", "databricks", "athena", "mssql"])
def test_what_cannot_replace_a_day_exactly_is_refused(destination: str, server: SandboxServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"cannot load into {destination}"):
        load_into(destination, server.url, date(2024, 2, 1), date(2024, 2, 1))


@pytest.mark.parametrize("uri", [None, "postgresql+psycopg2://u:pl4nted@127.0.0.1:1/x"])
def test_iceberg_without_a_catalog_is_refused(
    uri: str | None, make_place: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place("iceberg")
    variable = "ICEBERG_CATALOG__ICEBERG_CATALOG_CONFIG"
    monkeypatch.delenv(variable)
    if uri is not None:
        monkeypatch.setenv(variable, json.dumps({"type": "sql", "uri": uri, "warehouse": "x"}))
    with pytest.raises(ConfigError, match="catalog") as raised:
        place.target()
    assert "pl4nted" not in str(raised.value)


def test_an_iceberg_catalog_that_another_load_makes_meanwhile_is_taken(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyiceberg.catalog.sql import SqlCatalog

    place = make_place("iceberg")
    original = SqlCatalog.create_tables
    others: list[SqlCatalog] = []

    def create_tables(self: SqlCatalog) -> None:
        original(self)
        if not others:
            others.append(self)
            raise RuntimeError("table iceberg_namespace_properties already exists")

    monkeypatch.setattr(SqlCatalog, "create_tables", create_tables)
    place.target()
    assert others


def test_a_plain_run_is_not_appended_to_files(server: SandboxServer, project: Project, tmp_path: Path) -> None:
    files = dlt.destinations.filesystem(str(tmp_path / "files"))
    pipeline = dlt.pipeline("plain", destination=files, dataset_name="mixpanel", pipelines_dir=str(tmp_path / "dlt"))
    with pytest.raises(Exception, match="cannot load into filesystem"):
        pipeline.run(plain_source(project, "2024-02-01", "2024-02-01"))


def test_sql_asks_a_lake_and_changes_nothing(make_place: MakePlace, server: SandboxServer, month: list[str]) -> None:
    place = make_place("ducklake-sqlite")
    with pytest.raises(WarehouseError, match=r"cannot open|nothing is loaded"), lake_opened(place.target()):
        pass
    load_into(place.destination, server.url, date.fromisoformat(month[0]), date.fromisoformat(month[1]))
    with lake_opened(place.target()) as connection:
        assert query(connection, "SELECT count(*), count(DISTINCT event_date) FROM events").rows == [(7, 2)]
        assert query(connection, "SELECT properties->>'$.distinct_id' FROM events WHERE insert_id LIKE '%02-1'").rows
        with pytest.raises(MixpanelDataError, match="read-only"):
            query(connection, "DELETE FROM events")
    told = mpload_here.run(["sql", "--destination", "ducklake", "--scalar", "SELECT count(*) FROM events"])
    assert (told.out, told.code) == ("7\n", 0)
