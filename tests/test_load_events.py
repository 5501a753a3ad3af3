"""Events from the wire to the row: what is in DuckDB after loads of every kind, and what was asked for to get it."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dlt
import duckdb
import pytest
from conftest import NOW, Clock, RunLoad, Sql, merge_broken_off
from dlt.pipeline.exceptions import PipelineStepFailed
from export_lines import at, day_lines, days, line, properties_of
from filelock import FileLock

from mixpanel_source import exports, settings
from mixpanel_source.credentials import Credentials
from mixpanel_source.errors import (
    AuthenticationError,
    ConfigError,
    IncompleteExportError,
    MixpanelDataError,
    RateLimitError,
    ServerError,
    WarehouseError,
)
from mixpanel_source.project import Project
from mixpanel_source.sandbox import Fault, Sandbox, SandboxServer, demo_folder
from mixpanel_source.source import mixpanel_source

Asked = list[tuple[str, str]]


def asked(sandbox: Sandbox) -> Asked:
    """The windows exported since the last call, in order."""
    found = [(r.params["from_date"], r.params["to_date"]) for r in sandbox.requests if r.endpoint == "export"]
    sandbox.requests.clear()
    return sorted(found)


def each(*found: str) -> Asked:
    return [(day, day) for day in found]


def by_day(sql: Sql) -> dict[str, int]:
    return {str(day): rows for day, rows in sql("select event_date, count(*) from events group by 1 order by 1")}


def day_rows(sql: Sql) -> list[tuple[Any, ...]]:
    """What `event_days` says: day, filter, rows, complete."""
    return sql("select day::varchar, filter, rows, complete from event_days order by 1, 2 nulls first")


def ns(sql: Sql) -> list[int]:
    return [int(n) for (n,) in sql("select properties->>'$.n' from events order by cast(properties->>'$.n' as int)")]


# --- exactness


ODD_LINES = [
    b'{"event":"two  words","properties":{"time":1709251200000,"n":123456789012345678901234567890,"f":1.10,"e":1e400}}',
    '{"event":"日本 😀 \u2028","properties":{"time":1709251200001,"Plan":1,"plan":"1","$plan":[1],"a.b":{}}}'.encode(),
    b'{"event":"a\\"b\\\\c","properties":{"time":1709251200002,"nul":"\\u0000","time_":1,"_dlt_id":"x","event":{}}}',
    b'{"event":"\\",\\"properties\\":{","properties":{"time":1709251200003,"":"","one":1,"one":"1","two":2}}',
    b'{"event":"$identify","properties":{"distinct_id":"","time":1709251200004}}',
    b'{"event":"","properties":{}}',
    b'{"event":"E","properties":{"time":null,"distinct_id":-0,"$insert_id":1.50}}',
    b'{"event":"E","properties":{"time":4102444800,"distinct_id":null}}',
    b'{"event":"E","properties":{"time":"1709251200005","deep":' + b"[" * 60 + b"]" * 60 + b"}}",
    b'{"event":"twin","properties":{"time":1709251200006}}',
    b'{"event":"twin","properties":{"time":1709251200006}}',
    b'{"event":"long","properties":{"time":1709251200007,"s":"' + b"x" * 100_000 + b'"}}',
]  # fmt: skip


def test_what_mixpanel_exported_is_what_is_loaded(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    exported = {
        "2024-03-01": [*ODD_LINES, *day_lines("2024-03-01", 30)],
        "2024-03-02": day_lines("2024-03-02", 50, "two words"),
        "2024-03-03": [],
    }
    for day, lines in exported.items():
        sandbox.set_day(day, lines)
    result = run_load("2024-03-01", "2024-03-03")
    assert [(table.table, table.rows, table.days) for table in result.tables] == [("events", 92, 3)]
    found = sql("select event_date::varchar, event_name, properties::varchar from events")
    assert Counter(found) == Counter(
        (day, json.loads(text)["event"], properties_of(text)) for day, lines in exported.items() for text in lines
    )
    assert sql("select count(distinct event_id), count(distinct _dlt_load_id) from events") == [(92, 1)]
    assert sql("select distinct _dlt_load_id from events") == sql("select load_id from _dlt_loads where status = 0")
    assert day_rows(sql) == [
        ("2024-03-01", None, 42, True),
        ("2024-03-02", None, 50, True),
        ("2024-03-03", None, 0, True),
    ]
    assert sql("select * from rejected_lines") == []


def test_the_tables_have_the_columns_and_types_promised(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    text = (
        b'{"event":"E","properties":{"time":1709251200123,"distinct_id":"u","$insert_id":"i","$device_id":"d",'
        b'"$user_id":"u","mp_processing_time_ms":1709251201456,"\\ud800":1},"labels":[ 1 ]}'
    )
    sandbox.set_day("2024-03-01", [text])
    run_load("2024-03-01", "2024-03-01")

    def columns(table: str) -> dict[str, str]:
        found = sql(
            "select column_name, data_type from information_schema.columns"
            f" where table_schema = 'mixpanel' and table_name = '{table}'"
        )
        return dict(found)

    assert columns("events") == {
        "event_name": "VARCHAR",
        "event_time": "TIMESTAMP WITH TIME ZONE",
        "event_date": "DATE",
        "distinct_id": "VARCHAR",
        "insert_id": "VARCHAR",
        "event_id": "VARCHAR",
        "device_id": "VARCHAR",
        "user_id": "VARCHAR",
        "processed_at": "TIMESTAMP WITH TIME ZONE",
        "properties": "JSON",
        "extra": "JSON",
        "_dlt_load_id": "VARCHAR",
    }
    assert columns("event_days") == {
        "day": "DATE",
        "filter": "VARCHAR",
        "rows": "BIGINT",
        "duplicates": "BIGINT",
        "rejected": "BIGINT",
        "bytes": "BIGINT",
        "requests": "BIGINT",
        "attempts": "BIGINT",
        "exported_at": "TIMESTAMP WITH TIME ZONE",
        "complete": "BOOLEAN",
        "_dlt_load_id": "VARCHAR",
    }
    assert columns("rejected_lines") == {
        "from_date": "DATE",
        "to_date": "DATE",
        "filter": "VARCHAR",
        "line_number": "BIGINT",
        "reason": "VARCHAR",
        "loaded": "BOOLEAN",
        "raw": "BLOB",
        "_dlt_load_id": "VARCHAR",
    }
    assert sql("select event_time, processed_at, extra, properties->>'$.\"\ufffd\"' from events") == [
        (
            datetime(2024, 3, 1, 0, 0, 0, 123000, tzinfo=UTC),
            datetime(2024, 3, 1, 0, 0, 1, 456000, tzinfo=UTC),
            '{"labels":[ 1 ]}',
            "1",
        )
    ]
    assert sql("select from_date, to_date, line_number, loaded, raw from rejected_lines") == [
        (date(2024, 3, 1), date(2024, 3, 1), 1, True, text)
    ]
    assert sql("select duplicates, rejected, requests, attempts, exported_at from event_days") == [(0, 0, 1, 1, NOW)]


def test_duplicates_are_one_row_and_counted(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    time = at("2024-03-01", 5)
    copies = [line(time, 1, plan=plan, mp_processing_time_ms=time + plan) for plan in (2, 3, 1)]
    sandbox.set_day("2024-03-01", [*copies, line(time, 2)])
    run_load("2024-03-01", "2024-03-01")
    assert sql("select properties->>'$.plan' from events order by insert_id") == [("3",), (None,)]
    assert sql("select rows, duplicates from event_days") == [(2, 2)]


# --- replacing


def test_a_reload_replaces_exactly_the_days_asked_for(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    for number, day in enumerate(days("2024-03-01", 4)):
        sandbox.set_day(day, day_lines(day, 5, first=100 * number))
    run_load("2024-03-01", "2024-03-04")
    sandbox.set_day("2024-03-01", [])
    sandbox.set_day("2024-03-02", day_lines("2024-03-02", 2, first=100))
    sandbox.set_day("2024-03-03", [])
    sandbox.set_day("2024-03-04", day_lines("2024-03-04", 9, first=900))
    asked(sandbox)
    result = run_load("2024-03-02", "2024-03-03", refresh=True)
    # A day that is empty, and was not before, is asked for once more.
    assert asked(sandbox) == [("2024-03-02", "2024-03-03")] * 2
    assert result.warnings == ["2024-03-02 has 2 events now, and had 5", "2024-03-03 has 0 events now, and had 5"]
    assert (result.tables[0].rows, result.tables[0].days) == (2, 2)
    assert ns(sql) == [0, 1, 2, 3, 4, 100, 101, 300, 301, 302, 303, 304]
    assert day_rows(sql) == [
        ("2024-03-01", None, 5, True),
        ("2024-03-02", None, 2, True),
        ("2024-03-03", None, 0, True),
        ("2024-03-04", None, 5, True),
    ]


def test_appending_at_first_and_replacing_later_give_the_same_tables(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    sandbox.set_day(
        "2024-03-01", [*ODD_LINES, b"99", b'{"\xff":1}', line(at("2024-03-01"), 1), line(at("2024-03-01"), 1)]
    )
    sandbox.set_day("2024-03-02", day_lines("2024-03-02", 20))
    tables = {
        "events": "event_name, event_time, event_date, distinct_id, insert_id, event_id, device_id, user_id,"
        " processed_at, properties::varchar, extra::varchar",
        "event_days": "day, filter, rows, duplicates, rejected, bytes, requests, attempts, exported_at, complete",
        "rejected_lines": "from_date, to_date, filter, line_number, reason, loaded, raw",
    }
    contents = []
    for refresh in (False, True):
        run_load("2024-03-01", "2024-03-02", refresh=refresh, project=replace(project, window_days=1))
        contents.append({table: Counter(sql(f"select {columns} from {table}")) for table, columns in tables.items()})
    assert contents[0] == contents[1]
    assert contents[0]["events"].total() == 33
    assert contents[0]["rejected_lines"].total() == 2


# --- incremental


def test_late_events_arrive_within_the_lookback_and_settled_days_are_not_asked_for_again(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project, clock: Clock
) -> None:
    project = replace(project, start_date=date(2024, 3, 6), lookback_days=2, window_days=1)
    sandbox.late_events = True
    for number, day in enumerate(days("2024-03-06", 7)):
        late = [
            line(at(day, 1), 100 * number + 50 + hours, mp_processing_time_ms=at(day, 24 + hours)) for hours in (30, 90)
        ]
        sandbox.set_day(day, [*day_lines(day, 3, first=100 * number), *late])
    clock.now = datetime(2024, 3, 9, 5, tzinfo=UTC)
    run_load(project=project)
    assert asked(sandbox) == each("2024-03-06", "2024-03-07", "2024-03-08")
    assert by_day(sql) == {"2024-03-06": 4, "2024-03-07": 3, "2024-03-08": 3}

    # The 6th ended more than two days before its export: only what was not settled is asked for.
    clock.now = datetime(2024, 3, 10, 6, 30, tzinfo=UTC)
    run_load(project=project)
    assert asked(sandbox) == each("2024-03-07", "2024-03-08", "2024-03-09")
    assert by_day(sql) == {"2024-03-06": 4, "2024-03-07": 4, "2024-03-08": 4, "2024-03-09": 3}

    # What comes 90 hours late is later than the lookback.
    clock.now = datetime(2024, 3, 12, 0, 0, tzinfo=UTC)
    run_load(project=project)
    assert asked(sandbox) == each("2024-03-08", "2024-03-09", "2024-03-10", "2024-03-11")
    assert by_day(sql)["2024-03-08"] == 4
    assert all(complete for *_, complete in day_rows(sql))

    # The 9th was exported at the very moment it settled.
    run_load(project=project)
    assert asked(sandbox) == each("2024-03-10", "2024-03-11")


def test_a_first_load_without_a_start_date_takes_thirty_days(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    expected = days("2024-02-10", 30)
    for number, day in enumerate(expected):
        sandbox.set_day(day, [line(at(day, 12), number)])
    run_load()
    assert asked(sandbox) == [(expected[0], expected[-1])]
    assert ns(sql) == list(range(30))


def test_today_is_loaded_in_part_and_again_when_it_is_over(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, clock: Clock
) -> None:
    sandbox.set_day("2024-03-11", [line(at("2024-03-11", hour), hour) for hour in range(24)])
    run_load("2024-03-11", "2024-03-11")
    assert ns(sql) == list(range(13))
    assert day_rows(sql) == [("2024-03-11", None, 13, False)]
    clock.now = datetime(2024, 3, 12, 0, tzinfo=UTC)
    run_load()
    assert ns(sql) == list(range(24))
    assert day_rows(sql) == [("2024-03-11", None, 24, True)]


def test_with_dates_only_days_that_are_not_complete_are_asked_for(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql
) -> None:
    sandbox.set_day("2024-03-02", day_lines("2024-03-02", 3))
    run_load("2024-03-02", "2024-03-02")
    asked(sandbox)
    run_load("2024-03-01", "2024-03-03")
    assert asked(sandbox) == each("2024-03-01", "2024-03-03")
    result = run_load("2024-03-01", "2024-03-03")
    assert asked(sandbox) == []
    assert (result.tables[0].rows, result.tables[0].days) == (0, 0)
    assert by_day(sql) == {"2024-03-02": 3}


@pytest.mark.parametrize(
    "asked_for", [("2024-03-11", "2024-03-12"), (None, "2024-03-12"), ("2024-03-09", "2024-03-08")]
)
def test_dates_that_cannot_be_are_refused_with_no_request(
    run_load: RunLoad, sandbox: Sandbox, asked_for: tuple[str | None, str]
) -> None:
    with pytest.raises(ConfigError):
        run_load(*asked_for)
    assert sandbox.requests == []


def test_days_that_are_not_neighbours_are_replaced_and_those_between_are_not(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, database: Path
) -> None:
    five = days("2024-03-01", 5)
    for day in five:
        sandbox.set_day(day, day_lines(day, 3))
    run_load(five[0], five[-1])
    asked(sandbox)
    with duckdb.connect(str(database)) as connection:
        connection.execute("UPDATE mixpanel.event_days SET complete = false WHERE day IN ('2024-03-01', '2024-03-04')")
    for day in five:
        sandbox.set_day(day, day_lines(day, 2))
    run_load(five[0], five[-1])
    assert asked(sandbox) == each(five[0], five[3])
    assert by_day(sql) == {five[0]: 2, five[1]: 3, five[2]: 3, five[3]: 2, five[4]: 3}


@pytest.mark.parametrize("spoil", ["UPDATE _dlt_loads SET status = 3", "DELETE FROM _dlt_loads"])
def test_a_day_counts_only_once_its_load_package_is_complete(
    spoil: str, run_load: RunLoad, sandbox: Sandbox, sql: Sql, database: Path
) -> None:
    sandbox.set_day("2024-03-01", day_lines("2024-03-01", 3))
    run_load("2024-03-01", "2024-03-01")
    run_load("2024-03-01", "2024-03-01")
    assert asked(sandbox) == each("2024-03-01")
    with duckdb.connect(str(database)) as connection:
        connection.execute("SET search_path = 'mixpanel'")
        connection.execute(spoil)
    run_load("2024-03-01", "2024-03-01")
    assert asked(sandbox) == each("2024-03-01")
    assert by_day(sql) == {"2024-03-01": 3}


def test_a_load_goes_on_from_the_database_when_dlts_folder_is_gone(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project, tmp_path: Path
) -> None:
    project = replace(project, start_date=date(2024, 3, 1), window_days=1)
    for number, day in enumerate(days("2024-03-01", 10)):
        sandbox.set_day(day, [line(at(day), number)])
    run_load(project=project)
    asked(sandbox)
    shutil.rmtree(tmp_path / "data" / "pipelines")
    run_load(project=project)
    assert asked(sandbox) == each(*days("2024-03-06", 5))
    assert ns(sql) == list(range(10))


def test_a_load_begins_anew_when_the_database_is_gone(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, database: Path
) -> None:
    sandbox.set_day("2024-03-01", day_lines("2024-03-01", 3))
    for _ in range(2):
        run_load("2024-03-01", "2024-03-01")
        assert asked(sandbox) == each("2024-03-01")
        assert ns(sql) == [0, 1, 2]
        database.unlink()


# --- filters


ODD_NAMES = (
    "it's", 'say "x"', "{braces} {0} {}", "100% %s %(a)s", "日本 😀 \u2028", "back\\slash", "a;b--c", "/* ; */",
    "nul\0", "alter schema", " two\n  lines\r\n", "$x",
)  # fmt: skip


def test_a_run_for_some_events_leaves_all_others_alone(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    time = at("2024-03-01", 3)
    names = [*ODD_NAMES, "other", "IT'S"]
    sandbox.set_day("2024-03-01", [line(time, n, name) for n, name in enumerate(names)])
    sandbox.set_day("2024-03-02", [line(at("2024-03-02"), 50 + n, name) for n, name in enumerate(names)])
    run_load("2024-03-01", "2024-03-02")
    sandbox.set_day("2024-03-01", [line(time, 20 + n, name) for n, name in enumerate(names)])
    run_load("2024-03-01", "2024-03-01", refresh=True, events=ODD_NAMES)
    assert ns(sql) == [12, 13, *range(20, 32), *range(50, 64)]
    labels = sorted(json.dumps({"event": name}, ensure_ascii=False, separators=(",", ":")) for name in ODD_NAMES)
    assert [row for row in day_rows(sql) if row[1]] == [("2024-03-01", label, 1, True) for label in labels]
    # Again, now that these parts have rows of their own.
    run_load("2024-03-01", "2024-03-01", refresh=True, events=ODD_NAMES)
    assert ns(sql) == [12, 13, *range(20, 32), *range(50, 64)]
    assert len([row for row in day_rows(sql) if row[1]]) == len(ODD_NAMES)


def test_an_event_that_was_not_asked_for_is_not_loaded_with_those_that_were(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql
) -> None:
    both = [line(at("2024-03-01", n), n, "AB"[n % 2]) for n in range(6)]
    for _ in range(2):
        sandbox.faults.next("export", Fault.body(b"".join(text + b"\n" for text in both)))
        run_load("2024-03-01", "2024-03-01", events=("A",), refresh=True)
        assert ns(sql) == [0, 2, 4]


def test_a_run_for_some_events_completes_only_their_part(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    sandbox.set_day("2024-03-01", [line(at("2024-03-01", n), n, "AB"[n % 2]) for n in range(6)])
    run_load("2024-03-01", "2024-03-01", events=("A", "A"))
    assert day_rows(sql) == [("2024-03-01", '{"event":"A"}', 3, True)]
    assert ns(sql) == [0, 2, 4]
    asked(sandbox)
    run_load("2024-03-01", "2024-03-01", events=("A",))
    assert asked(sandbox) == []
    run_load("2024-03-01", "2024-03-01", events=("A", "B"))
    assert asked(sandbox) == each("2024-03-01")
    assert ns(sql) == list(range(6))
    run_load("2024-03-01", "2024-03-01")
    assert asked(sandbox) == each("2024-03-01")
    # The whole day takes the place of its parts.
    assert day_rows(sql) == [("2024-03-01", None, 6, True)]
    assert ns(sql) == list(range(6))
    run_load("2024-03-01", "2024-03-01", events=("B",))
    assert asked(sandbox) == []


def test_a_run_with_an_expression_deletes_nothing_and_completes_no_day(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql
) -> None:
    time = at("2024-03-01", 3)
    sandbox.set_day("2024-03-01", [line(time + n, n, plan="free") for n in range(4)])
    where = 'properties["n"] >= 2 and properties["plan"] != "it\'s {x} %s"'
    run_load("2024-03-01", "2024-03-01", where=where)
    assert ns(sql) == [2, 3]
    label = json.dumps({"where": where}, separators=(",", ":"))
    assert day_rows(sql) == [("2024-03-01", label, 2, False)]
    asked(sandbox)
    run_load("2024-03-01", "2024-03-01")
    assert asked(sandbox) == each("2024-03-01")
    assert ns(sql) == [0, 1, 2, 3]
    # Row 3 comes with another plan, row 5 is new; rows 0 to 2 are no longer there, and stay.
    sandbox.set_day("2024-03-01", [line(time + n, n, plan="pro") for n in (3, 5)])
    for _ in range(2):
        run_load("2024-03-01", "2024-03-01", where=where)
        assert sql("select properties->>'$.n', properties->>'$.plan' from events order by 1") == [
            ("0", "free"), ("1", "free"), ("2", "free"), ("3", "pro"), ("5", "pro"),
        ]  # fmt: skip
        assert day_rows(sql) == [("2024-03-01", None, 4, True), ("2024-03-01", label, 2, False)]


# --- windows of several days


def test_windows_of_several_days_give_the_same_as_single_days(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    for number, day in enumerate(days("2024-03-01", 7)):
        sandbox.set_day(day, day_lines(day, 4, first=10 * number) if number != 3 else [])
    run_load("2024-03-01", "2024-03-07", project=replace(project, window_days=3))
    assert asked(sandbox) == [("2024-03-01", "2024-03-03"), ("2024-03-04", "2024-03-06"), ("2024-03-07", "2024-03-07")]
    wide = sql("select event_id, event_date, properties::varchar from events order by 1")
    assert day_rows(sql) == [(day, None, 0 if n == 3 else 4, True) for n, day in enumerate(days("2024-03-01", 7))]
    run_load("2024-03-01", "2024-03-07", refresh=True)
    assert sql("select event_id, event_date, properties::varchar from events order by 1") == wide


@pytest.mark.parametrize(
    ("odd", "kept_aside"),
    [
        (b'{"event":"E","properties":{"time":"soon","n":99}}', 0),
        (b'{"event":"E" "properties":{"time":1709251200000,"after it":"are more than ten characters"}}', 1),
    ],
)
def test_a_window_with_a_row_of_no_known_day_is_asked_for_in_halves(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project, odd: bytes, kept_aside: int
) -> None:
    for number, day in enumerate(days("2024-03-01", 4)):
        sandbox.set_day(day, day_lines(day, 2, first=10 * number))
    sandbox.set_day("2024-03-02", [*day_lines("2024-03-02", 2, first=10), odd])
    run_load("2024-03-01", "2024-03-04", project=replace(project, window_days=2))
    assert asked(sandbox) == sorted(
        [("2024-03-01", "2024-03-02"), *each("2024-03-01", "2024-03-02"), ("2024-03-03", "2024-03-04")]
    )
    expected = {"2024-03-01": 2, "2024-03-02": 3 - kept_aside, "2024-03-03": 2, "2024-03-04": 2}
    assert by_day(sql) == expected
    assert day_rows(sql) == [(day, None, rows, True) for day, rows in expected.items()]
    assert sql("select from_date::varchar, to_date::varchar, line_number, raw from rejected_lines") == (
        [("2024-03-02", "2024-03-02", 3, odd)] * kept_aside
    )
    assert sql("select sum(requests) from event_days where day < '2024-03-03'") == [(3,)]


def test_a_sum_over_days_and_events_counts_each_request_once(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    for number, day in enumerate(days("2024-03-01", 4)):
        sandbox.set_day(day, day_lines(day, 2, first=10 * number))
    sandbox.faults.next("export", Fault.http(500))
    run_load("2024-03-01", "2024-03-04", project=replace(project, window_days=3))
    assert sql("select sum(requests), sum(attempts) from event_days") == [(3, 3)]
    assert sql("select day::varchar, requests from event_days where requests > 0 order by 1") == [
        ("2024-03-01", 2),
        ("2024-03-04", 1),
    ]
    sandbox.requests.clear()
    run_load("2024-03-01", "2024-03-04", events=("E", "F"), refresh=True, project=replace(project, window_days=3))
    assert sql("select count(*), sum(requests), sum(attempts) from event_days where filter is not null") == [(8, 2, 2)]
    assert len(asked(sandbox)) == 2


def test_odd_lines_by_the_thousand_are_kept_on_disk(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "_REJECTED_IN_MEMORY_BYTES", 100)
    march = days("2024-03-01", 2)
    lines = [line(at(day) + n, n, text="-").replace(b'"-"', b'"\\ud800"') for day in march for n in range(1_000)]
    sandbox.set_day(march[0], [b'{"event":', *lines[:1_000]])
    sandbox.set_day(march[1], lines[1_000:])
    run_load(march[0], march[1])
    assert sql("select count(*), count(distinct event_id) from events") == [(2_000, 2_000)]
    assert sql("select from_date::varchar, line_number, loaded, raw from rejected_lines order by 1, 2") == [
        (march[0], 1, False, b'{"event":'),
        *((march[0], n, True, raw) for n, raw in enumerate(lines[:1_000], start=2)),
        *((march[1], n, True, raw) for n, raw in enumerate(lines[1_000:], start=1)),
    ]
    assert sql("select rejected, rows from event_days order by day") == [(1, 1_000), (0, 1_000)]


def test_repaired_lines_of_a_wide_window_go_with_their_own_day(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    for number, day in enumerate(days("2024-03-01", 3)):
        sandbox.set_day(day, [line(at(day), number).replace(b'"distinct_id":"', b'"distinct_id":"\\ud800')])
    run_load("2024-03-01", "2024-03-03", project=replace(project, window_days=3))
    assert sql("select count(*), count(*) filter (loaded) from rejected_lines") == [(3, 3)]
    run_load("2024-03-02", "2024-03-02", refresh=True)
    assert sql("select count(*), count(distinct raw) from rejected_lines") == [(3, 3)]


# --- what cannot be read, and what fails


def test_some_unreadable_lines_are_kept_aside_and_too_many_fail_the_day(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql
) -> None:
    good = day_lines("2024-03-01", 20)
    bad = [b'{"event":"E","properties":{"n":%d' % n for n in range(11)]
    sandbox.set_day("2024-03-01", [*bad[:10], *good])
    run_load("2024-03-01", "2024-03-01")
    assert sql("select count(*) from events") == [(20,)]
    assert sql("select line_number, loaded, raw from rejected_lines order by 1") == [
        (n + 1, False, bad[n]) for n in range(10)
    ]
    assert sql("select rows, rejected, complete from event_days") == [(20, 10, True)]

    sandbox.set_day("2024-03-01", [*bad, *day_lines("2024-03-01", 5)])
    before = sql("select * from events order by event_id"), sql("select * from event_days")
    with pytest.raises(IncompleteExportError, match="11 of 16 lines of the export of 2024-03-01 are unreadable"):
        run_load("2024-03-01", "2024-03-01", refresh=True)
    assert (sql("select * from events order by event_id"), sql("select * from event_days")) == before
    assert sql("select count(*) from rejected_lines") == [(10,)]

    sandbox.set_day("2024-03-01", good)
    run_load("2024-03-01", "2024-03-01", refresh=True)
    assert sql("select * from rejected_lines") == []


def test_a_day_that_fails_keeps_the_days_before_it_and_the_profiles(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    for number, day in enumerate(days("2024-03-01", 4)):
        sandbox.set_day(day, day_lines(day, 2, first=10 * number))
    sandbox.set_profiles([{"$distinct_id": "u1", "$properties": {"a": 1}}])
    sandbox.faults.next("export", Fault.none(), Fault.none(), Fault.http(503))
    single = replace(project, retries=0, window_days=1, concurrent_exports=1)
    result = run_load("2024-03-01", "2024-03-04", resources=("events", "profiles"), project=single, raises=False)
    assert isinstance(result.error, ServerError)
    assert [(table.table, table.rows, table.error) for table in result.tables] == [
        ("events", 4, result.error),
        ("profiles", 1, None),
    ]
    assert by_day(sql) == {"2024-03-01": 2, "2024-03-02": 2}
    assert [(row[0], row[3]) for row in day_rows(sql)] == [("2024-03-01", True), ("2024-03-02", True)]
    assert sql("select distinct_id from profiles") == [("u1",)]
    asked(sandbox)
    run_load("2024-03-01", "2024-03-04")
    assert asked(sandbox) == [("2024-03-03", "2024-03-04")]
    assert ns(sql) == [0, 1, 10, 11, 20, 21, 30, 31]


def test_no_day_is_asked_for_again_because_a_later_one_failed(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    for number, day in enumerate(days("2024-03-01", 6)):
        sandbox.set_day(day, [line(at(day), number)])
    bad = [b"x" * 20] * 11
    sandbox.set_day("2024-03-05", [*bad, line(at("2024-03-05"), 4)])
    for expected in (each(*days("2024-03-01", 6)), each("2024-03-05")):
        with pytest.raises(IncompleteExportError, match=r"1 day is not loaded \(2024-03-05\)"):
            run_load("2024-03-01", "2024-03-06", project=replace(project, retries=0, window_days=1))
        assert asked(sandbox) == expected
        assert ns(sql) == [0, 1, 2, 3, 5]


def test_a_replacement_that_stops_half_way_leaves_the_day_as_it_was(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql
) -> None:
    sandbox.set_day("2024-03-01", day_lines("2024-03-01", 3))
    run_load("2024-03-01", "2024-03-01")
    sandbox.set_day("2024-03-01", day_lines("2024-03-01", 5, first=10))
    with merge_broken_off("events"), pytest.raises(WarehouseError):
        run_load("2024-03-01", "2024-03-01", refresh=True)
    assert ns(sql) == [0, 1, 2]
    run_load("2024-03-01", "2024-03-01", refresh=True)
    assert ns(sql) == [10, 11, 12, 13, 14]


def test_wrong_credentials_change_nothing(run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project) -> None:
    sandbox.set_day("2024-03-01", day_lines("2024-03-01", 2))
    run_load("2024-03-01", "2024-03-01")
    wrong = replace(project, credentials=Credentials("sandbox", "not-the-secret", "1", "us"))
    with pytest.raises(AuthenticationError):
        run_load("2024-03-01", "2024-03-01", project=wrong, refresh=True)
    assert ns(sql) == [0, 1]


def test_two_loads_never_work_on_one_database(run_load: RunLoad, sandbox: Sandbox, database: Path) -> None:
    with FileLock(database.with_name(database.name + ".lock")), pytest.raises(WarehouseError, match="another load"):
        run_load("2024-03-01", "2024-03-01")
    assert sandbox.requests == []


def test_an_unknown_resource_is_refused(run_load: RunLoad) -> None:
    with pytest.raises(ConfigError, match="no resource 'people'"):
        run_load(resources=("people",))


@pytest.mark.long
def test_a_load_killed_at_any_moment_is_made_good_by_the_next(
    server: SandboxServer, sandbox: Sandbox, tmp_path: Path
) -> None:
    for number, day in enumerate(days("2024-03-01", 4)):
        sandbox.set_day(
            day, [*day_lines(day, 3, first=10 * number), b'{"event":"twin","properties":{"n":%d}}' % number] * 2
        )
    rng = random.Random(20240301)
    shares = [0.98, 0.9, *(rng.uniform(0.4, 1) for _ in range(2))]
    script = Path(__file__).with_name("killed_load.py")
    done = subprocess.run(
        [sys.executable, str(script), server.url, str(tmp_path), *map(str, shares)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = sorted(
        (day, n) for number, day in enumerate(days("2024-03-01", 4)) for n in range(10 * number, 10 * number + 3)
    )
    twins = [(day, number) for number, day in enumerate(days("2024-03-01", 4)) for _ in range(2)]
    for number in range(len(shares)):
        with duckdb.connect(str(tmp_path / f"{number}.duckdb"), read_only=True) as connection:
            found = connection.execute(
                "select event_date::varchar, cast(properties->>'$.n' as int), event_name from mixpanel.events"
                " order by 1, 2"
            ).fetchall()
            assert [row[:2] for row in found if row[2] == "E"] == expected, done.stdout
            assert [row[:2] for row in found if row[2] == "twin"] == twins, done.stdout
            complete = connection.execute(
                "select day::varchar, rows, complete, status from mixpanel.event_days join mixpanel._dlt_loads"
                " on load_id = event_days._dlt_load_id order by 1"
            ).fetchall()
            assert complete == [(day, 5, True, 0) for day in days("2024-03-01", 4)], done.stdout


# --- the two kinds of project


Serve = Callable[..., tuple[Sandbox, Project]]


@pytest.fixture
def serve(clock: Clock, quick: None) -> Iterator[Serve]:
    servers: list[SandboxServer] = []

    def start(**options: Any) -> tuple[Sandbox, Project]:
        sandbox = Sandbox(**{"now": NOW, "limits": False, **options})
        servers.append(SandboxServer(sandbox).start())
        return sandbox, Project(Credentials("sandbox", "sandbox", "1", "us"), base_url=servers[-1].url)

    yield start
    for server in servers:
        server.stop()


def test_an_old_projects_events_come_at_their_true_times_over_both_clock_changes(
    serve: Serve, run_load: RunLoad, sql: Sql
) -> None:
    sandbox, project = serve(project_timezone="America/New_York", legacy_local_time=True)
    project = replace(project, project_timezone="America/New_York", legacy_local_time=True)
    half_hours = [
        start + timedelta(minutes=30 * n)
        for start in (datetime(2013, 3, 10, 5, tzinfo=UTC), datetime(2013, 11, 3, 4, tzinfo=UTC))
        for n in range(46)
    ]
    sandbox.add_events(
        [
            {"event": "E", "properties": {"time": int(when.timestamp()), "$insert_id": f"i{n}", "n": n}}
            for n, when in enumerate(half_hours)
        ]
    )
    run_load("2013-03-10", "2013-03-10", project=project)
    run_load("2013-11-03", "2013-11-03", project=project)
    # The doubled hour cannot be told from the first one: 06:00 and 06:30 UTC read as an hour before.
    second_pass = {datetime(2013, 11, 3, 6, tzinfo=UTC), datetime(2013, 11, 3, 6, 30, tzinfo=UTC)}
    expected = [when - timedelta(hours=1) if when in second_pass else when for when in half_hours]
    found = sql("select cast(properties->>'$.n' as int) as n, event_time, event_date::varchar from events order by n")
    assert found == [(n, when, "2013-03-10" if n < 46 else "2013-11-03") for n, when in enumerate(expected)]


def test_an_old_projects_yesterday_is_that_of_its_own_zone(
    serve: Serve, run_load: RunLoad, sql: Sql, clock: Clock
) -> None:
    sandbox, project = serve(project_timezone="America/New_York", legacy_local_time=True)
    project = replace(
        project,
        project_timezone="America/New_York",
        legacy_local_time=True,
        start_date=date(2024, 3, 8),
        lookback_days=0,
    )
    clock.now = sandbox.now = datetime(2024, 3, 11, 3, 30, tzinfo=UTC)
    run_load(project=project)
    assert asked(sandbox) == each("2024-03-08", "2024-03-09")
    clock.now = sandbox.now = datetime(2024, 3, 11, 4, 0, tzinfo=UTC)
    run_load(project=project)
    assert asked(sandbox) == each("2024-03-10")
    assert [(row[0], row[3]) for row in day_rows(sql)] == [(day, True) for day in days("2024-03-08", 3)]


def test_a_project_that_looks_like_the_other_kind_is_warned_of(serve: Serve, run_load: RunLoad, tmp_path: Path) -> None:
    true_times = [at("2024-03-05", 12) + 60_000 * n for n in range(120)]
    properties = [{"time": time, "mp_processing_time_ms": time + 2000} for time in true_times]
    warned = {}
    for legacy in (True, False):
        sandbox, project = serve(project_timezone="America/New_York", legacy_local_time=legacy)
        sandbox.add_events([{"event": "E", "properties": found} for found in properties])
        for read_as in (True, False):
            told = replace(project, project_timezone="America/New_York", legacy_local_time=read_as)
            database = tmp_path / f"{legacy}-{read_as}.duckdb"
            warned[legacy, read_as] = run_load("2024-03-05", "2024-03-05", project=told, database=database).warnings
    assert warned[True, True] == warned[False, False] == []
    (as_utc,) = warned[True, False]
    assert "5 hours after" in as_utc
    assert "legacy_local_time = true" in as_utc
    (as_wall_clock,) = warned[False, True]
    assert "5 hours before" in as_wall_clock
    assert "legacy_local_time = false" in as_wall_clock


def test_the_demo_data_loads_as_its_manifest_says_and_without_a_warning(
    serve: Serve, run_load: RunLoad, sql: Sql
) -> None:
    manifest = json.loads((demo_folder() / "manifest.json").read_text())
    _, project = serve(folder=demo_folder())
    result = run_load(manifest["first_day"], manifest["last_day"], project=project)
    assert result.warnings == []
    assert dict(sql("select event_name, count(*) from events group by 1")) == manifest["events"]
    assert len(by_day(sql)) == manifest["days"]


# --- as a dlt source


@pytest.fixture
def dlt_project(
    server: SandboxServer, clock: Clock, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sandbox's project in dlt's configuration, and no other configuration near."""
    monkeypatch.chdir(tmp_path)
    given = {"USERNAME": "sandbox", "SECRET": "sandbox", "PROJECT_ID": "1", "REGION": "us"}
    for name, value in given.items():
        monkeypatch.setenv(f"SOURCES__MIXPANEL__CREDENTIALS__{name}", value)
    monkeypatch.setenv("SOURCES__MIXPANEL__BASE_URL", server.url)
    monkeypatch.setenv("SOURCES__MIXPANEL__START_DATE", "2024-03-01")


