"""Typed tables: every property a column, in step with what is loaded, the same whatever came first."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import dlt
import duckdb
import pytest
from conftest import RunLoad, Sql
from export_lines import at, day_lines, line
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mpload_here import run

from mixpanel_source import typed
from mixpanel_source.engage import ProfilesAsked
from mixpanel_source.errors import TableNotFoundError, WarehouseError
from mixpanel_source.project import Project
from mixpanel_source.property_columns import IN_SHARED_COLUMNS
from mixpanel_source.sandbox import Sandbox
from mixpanel_source.source import mixpanel_source
from mixpanel_source.typed import TypedUpdate, bring_in_step, typed_columns, typed_tables, update_typed
from mixpanel_source.workspace import Workspace

DAY, NEXT = "2024-03-01", "2024-03-02"


def columns(sql: Sql, table: str) -> dict[str, str]:
    found = sql(
        "SELECT column_name, data_type FROM duckdb_columns() WHERE schema_name = 'mixpanel_typed'"
        f" AND table_name = '{table}'"
    )
    return dict(found)


def known(database: Path, event: str | None) -> dict[str, tuple[str | None, tuple[str, ...], int]]:
    with duckdb.connect(str(database), read_only=True) as connection:
        return {one.name: (one.type, one.json_types, one.rows) for one in typed_columns(connection, event)}


# --- through a load


def test_each_event_has_a_table_with_a_column_for_each_property(
    sandbox: Sandbox, run_load: RunLoad, database: Path, sql: Sql
) -> None:
    sandbox.set_day(
        DAY,
        [
            line(
                at(DAY), 1, "Order Placed", plan="pro", Amount=12.5, **{"$plan": True, "Plan": [1, "x"], "note": None}
            ),
            line(at(DAY), 2, "Order Placed", plan="free", Amount=3, tags={"a": 1}),
            line(at(DAY), 3, "$view"),
        ],
    )
    run_load(DAY, DAY)
    shared = ["event_name", "event_time", "event_date", "distinct_id", "insert_id", "event_id", "device_id", "user_id"]
    orders = columns(sql, "order_placed__title")
    assert list(orders)[:9] == [*shared, "processed_at"]
    assert {name: type_ for name, type_ in orders.items() if name not in (*shared, "processed_at")} == {
        "_plan": "BOOLEAN",
        "amount__title": "DOUBLE",
        "n": "BIGINT",
        "plan": "VARCHAR",
        "plan__title": "JSON",
        "tags": "JSON",
    }
    assert sql("SELECT n, plan, _plan, plan__title, amount__title, tags FROM mixpanel_typed.order_placed__title") == [
        (1, "pro", True, '[1,"x"]', 12.5, None),
        (2, "free", None, None, 3.0, '{"a":1}'),
    ]
    both = "SELECT event_id, event_time, distinct_id, processed_at FROM {} WHERE event_name = '$view'"
    assert sql(both.format("mixpanel_typed._view")) == sql(both.format("events"))
    assert known(database, "Order Placed") == {
        "$plan": ("BOOLEAN", ("boolean",), 1),
        "Amount": ("DOUBLE", ("double", "integer"), 2),
        "Plan": ("JSON", ("array",), 1),
        "n": ("BIGINT", ("integer",), 2),
        "note": (None, ("null",), 0),
        "plan": ("VARCHAR", ("string",), 2),
        "tags": ("JSON", ("object",), 1),
    }
    assert sql(
        "SELECT column_name, sql_type, table_name FROM mixpanel_typed.properties_catalog WHERE property = 'Plan'"
    ) == [("plan__title", "JSON", "order_placed__title")]


def test_a_value_that_needs_a_wider_type_changes_the_rows_of_all_days(
    sandbox: Sandbox, run_load: RunLoad, database: Path, sql: Sql
) -> None:
    sandbox.set_day(DAY, [line(at(DAY), 1, size=1), line(at(DAY), 2, size=2.50)])
    sandbox.set_day(NEXT, [line(at(NEXT), 3, size="XL"), line(at(NEXT), 4, other=1)])
    run_load(DAY, DAY)
    assert sql("SELECT n, size FROM mixpanel_typed.e__title ORDER BY n") == [(1, 1.0), (2, 2.5)]
    run_load(NEXT, NEXT)
    assert sql("SELECT n, size, other FROM mixpanel_typed.e__title ORDER BY n") == [
        (1, "1", None),
        (2, "2.5", None),
        (3, "XL", None),
        (4, None, 1),
    ]
    assert known(database, "E")["size"] == ("VARCHAR", ("double", "integer", "string"), 3)


def test_a_day_that_is_replaced_is_replaced_here_too_and_may_be_empty(
    sandbox: Sandbox, run_load: RunLoad, database: Path, sql: Sql
) -> None:
    sandbox.set_day(DAY, [*day_lines(DAY, 3), line(at(DAY), 9, "Rare", only=1)])
    sandbox.set_day(NEXT, day_lines(NEXT, 2, first=10))
    run_load(DAY, NEXT)
    sandbox.set_day(DAY, day_lines(DAY, 1, first=5))
    run_load(DAY, DAY, refresh=True)
    assert sql("SELECT n FROM mixpanel_typed.e__title ORDER BY n") == [(5,), (10,), (11,)]
    assert sql("SELECT count(*) FROM mixpanel_typed.rare__title") == [(0,)]
    assert known(database, "E")["n"] == ("BIGINT", ("integer",), 3)
    assert known(database, "Rare") == {"n": ("BIGINT", ("integer",), 0), "only": ("BIGINT", ("integer",), 0)}
    sandbox.set_day(DAY, [])
    run_load(DAY, DAY, refresh=True)
    assert sql("SELECT n FROM mixpanel_typed.e__title ORDER BY n") == [(10,), (11,)]


def test_loads_of_some_events_or_rows_are_in_step(sandbox: Sandbox, run_load: RunLoad, sql: Sql) -> None:
    sandbox.set_day(DAY, [line(at(DAY), 1, "A", size=1), line(at(DAY), 2, "B", size=2)])
    run_load(DAY, DAY)
    sandbox.set_day(DAY, [line(at(DAY), 1, "A", size=7), line(at(DAY), 2, "B", size=8)])
    run_load(DAY, DAY, events=("A",), refresh=True)
    assert sql("SELECT size FROM mixpanel_typed.a__title UNION ALL SELECT size FROM mixpanel_typed.b__title") == [
        (7,),
        (2,),
    ]
    run_load(DAY, DAY, where='properties["n"] == 2', refresh=True)
    assert sql("SELECT size FROM mixpanel_typed.b__title") == [(8,)]


def test_profiles_have_a_table_that_follows_every_load_of_them(
    sandbox: Sandbox, run_load: RunLoad, database: Path, sql: Sql
) -> None:
    def profile(id_: str, **properties: Any) -> dict[str, Any]:
        return {"$distinct_id": id_, "$properties": {"$last_seen": "2024-03-01T00:00:00", **properties}}

    sandbox.set_profiles([profile("a", age=3, Plan="pro"), profile("b", age=4)])
    run_load(resources=("profiles",))
    seen = "SELECT distinct_id, last_seen::VARCHAR, _last_seen, age FROM mixpanel_typed.profiles ORDER BY 1"
    assert sql(seen) == [
        ("a", "2024-03-01 00:00:00", "2024-03-01T00:00:00", 3),
        ("b", "2024-03-01 00:00:00", "2024-03-01T00:00:00", 4),
    ]
    sandbox.set_profiles([profile("a", age="old"), profile("b", age=4)])
    run_load(resources=("profiles",), profiles=ProfilesAsked(where='properties["age"] == "old"'))
    assert [row[3] for row in sql(seen)] == ["old", "4"]
    sandbox.set_profiles([profile("b", age=5)])
    run_load(resources=("profiles",))
    assert [(row[0], row[3]) for row in sql(seen)] == [("b", "5")]
    assert known(database, None)["age"] == ("VARCHAR", ("integer", "string"), 1)
    assert known(database, None)["Plan"] == ("VARCHAR", ("string",), 0)


def test_without_typed_tables_there_are_none_and_the_next_load_makes_up_for_it(
    sandbox: Sandbox, run_load: RunLoad, project: Project, database: Path, sql: Sql
) -> None:
    sandbox.set_day(DAY, day_lines(DAY, 2))
    without = replace(project, typed_tables=False)
    run_load(DAY, DAY, project=without)
    assert sql("SELECT count(*) FROM duckdb_schemas() WHERE schema_name = 'mixpanel_typed'") == [(0,)]
    run_load(DAY, DAY)  # nothing new to load
    assert sql("SELECT count(*) FROM mixpanel_typed.e__title") == [(2,)]
    assert update_typed(database) == TypedUpdate()


def test_a_plain_pipeline_run_is_brought_in_step_by_one_call(
    sandbox: Sandbox, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.set_day(DAY, day_lines(DAY, 2))
    monkeypatch.setenv("SOURCES__MIXPANEL__BASE_URL", project.base_url or "")
    for name, value in {"USERNAME": "sandbox", "SECRET": "sandbox", "PROJECT_ID": "1", "REGION": "us"}.items():
        monkeypatch.setenv(f"MP_{name}", value)
    database = tmp_path / "plain.duckdb"
    pipeline = dlt.pipeline(
        "plain",
        destination=dlt.destinations.duckdb(str(database)),
        dataset_name="mixpanel",
        pipelines_dir=str(tmp_path / "p"),
    )
    pipeline.run(mixpanel_source(from_date=DAY, to_date=DAY).with_resources("events"))
    with Workspace.open(database) as workspace:
        assert workspace.update_typed() == TypedUpdate(days=1, event_rows=2)
        assert workspace.typed_tables() == [("e__title", "E", 2)]
        assert [one.column for one in workspace.typed_columns("E")] == ["n"]
        assert workspace.sql_scalar("SELECT sum(n) FROM e__title") == 1
        with pytest.raises(TableNotFoundError, match="no typed table of the event 'F'"):
            workspace.typed_columns("F")


def test_a_failure_leaves_the_tables_as_they_were_and_says_that_the_rows_are_loaded(
    sandbox: Sandbox, run_load: RunLoad, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.set_day(DAY, [*day_lines(DAY, 2), *day_lines(DAY, 1, "F", first=7)])
    sandbox.set_day(NEXT, [*day_lines(NEXT, 2, first=2), line(at(NEXT), 8, "F", more=1)])
    run_load(DAY, DAY)
    with monkeypatch.context() as patch:
        patch.setattr(typed, "_note", lambda *_: (_ for _ in ()).throw(duckdb.IOException("No space left on device")))
        with pytest.raises(WarehouseError, match="typed tables are not in step: No space left"):
            run_load(DAY, NEXT, refresh=True)
    assert sql("SELECT n FROM mixpanel_typed.e__title") == [(0,), (1,)]
    assert "more" not in columns(sql, "f__title")
    assert sql("SELECT count(*) FROM events") == [(6,)]
    run_load(NEXT, NEXT)
    assert sql("SELECT n FROM mixpanel_typed.e__title ORDER BY 1") == [(0,), (1,), (2,), (3,)]


# --- whatever comes first


class Loaded:
    """A database as loads leave it, without the loads."""

    def __init__(self) -> None:
        self.connection = duckdb.connect()
        self._packages = 0
        self.connection.execute(
            """SET TimeZone = 'UTC'; CREATE SCHEMA mixpanel; USE mixpanel;
            CREATE TABLE _dlt_loads (load_id VARCHAR, status BIGINT);
            CREATE TABLE event_days (day DATE, filter VARCHAR, bytes BIGINT, _dlt_load_id VARCHAR);
            CREATE TABLE events (event_name VARCHAR, event_time TIMESTAMPTZ, event_date DATE, distinct_id VARCHAR,
                insert_id VARCHAR, event_id VARCHAR, device_id VARCHAR, user_id VARCHAR, processed_at TIMESTAMPTZ,
                properties JSON, extra JSON, _dlt_load_id VARCHAR)"""
        )

    def load(self, day: date, events: Iterable[tuple[str, str]]) -> None:
        """Replace `day` with events of (name, properties)."""
        self._packages += 1
        load_id = str(self._packages)
        rows = list(events)
        for table, column in (("events", "event_date"), ("event_days", "day")):
            self.connection.execute(f"DELETE FROM {table} WHERE {column} = ?", [day])
        for name, properties in rows:
            self.connection.execute(
                "INSERT INTO events BY NAME SELECT ? AS event_name, ?::DATE AS event_date, ? AS event_id,"
                " ? AS properties, ? AS _dlt_load_id",
                [name, day, f"{day}/{name}/{properties}", properties, load_id],
            )
        size = sum(len(properties) for _, properties in rows)
        self.connection.execute("INSERT INTO event_days VALUES (?, NULL, ?, ?)", [day, size, load_id])
        self.connection.execute("INSERT INTO _dlt_loads VALUES (?, 0)", [load_id])

    def all(self) -> dict[str, Any]:
        """Each typed table and the catalog, with columns and rows in an order of their own."""
        tables: dict[str, Any] = {}
        for name, _, _ in [*typed_tables(self.connection), ("properties_catalog", None, 0)]:
            answer = self.connection.execute(f'FROM mixpanel_typed."{name}"')
            order = sorted(range(len(answer.description or [])), key=lambda at: (answer.description or [])[at][0])
            head = [tuple(map(str, (answer.description or [])[at][:2])) for at in order]
            tables[name] = head, sorted(repr([row[at] for at in order]) for row in answer.fetchall())
        return tables

    def values(self, table: str, event: str | None) -> Iterator[tuple[str, str, Any, Any]]:
        """Each value of an event: the row's id, the property, what it should be in the typed table, and is."""
        types = {one.name: (one.column, one.type) for one in typed_columns(self.connection, event)}
        raw = self.connection.execute(
            "SELECT event_id, key, value::VARCHAR FROM events, json_each(properties) WHERE event_name = ?", [event]
        ).fetchall()
        for id_, key, value in raw:
            column, type_ = types.get(key, (None, None))
            if key in IN_SHARED_COLUMNS:
                continue
            found = None
            if type_ is not None:
                sql = f'SELECT "{column}" FROM mixpanel_typed."{table}" WHERE event_id = ?'
                [(found,), *_] = self.connection.execute(sql, [id_]).fetchall()
            yield id_, key, expected(value, type_), found


