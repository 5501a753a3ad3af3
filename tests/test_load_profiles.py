"""Profiles from the wire to the row: replaced as a whole, and only by a walk proven complete."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from conftest import RunLoad, Sql
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_json import Object, objects, read, values, without_surrogates

from mixpanel_source.errors import IncompleteExportError, MixpanelDataError, PlanError
from mixpanel_source.parsing.profiles import to_arrow
from mixpanel_source.project import Project
from mixpanel_source.sandbox import Fault, Sandbox

PROFILES = ("profiles",)


def people(*ids: str, **properties: Any) -> list[dict[str, Any]]:
    return [{"$distinct_id": id_, "$properties": {"id": id_, **properties}} for id_ in ids]


def loaded(sql: Sql) -> list[tuple[Any, ...]]:
    return sql("select distinct_id, properties::varchar from profiles order by 1")


def expected(*ids: str, **properties: Any) -> list[tuple[str, str]]:
    return [(id_, json.dumps({"id": id_, **properties}, separators=(",", ":"))) for id_ in ids]


def pages(sandbox: Sandbox) -> list[str]:
    found = [request.params.get("page", "0") for request in sandbox.requests if request.endpoint == "engage"]
    sandbox.requests.clear()
    return found


# --- one page -> rows


def rows(*results: str) -> list[dict[str, Any]]:
    page = '{"page":0,"page_size":1000,"results":[' + ",".join(results) + '],"status":"ok"}'
    found: list[dict[str, Any]] = to_arrow(page.encode()).to_pylist()
    return found


def test_a_profiles_properties_are_kept_as_they_were_sent() -> None:
    properties = '{"n":123456789012345678901234567890,"f":1.10,"Plan":1,"plan":[ 1 ],"e":1e400,"u":"\\u00e9\u2028"}'
    (row,) = rows('{"$distinct_id":"u 1","$properties":' + properties + "}")
    assert row == {"distinct_id": "u 1", "last_seen": None, "properties": properties}


@pytest.mark.parametrize(
    ("id_", "text"),
    [
        ('"u"', "u"),
        ('""', ""),
        ("17", "17"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ('"\\ud83d\\ude00"', "😀"),
        ('"\\ud800"', "\ufffd"),
        ("null", None),
    ],
)
def test_a_profiles_id_is_kept_as_text(id_: str, text: str | None) -> None:
    (row,) = rows(f'{{"$properties":{{}},"$distinct_id":{id_}}}')
    assert row["distinct_id"] == text


@pytest.mark.parametrize("result", ['{"$distinct_id":"u"}', '{"$distinct_id":"u","$properties":null}'])
def test_a_profile_without_properties_has_none(result: str) -> None:
    assert rows(result) == [{"distinct_id": "u", "last_seen": None, "properties": "{}"}]


@pytest.mark.parametrize(
    "properties",
    ["[]", '["a",1]', '"text"', "17", "true", "nan", '{"a":[1,],}', '{"a":' + "[" * 50_000 + "]" * 50_000 + "}"],
)
def test_properties_that_are_no_object_or_odd_are_kept_as_they_are(properties: str) -> None:
    assert rows(f'{{"$distinct_id":"u","$properties":{properties}}}', '{"$distinct_id":"v"}') == [
        {"distinct_id": "u", "last_seen": None, "properties": properties},
        {"distinct_id": "v", "last_seen": None, "properties": "{}"},
    ]


@pytest.mark.parametrize(
    ("result", "properties"), [("17", "17"), ('"u"', '"u"'), ("[1]", "[1]"), ("null", "{}"), ("{}", "{}")]
)
def test_a_result_that_is_no_profile_is_a_row_without_an_id(result: str, properties: str) -> None:
    assert rows(result) == [{"distinct_id": None, "last_seen": None, "properties": properties}]


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(values(broken=True), values(broken=True)).map(
            lambda both: f'{{"$distinct_id":{both[0]},"$properties":{both[1]}}}'
        )
        | values(broken=True)
        | objects(values(broken=True), broken=True),
        max_size=4,
    )
)
def test_any_result_at_all_is_a_row(results: list[str]) -> None:
    found = rows(*results)
    assert len(found) == len(results)
    for result, row in zip(results, found, strict=True):
        profile = without_surrogates(read(result))
        if isinstance(profile, Object):
            profile = dict(reversed(profile)).get("$properties")
        kept = read(row["properties"])
        assert kept == profile or (profile is None and kept == Object())


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ('"2024-03-05T14:00:02"', datetime(2024, 3, 5, 14, 0, 2)),
        ('"2024-03-05T14:00:02.5"', datetime(2024, 3, 5, 14, 0, 2, 500000)),
        ('"2024-03-05T14:00:02Z"', datetime(2024, 3, 5, 14, 0, 2)),
        ('"2024-03-05T14:00:02+02:00"', datetime(2024, 3, 5, 12, 0, 2)),
        ('"0001-01-01T00:00:00+14:00"', None),
        ('"9999-12-31T23:59:59-14:00"', None),
        ('"yesterday"', None),
        ('""', None),
        ("null", None),
        ("1709647202", None),
        ("{}", None),
    ],
)
def test_last_seen_is_read_where_it_is_a_time(value: str, moment: datetime | None) -> None:
    (row,) = rows('{"$distinct_id":"u","$properties":{"$last_seen":' + value + "}}")
    assert row["last_seen"] == moment
    assert row["properties"] == '{"$last_seen":' + value + "}"


# --- loads


def test_profiles_are_replaced_as_a_whole(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    sandbox.set_profiles(people("a", "b", "c", plan="free"))
    result = run_load(resources=PROFILES)
    assert (result.tables[0].table, result.tables[0].rows) == ("profiles", 3)
    assert loaded(sql) == expected("a", "b", "c", plan="free")
    sandbox.set_profiles(people("b", "d", plan="pro"))
    assert run_load(resources=PROFILES).tables[0].rows == 2
    assert loaded(sql) == expected("b", "d", plan="pro")
    assert sql("select distinct _dlt_load_id from profiles") == sql("select max(load_id) from _dlt_loads")


def test_a_project_without_profiles_has_an_empty_table(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    run_load(resources=PROFILES)
    assert loaded(sql) == []
    sandbox.set_profiles(people("a"))
    run_load(resources=PROFILES)
    assert loaded(sql) == expected("a")
    sandbox.set_profiles([])
    assert run_load(resources=PROFILES).tables[0].rows == 0
    assert loaded(sql) == []


def test_the_table_has_the_columns_and_types_promised(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    raw = b'{"$distinct_id":"u","$properties":{"$last_seen":"2024-03-05T14:00:02","n":1.10,"s":"\\ud800"}}'
    sandbox.set_profiles([raw])
    run_load(resources=PROFILES)
    columns = sql(
        "select column_name, data_type from information_schema.columns"
        " where table_schema = 'mixpanel' and table_name = 'profiles'"
    )
    assert dict(columns) == {
        "distinct_id": "VARCHAR",
        "last_seen": "TIMESTAMP",
        "properties": "JSON",
        "_dlt_load_id": "VARCHAR",
    }
    assert sql("select distinct_id, last_seen, properties::varchar from profiles") == [
        ("u", datetime(2024, 3, 5, 14, 0, 2), '{"$last_seen":"2024-03-05T14:00:02","n":1.10,"s":"\\ufffd"}')
    ]


def test_one_odd_profile_does_not_fail_the_table(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    deep = '{"deep":' + "[" * 20_000 + "]" * 20_000 + "}"
    huge = '{"n":' + "9" * 5000 + "}"
    odd = {
        '{"$distinct_id":"a","$properties":' + deep + "}": ("a", deep),
        '{"$distinct_id":"b","$properties":[1,"x"]}': ("b", '[1,"x"]'),
        '{"$distinct_id":"c","$properties":null}': ("c", "{}"),
        '{"$distinct_id":"d","$properties":"text"}': ("d", '"text"'),
        '{"$distinct_id":"e","$properties":{"n":NaN,"i":-inf,},}': ("e", '{"n":NaN,"i":-inf,}'),
        '{"$distinct_id":"f\\udc00","$properties":{"\\ud800":"\t"}}': ("f\ufffd", '{"\\ufffd":"\\u0009"}'),
        '{"$distinct_id":"g","$properties":' + huge + "}": ("g", huge),
        '{"$distinct_id":["h"],"$properties":{}}': ('["h"]', "{}"),
        '{"$distinct_id":7}': ("7", "{}"),
        '{"$properties":{"id":"none"}}': (None, '{"id":"none"}'),
        '"no profile"': (None, '"no profile"'),
    }
    body = '{"page":0,"page_size":1000,"session_id":"S","total":11,"results":[' + ",".join(odd) + "]}"
    sandbox.faults.next("engage", Fault.body(body.encode(), "application/json"))
    assert run_load(resources=PROFILES).tables[0].rows == len(odd)
    found = sql("select distinct_id, properties::varchar from profiles")
    assert sorted(found, key=str) == sorted(odd.values(), key=str)


@pytest.mark.parametrize(("count", "asked"), [(6, ["0", "1", "2"]), (7, ["0", "1", "2"])])
def test_a_walk_ends_after_the_last_page_whether_full_or_not(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, count: int, asked: list[str]
) -> None:
    sandbox.page_size = 3
    ids = [f"u{n}" for n in range(count)]
    sandbox.set_profiles(people(*ids))
    run_load(resources=PROFILES)
    assert pages(sandbox) == asked
    assert loaded(sql) == expected(*ids)


def test_an_expired_session_begins_the_walk_anew(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    sandbox.page_size = 3
    ids = [f"u{n}" for n in range(8)]
    sandbox.set_profiles(people(*ids))
    sandbox.faults.next("engage", Fault.none(), Fault.expired_session())
    run_load(resources=PROFILES)
    assert pages(sandbox) == ["0", "1", "0", "1", "2"]
    assert loaded(sql) == expected(*ids)


BROKEN_WALKS = (
    (Fault.none(), Fault.http(500)),
    (Fault.none(), Fault.reset()),
    (Fault.none(), Fault.cut(40)),
    (Fault.none(), Fault.expired_session()),
    (Fault.none(), Fault.html()),
    (Fault.http(503),),
    (Fault.error_in_200(),),
    (Fault.body(b'{"page":0,"page_size":3,"total":5,"results":[{"$distinct_id":"x"}]}', "application/json"),),
    (Fault.body(b'{"page":0,"page_size":3,"total":0}', "application/json"),),
)


def test_a_walk_that_is_not_complete_leaves_the_table_as_it_was(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    sandbox.page_size = 3
    sandbox.set_profiles(people("a", "b", "c", "d"))
    run_load(resources=PROFILES)
    before = sql("select * from profiles order by 1")
    sandbox.set_profiles(people("d", "e", "f", "g"))
    for faults in BROKEN_WALKS:
        sandbox.faults.next("engage", *faults)
        with pytest.raises(MixpanelDataError):
            run_load(resources=PROFILES, project=replace(project, retries=0))
        assert sandbox.faults.waiting == 0
        assert sql("select * from profiles order by 1") == before
    run_load(resources=PROFILES)
    assert loaded(sql) == expected("d", "e", "f", "g")


def test_a_plan_without_profiles_says_so_and_the_events_are_loaded(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql
) -> None:
    sandbox.plan_402 = ["engage"]
    sandbox.set_day("2024-03-05", [b'{"event":"E","properties":{}}'])
    result = run_load("2024-03-05", "2024-03-05", resources=("profiles", "events"), raises=False)
    assert isinstance(result.error, PlanError)
    assert [(table.table, table.rows, table.error is None) for table in result.tables] == [
        ("events", 1, True),
        ("profiles", 0, False),
    ]
    assert sql("select event_name from events") == [("E",)]


@pytest.mark.parametrize("total", ["never", "first"])
def test_a_profile_that_comes_twice_is_one_row(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project, total: str
) -> None:
    sandbox.page_size = 3
    sandbox.engage_total = "never"
    sandbox.set_profiles([*people("a", "b", "c"), *people("a", "d", "b"), *people("e")])
    if total == "first":
        # Of 5 profiles, seven results: the order moved between the pages.
        walk = [people("a", "b", "c"), people("a", "d", "b"), people("e")]
        head = {"page_size": 3, "session_id": "S", "total": 5}
        bodies = [json.dumps({**head, "results": page}, separators=(",", ":")).encode() for page in walk]
        sandbox.faults.next("engage", *map(Fault.body, bodies))
    result = run_load(resources=PROFILES)
    assert loaded(sql) == expected("a", "b", "c", "d", "e")
    assert result.tables[0].rows == 5


def test_fewer_different_profiles_than_there_are_in_all_is_not_complete(
    run_load: RunLoad, sandbox: Sandbox, project: Project
) -> None:
    sandbox.set_profiles([*people("a", "b"), *people("a")])
    with pytest.raises(IncompleteExportError, match="2 different profiles came of 3"):
        run_load(resources=PROFILES, project=replace(project, retries=0))