def dlt_pipeline(folder: Path, database: Path) -> dlt.Pipeline:
    return dlt.pipeline(
        "plain",
        destination=dlt.destinations.duckdb(str(database)),
        dataset_name="mixpanel",
        pipelines_dir=str(folder),
    )


def test_a_plain_pipeline_loads_by_dlts_own_config_and_goes_on_where_it_stopped(
    dlt_project: None, sandbox: Sandbox, sql: Sql, database: Path, tmp_path: Path
) -> None:
    for number, day in enumerate(days("2024-03-01", 10)):
        sandbox.set_day(day, [line(at(day), number)])
    sandbox.set_profiles([{"$distinct_id": "u1", "$properties": {}}])
    dlt_pipeline(tmp_path / "one", database).run(mixpanel_source())
    assert asked(sandbox) == [("2024-03-01", "2024-03-10")]
    assert ns(sql) == list(range(10))
    assert sql("select distinct_id, properties::varchar from profiles") == [("u1", "{}")]
    sandbox.set_day("2024-03-10", [line(at("2024-03-10"), n) for n in (9, 100)])
    # Another machine, with nothing but the destination.
    dlt_pipeline(tmp_path / "two", database).run(mixpanel_source().with_resources("events"))
    assert asked(sandbox) == [("2024-03-06", "2024-03-10")]  # the unsettled days of a small project are one request
    assert ns(sql) == [*range(10), 100]
    assert sql(
        "select count(*) from event_days where complete and _dlt_load_id in (select load_id from _dlt_loads)"
    ) == [(10,)]
    assert sql("select count(*) from events where _dlt_load_id is null") == [(0,)]