def expected(value: str, type_: str | None) -> Any:
    if value == "null":
        return None
    if type_ in ("BIGINT", "DOUBLE"):
        return int(value) if type_ == "BIGINT" else float(value)
    if type_ == "BOOLEAN":
        return value == "true"
    return json.loads(value) if value.startswith('"') and type_ == "VARCHAR" else value


@contextmanager
def in_small_pieces() -> Iterator[None]:
    """Each row is a piece of its own, and each day a transaction."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typed, "_READ_ROWS", 2)
        patch.setattr(typed, "_FLUSH_BYTES", 1)
        patch.setattr(typed, "BATCH_BYTES", 1)
        yield


NUMBERS = "1 2.5 -3 9007199254740993 12345678901234567890 1e400 1e5 NaN -Infinity inf 0.1 -0 100000000000000000000.5"
TEXTS = r'"5" "x" "" "\u0000" "\ud83d\ude00"'
VALUES = st.sampled_from([*NUMBERS.split(), *TEXTS.split(), *["true", "null", "[1]", '{"a":1}']])
NAMES = st.sampled_from(["a", "A", "$a", "b", "", "x\x00y", 'q"', "it's", "a/b", "a~b", "*", "time", "event_time"])
PROPERTIES = st.dictionaries(NAMES, VALUES, max_size=4).map(
    lambda found: "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in found.items()) + "}"
)
EVENT = st.tuples(st.sampled_from(["E", "e", "$e", "profiles", "o'k\x00"]), PROPERTIES)
DAYS = [date(2024, 3, 1), date(2024, 3, 2), date(2024, 3, 3)]


@pytest.mark.long
@hypothesis_settings(max_examples=15)
@given(st.lists(st.lists(EVENT, max_size=4), min_size=3, max_size=3), st.permutations(range(3)), st.randoms())
def test_the_same_rows_give_the_same_tables_in_any_order(
    days: list[list[tuple[str, str]]], order: Sequence[int], chance: random.Random
) -> None:
    at_once, one_by_one = Loaded(), Loaded()
    for day, events in zip(DAYS, days, strict=True):
        at_once.load(day, events)
    bring_in_step(at_once.connection)
    with in_small_pieces():
        for number in order:
            one_by_one.load(DAYS[number], chance.sample(days[number], len(days[number])))
            if chance.random() < 0.7:
                bring_in_step(one_by_one.connection)
        bring_in_step(one_by_one.connection)
    assert at_once.all() == one_by_one.all()
    for name, event, _ in typed_tables(one_by_one.connection):
        for id_, key, value, found in one_by_one.values(name, event):
            assert found == value or value != value, (id_, key)


@pytest.mark.parametrize(
    ("values", "type_", "found"),
    [
        (["1", "null", "-3"], "BIGINT", [1, None, -3]),
        (["1", "9223372036854775807"], "BIGINT", [1, 2**63 - 1]),
        (["1", "2.5", "1e5"], "DOUBLE", [1.0, 2.5, 100000.0]),
        (["0.5", "NaN", "-inf"], "DOUBLE", [0.5, math.nan, -math.inf]),
        (["0.5", "9007199254740993"], "VARCHAR", ["0.5", "9007199254740993"]),
        (["1", "9223372036854775808"], "VARCHAR", ["1", "9223372036854775808"]),
        (["1", "1e400"], "VARCHAR", ["1", "1e400"]),
        (["-9223372036854775808"], "BIGINT", [-(2**63)]),
        (["1", "9" * 5000], "VARCHAR", ["1", "9" * 5000]),
        (["true", "1"], "VARCHAR", ["true", "1"]),
        (["1", '"01"'], "VARCHAR", ["1", "01"]),
        (["[1]", '{"a":[ ]}'], "JSON", ["[1]", '{"a":[]}']),
        (["[1]", '"[1]"'], "VARCHAR", ["[1]", "[1]"]),
        (['"\\u0000é"', '""'], "VARCHAR", ["\0é", ""]),
    ],
)
def test_a_present_value_is_never_null_and_keeps_its_digits(values: list[str], type_: str, found: list[Any]) -> None:
    loaded = Loaded()
    loaded.load(DAYS[0], [("E", f'{{"a":{value}}}') for value in values])
    bring_in_step(loaded.connection)
    answer = loaded.connection.execute("SELECT a, typeof(a) FROM mixpanel_typed.e__title").fetchall()
    assert [str(row[0]) for row in answer] == [str(value) for value in found]
    assert {row[1] for row in answer} == {type_}


def test_of_a_name_that_comes_twice_the_first_value_counts_as_in_duckdb() -> None:
    loaded = Loaded()
    loaded.load(DAYS[0], [("E", '{"a":1,"a":"x"}')])
    bring_in_step(loaded.connection)
    assert loaded.connection.execute("SELECT a FROM mixpanel_typed.e__title").fetchall() == [(1,)]


def test_a_table_that_was_dropped_by_hand_comes_back_whole() -> None:
    loaded = Loaded()
    loaded.load(DAYS[0], [("E", '{"a":1}')])
    loaded.load(DAYS[1], [("E", '{"a":2}')])
    bring_in_step(loaded.connection)
    loaded.connection.execute("DROP TABLE mixpanel_typed.e__title")
    loaded.load(DAYS[1], [("E", '{"b":3}')])
    bring_in_step(loaded.connection)
    assert loaded.connection.execute("SELECT a, b FROM mixpanel_typed.e__title ORDER BY 1").fetchall() == [
        (1, None),
        (None, 3),
    ]
    assert {one.name: one.rows for one in typed_columns(loaded.connection, "E")} == {"a": 1, "b": 1}


def test_a_days_rows_that_are_not_of_a_complete_load_package_wait_for_it() -> None:
    loaded = Loaded()
    loaded.load(DAYS[0], [("E", '{"a":1}')])
    loaded.connection.execute("UPDATE _dlt_loads SET status = 1")
    assert bring_in_step(loaded.connection) == TypedUpdate()
    loaded.connection.execute("UPDATE _dlt_loads SET status = 0")
    assert bring_in_step(loaded.connection) == TypedUpdate(days=1, event_rows=1)


def test_the_command_line_shows_typed_tables_and_an_events_columns(
    sandbox: Sandbox, run_load: RunLoad, database: Path
) -> None:
    sandbox.set_day(DAY, [line(at(DAY), 1, "Order Placed", plan="pro"), line(at(DAY), 2, "$view", Plan=1.5)])
    run_load(DAY, DAY)
    where = ("--db", str(database), "--format", "csv")
    assert run(["tables", "--typed", *where]).out.splitlines() == [
        "table,event,rows",
        "_view,$view,1",
        "order_placed__title,Order Placed,1",
    ]
    shown = run(["schema", "Order Placed", *where])
    assert shown.out.splitlines()[-2:] == ["n,BIGINT,n,integer,1", "plan,VARCHAR,plan,string,1"]
    assert shown.out.splitlines()[1] == "event_name,VARCHAR,,,"
    assert "the columns of order_placed__title" in shown.err
    assert run(["sql", "--scalar", "SELECT plan FROM order_placed__title", *where[:2]]).out == "pro\n"
    missing = run(["schema", "No Such", *where])
    assert missing.code == 4
    assert "there is no table No Such" in missing.err
