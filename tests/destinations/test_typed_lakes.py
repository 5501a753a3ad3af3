"""Typed tables of a lake: in step after each load, and as those of a DuckDB file."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import mpload_here
import pytest
from export_lines import at, line

from destinations.conftest import Place, odd_lines
from destinations.loading import load_into
from destinations.test_contract import MakePlace, by_two_machines, process
from mixpanel_source import typed
from mixpanel_source.destination_sql import lake_opened
from mixpanel_source.destinations import Target, target_of
from mixpanel_source.errors import ConfigError
from mixpanel_source.sandbox import Sandbox, SandboxServer
from mixpanel_source.typed import typed_tables
from mixpanel_source.warehouse import identifier, opened

DAYS = [f"2024-02-0{n}" for n in range(1, 6)]


def typed_contents(connection: duckdb.DuckDBPyConnection, schema: str) -> dict[str, Any]:
    """Columns and rows of each typed table, rows in order and without load ids; and how many there are."""
    names = [name for name, _, _ in typed_tables(connection, schema)]
    found: dict[str, Any] = {"tables": typed_tables(connection, schema)}
    for name in [*names, "properties_catalog", "typed_tables", "typed_days"]:
        table = f"{identifier(schema + '_typed')}.{identifier(name)}"
        columns = connection.execute(f"DESCRIBE {table}").fetchall()
        kept = {column: type_ for column, type_, *_ in columns if column != "_dlt_load_id"}
        rows = connection.execute(f"SELECT {', '.join(map(identifier, kept))} FROM {table}").fetchall()
        found[name] = (kept, sorted(rows, key=repr))
    return found


@contextmanager
def reading(target: Target) -> Iterator[duckdb.DuckDBPyConnection]:
    with lake_opened(target) if target.is_lake else opened(target.path) as connection:
        yield connection


def in_step_with_a_file(place: Place, database: Path, dataset: str = "mixpanel") -> dict[str, Any]:
    lake = target_of(place.destination, dataset)
    with reading(lake) as connection:
        found = typed_contents(connection, lake.schema)
    with reading(Target(database)) as connection:
        assert found == typed_contents(connection, "mixpanel")
    return found


@pytest.mark.parametrize("kind", ["ducklake-postgres", "ducklake-sqlite", "ducklake-duckdb"])
def test_typed_tables_of_a_lake_are_those_of_a_file_after_each_load(
    kind: str, make_place: MakePlace, server: SandboxServer, sandbox: Sandbox, month: list[str], database: Path
) -> None:
    place = make_place(kind)
    lake = target_of(place.destination, "of_us")

    def load(first: str, last: str, *resources: str) -> dict[str, Any]:
        for target in (lake, Target(database)):
            load_into(target, server.url, date.fromisoformat(first), date.fromisoformat(last), *resources)
        return in_step_with_a_file(place, database, "of_us")

    many = [line(at(DAYS[0]), n, "Many", size=n, tags=[n], text="a\0b", **{"x\0": None}) for n in range(50)]
    sandbox.set_day(DAYS[0], [*many, *odd_lines(DAYS[0])])
    sandbox.set_day(DAYS[1], [line(at(DAYS[1]), 99, "Many", size=2, when="now", flag=True)])
    load(DAYS[0], DAYS[1], "events", "profiles")
    sandbox.set_day(DAYS[0], [line(at(DAYS[0]), n, "Many", size=n, other=1.5) for n in range(3)])
    assert load(DAYS[0], DAYS[0])["many__title"][0]["size"] == "BIGINT"
    sandbox.set_day(DAYS[1], [line(at(DAYS[1]), 99, "Many", size="XL", when="now", flag=1)])
    assert load(DAYS[1], DAYS[2])["many__title"][0]["size"] == "VARCHAR"
    sandbox.set_day(DAYS[0], [])
    sandbox.set_day(DAYS[1], [])
    sandbox.set_profiles([b'{"$distinct_id":"new","$properties":{"n":"text"}}'])
    found = load(DAYS[0], DAYS[1], "events", "profiles")
    assert found["many__title"][1] == []
    assert found["profiles"][0]["n"] == "VARCHAR"


@pytest.mark.parametrize(
    "killed_before", ["_is_in_step", "_days_in_step", "_note"], ids=["the step", "its days", "its end"]
)
def test_a_load_that_is_killed_in_its_typed_step_is_made_up_for_by_the_next(
    killed_before: str, make_place: MakePlace, server: SandboxServer, sandbox: Sandbox, database: Path
) -> None:
    place = make_place("ducklake-sqlite")
    for day in DAYS[:3]:
        sandbox.set_day(day, [line(at(day), n, "Many", size=n) for n in range(20)])
    first, last = map(date.fromisoformat, (DAYS[0], DAYS[1]))
    for target in (place.target(), Target(database)):
        load_into(target, server.url, first, last)
    for day in DAYS[1:3]:
        sandbox.set_day(day, [line(at(day), n, "Many", size=str(n), more=n) for n in range(4)])
    killed = process(server.url, place, f"{DAYS[1]}:{DAYS[2]}", kill_at=killed_before)
    assert (killed.communicate()[0], killed.returncode) == ("", -signal.SIGKILL)
    with lake_opened(place.target()) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchall() == [(28,)]
        assert connection.execute("SELECT count(*) FROM many__title").fetchall() == [(40,)]
    load_into(Target(database), server.url, date.fromisoformat(DAYS[1]), date.fromisoformat(DAYS[2]))
    load_into(place.destination, server.url, last, last, "profiles")
    load_into(Target(database), server.url, last, last, "profiles")
    in_step_with_a_file(place, database)


def test_two_machines_at_once_leave_the_typed_tables_in_step(
    make_place: MakePlace, server: SandboxServer, sandbox: Sandbox, database: Path, tmp_path: Path
) -> None:
    place = make_place("ducklake-postgres")
    for number, day in enumerate(DAYS[:4]):
        # Each day has an event and a property of its own, and one that comes in types of two kinds.
        sandbox.set_day(
            day,
            [
                line(at(day), 10 * number, f"Only {number}", **{f"only {number}": number}),
                *(line(at(day), 10 * number + n, "Many", size=n if number % 2 else str(n)) for n in range(1, 9)),
            ],
        )
    by_two_machines(server.url, place, DAYS[:4], tmp_path)
    load_into(Target(database), server.url, date.fromisoformat(DAYS[0]), date.fromisoformat(DAYS[3]))
    found = in_step_with_a_file(place, database)
    assert len(found["many__title"][1]) == 32


def test_the_command_line_tells_of_the_typed_tables_of_a_lake(
    make_place: MakePlace, server: SandboxServer, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place("ducklake-sqlite")
    monkeypatch.setattr(typed, "BATCH_BYTES", 1)  # a day
    for day in DAYS[:2]:
        sandbox.set_day(day, [line(at(day), 1, "Order Placed", plan="pro")])
    load_into(place.destination, server.url, date.fromisoformat(DAYS[0]), date.fromisoformat(DAYS[1]))

    def told(*command: str) -> list[str]:
        return mpload_here.run([*command, "--destination", "ducklake", "--format", "csv"]).out.splitlines()

    assert told("tables", "--typed") == ["table,event,rows", "order_placed__title,Order Placed,2"]
    assert "events,2,12" in told("tables")
    assert told("schema", "Order Placed")[-1] == "plan,VARCHAR,plan,string,2"
    assert "properties,JSON" in told("schema", "events")
    assert told("sql", "SELECT DISTINCT plan FROM order_placed__title") == ["plan", "pro"]
    with pytest.raises(ConfigError, match="typed tables of mixpanel"):
        target_of("ducklake", "mixpanel_typed")