def test_a_plain_pipeline_that_stops_half_way_leaves_its_tables_as_they_were(
    dlt_project: None, sandbox: Sandbox, sql: Sql, database: Path, tmp_path: Path
) -> None:
    sandbox.set_day("2024-03-01", day_lines("2024-03-01", 3))
    sandbox.set_profiles([{"$distinct_id": "u1", "$properties": {}}])
    pipeline = dlt_pipeline(tmp_path / "one", database)
    pipeline.run(mixpanel_source("2024-03-01", "2024-03-01"))
    for table in ("events", "profiles"):
        with merge_broken_off(table), pytest.raises(PipelineStepFailed):
            pipeline.run(mixpanel_source("2024-03-01", "2024-03-01", refresh=True).with_resources(table))
        pipeline.abort_packages()
    assert ns(sql) == [0, 1, 2]
    assert sql("select distinct_id from profiles") == [("u1",)]


def test_the_source_takes_arguments_and_loads_nothing_when_all_is_there(
    dlt_project: None, sandbox: Sandbox, sql: Sql, database: Path, tmp_path: Path
) -> None:
    sandbox.set_day("2024-03-02", [line(at("2024-03-02", n), n, "AB"[n % 2]) for n in range(4)])
    pipeline = dlt_pipeline(tmp_path / "one", database)
    for expected in (each("2024-03-02"), []):
        pipeline.run(mixpanel_source("2024-03-02", "2024-03-02", events=["A"]).with_resources("events"))
        assert asked(sandbox) == expected
        assert ns(sql) == [0, 2]


def test_the_source_is_built_with_no_credentials_and_no_request(sandbox: Sandbox, server: SandboxServer) -> None:
    source = mixpanel_source("2024-03-01", base_url=server.url)
    assert sorted(source.selected_resources) == ["events", "profiles"]
    assert sandbox.requests == []
    with pytest.raises(ConfigError, match="from_date '1 March' is not a day"):
        mixpanel_source("1 March")


def test_a_source_without_credentials_says_so_when_it_is_run(database: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="failed at `step=extract`") as failed:
        dlt_pipeline(tmp_path / "one", database).run(mixpanel_source("2024-03-01", "2024-03-01"))
    assert isinstance(own_error(failed.value), AuthenticationError)


PLANTED = "pl4nted-s3cret-of-nobody"


def test_the_secret_is_nowhere_but_in_the_request(
    dlt_project: None,
    sandbox: Sandbox,
    run_load: RunLoad,
    project: Project,
    database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOURCES__MIXPANEL__CREDENTIALS__SECRET", PLANTED)
    sandbox.secret = PLANTED
    sandbox.set_day("2024-03-01", day_lines("2024-03-01", 3))
    pipeline = dlt_pipeline(tmp_path / "plain", database)
    seen = [str(pipeline.run(mixpanel_source("2024-03-01", "2024-03-01"))), repr(pipeline.last_trace)]
    seen += [str(pipeline.last_trace and pipeline.last_trace.asdict()), str(pipeline.state)]
    monkeypatch.setenv("SOURCES__MIXPANEL__RETRIES", "0")
    for fault in (Fault.http(401, f"bad secret {PLANTED}"), Fault.reset(), None):
        if fault is None:
            monkeypatch.setenv("SOURCES__MIXPANEL__LEDGER_URL", f"postgresql://u:{PLANTED}@127.0.0.1:1/ledger")
        else:
            sandbox.faults.next("export", fault)
        with pytest.raises(Exception, match="failed at `step=extract`") as failed:
            pipeline.run(mixpanel_source("2024-03-02", "2024-03-02").with_resources("events"))
        cause: BaseException | None = failed.value
        while cause is not None:
            seen += [str(cause), repr(cause)]
            cause = cause.__cause__ or cause.__context__
        seen.append(repr(pipeline.last_trace))
    assert "request ledger in postgresql://127.0.0.1:1/ledger cannot be used" in str(failed.value)
    planted = replace(project, credentials=Credentials("sandbox", PLANTED, "1", "us"), retries=0)
    sandbox.faults.next("export", Fault.http(500, PLANTED))
    other = tmp_path / "other.duckdb"
    result = run_load("2024-03-02", "2024-03-02", project=planted, database=other, raises=False)
    seen += [repr(result), repr(planted)]
    assert [text for text in seen if PLANTED in text] == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert database in files
    assert [path for path in files if PLANTED.encode() in path.read_bytes()] == []


def own_error(error: BaseException) -> MixpanelDataError | None:
    """The error of ours that a step of dlt's failed with."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MixpanelDataError):
        cause = cause.__cause__ or cause.__context__
    return cause


def test_a_run_of_the_source_with_a_day_that_never_comes_whole_loads_nothing(
    dlt_project: None, sandbox: Sandbox, database: Path, tmp_path: Path
) -> None:
    for number, day in enumerate(days("2024-03-01", 4)):
        sandbox.set_day(day, [line(at(day), number)])
    sandbox.set_day("2024-03-02", [b"x" * 20] * 11)
    pipeline = dlt_pipeline(tmp_path / "one", database)
    with pytest.raises(PipelineStepFailed) as failed:
        pipeline.run(mixpanel_source("2024-03-01", "2024-03-04").with_resources("events"))
    error = own_error(failed.value)
    assert isinstance(error, IncompleteExportError)
    assert "1 day is not loaded (2024-03-02)" in error.message
    with duckdb.connect(str(database)) as connection:
        assert connection.execute("select 1 from duckdb_tables() where table_name = 'events'").fetchall() == []
    assert ("2024-03-04", "2024-03-04") not in asked(sandbox)  # one load package: no use to ask for the rest


def test_the_source_waits_for_the_hour_aloud_or_not_at_all(
    dlt_project: None,
    sandbox: Sandbox,
    sql: Sql,
    database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for number, day in enumerate(days("2024-03-01", 3)):
        sandbox.set_day(day, [line(at(day), number)])
    pipeline = dlt_pipeline(tmp_path / "one", database)
    monkeypatch.setitem(settings.LIMITS, "export", ((2, 3600.0),))
    monkeypatch.setenv("SOURCES__MIXPANEL__WINDOW_DAYS", "1")
    with pytest.raises(PipelineStepFailed) as failed:
        pipeline.run(mixpanel_source("2024-03-01", "2024-03-03", wait=False).with_resources("events"))
    assert isinstance(own_error(failed.value), RateLimitError)
    monkeypatch.setitem(settings.LIMITS, "export", ((2, 2.0),))
    monkeypatch.setattr("mixpanel_source.source.SHORT_WAIT_S", 0.5)
    pipeline.run(mixpanel_source("2024-03-01", "2024-03-03").with_resources("events"))
    assert "waiting 2 s: the request limit of the export API is used up" in caplog.text
    assert ns(sql) == [0, 1, 2]
