"""What comes from engage besides all user profiles: parts of them, groups, members of cohorts, and what was before."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dlt
import pytest
from conftest import RunLoad, Sql, merge_broken_off

from mixpanel_source import settings
from mixpanel_source.accounts import read_config
from mixpanel_source.cli.app import main
from mixpanel_source.engage import LAST, MembersAsked, ProfilesAsked
from mixpanel_source.errors import (
    ConfigError,
    EntityNotFoundError,
    MixpanelDataError,
    QueryError,
    RateLimitError,
    WarehouseError,
)
from mixpanel_source.project import Project, project_of
from mixpanel_source.resources.profiles import profiles as profiles_resource
from mixpanel_source.sandbox import Fault, Sandbox, SandboxServer
from mixpanel_source.source import mixpanel_source
from mixpanel_source.status import status

pytestmark = pytest.mark.long

COMPANY, SHOP = "-1405123456789012345", "9223372036854775807"
"""As ids of group types are: beyond what a float can hold."""


def people(*ids: str, **properties: Any) -> list[dict[str, Any]]:
    return [{"$distinct_id": id_, "$properties": properties} for id_ in ids]


def engage_asked(sandbox: Sandbox) -> list[dict[str, str]]:
    """What engage was asked for since the last time, without the project's id."""
    found = [dict(request.params) for request in sandbox.requests if request.endpoint == "engage"]
    sandbox.requests.clear()
    for params in found:
        del params["project_id"]
    return found


# --- group profiles


def groups(sql: Sql) -> list[tuple[Any, ...]]:
    return sql("select data_group_id, distinct_id, properties->>'$.plan' from group_profiles order by all")


def test_group_profiles_are_replaced_group_type_by_group_type(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    sandbox.page_size = 2
    sandbox.set_profiles(people("user"))
    sandbox.set_profiles(people("acme", "bolt", "core", plan="pro"), COMPANY)
    sandbox.set_profiles(people("acme", plan="free"), SHOP)
    both = replace(project, data_group_ids=(COMPANY, SHOP))
    result = run_load(resources=("group_profiles",), project=both)
    assert (result.tables[0].table, result.tables[0].rows) == ("group_profiles", 4)
    all_of_them = [(COMPANY, id_, "pro") for id_ in ("acme", "bolt", "core")] + [(SHOP, "acme", "free")]
    assert groups(sql) == all_of_them
    sandbox.set_profiles(people("core", plan="free"), COMPANY)
    sandbox.set_profiles([], SHOP)
    run_load(resources=("group_profiles",), project=replace(project, data_group_ids=(COMPANY,)))
    assert groups(sql) == [(COMPANY, "core", "free"), (SHOP, "acme", "free")]
    run_load(resources=("group_profiles",), project=both)
    assert groups(sql) == [(COMPANY, "core", "free")]
    columns = sql("select column_name, data_type from information_schema.columns where table_name = 'group_profiles'")
    assert dict(columns) == {
        "data_group_id": "VARCHAR",
        "distinct_id": "VARCHAR",
        "last_seen": "TIMESTAMP",
        "properties": "JSON",
        "_dlt_load_id": "VARCHAR",
    }


def test_a_group_type_that_fails_stays_as_it_was_and_the_others_are_loaded(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    both = replace(project, data_group_ids=(COMPANY, SHOP), retries=0)
    sandbox.set_profiles(people("old"), COMPANY)
    sandbox.set_profiles(people("old"), SHOP)
    run_load(resources=("group_profiles",), project=both)
    sandbox.set_profiles(people("new"), COMPANY)
    sandbox.set_profiles(people("new"), SHOP)
    sandbox.faults.next("engage", Fault.http(500))
    result = run_load(resources=("group_profiles",), project=both, raises=False)
    assert result.tables[0].error is not None
    assert [warning.split(":")[0] for warning in result.warnings] == [f"the group profiles of {COMPANY} are as before"]
    assert groups(sql) == [(COMPANY, "old", None), (SHOP, "new", None)]
    with merge_broken_off("group_profiles"), pytest.raises(WarehouseError):
        run_load(resources=("group_profiles",), project=both)
    assert groups(sql) == [(COMPANY, "old", None), (SHOP, "new", None)]


def test_without_a_group_id_it_says_where_they_are(run_load: RunLoad, sandbox: Sandbox) -> None:
    with pytest.raises(ConfigError, match="no data_group_id") as raised:
        run_load(resources=("group_profiles",))
    assert "Project settings > Group keys" in (raised.value.hint or "")
    assert sandbox.requests == []


@pytest.mark.parametrize("id_", [1.4e18, -1405123456789012345.0, True, "1.5", "x", "", "9223372036854775808", "1e3"])
def test_a_group_id_that_is_none_is_refused(project: Project, id_: Any) -> None:
    with pytest.raises(ConfigError, match="no data_group_id"):
        replace(project, data_group_ids=(id_,))


def test_group_ids_keep_every_digit(project: Project, tmp_path: Path) -> None:
    given: Any = [int(COMPANY), COMPANY, SHOP]
    assert replace(project, data_group_ids=given).data_group_ids == (COMPANY, SHOP)
    config = tmp_path / "config.toml"
    config.write_text(
        '[accounts.a]\nusername = "u"\nsecret = "s"\nproject_id = 1\nregion = "us"\n'
        f'data_group_ids = [{COMPANY}, "{SHOP}"]\n'
    )
    config.chmod(0o600)
    account = read_config(config).accounts["a"]
    assert project_of(account).data_group_ids == (COMPANY, SHOP)
    assert project_of(account, data_group_ids=[SHOP]).data_group_ids == (SHOP,)


# --- cohort members


def cohort(id_: int, *members: str, **others: Any) -> dict[str, Any]:
    return {"id": id_, "name": f"C{id_}", "members": list(members), **others}


def in_cohorts(sql: Sql) -> list[tuple[Any, ...]]:
    return sql("select cohort_id, distinct_id from cohort_members order by all")


MEMBERS = ("cohort_members",)


def test_each_cohort_has_its_members_with_a_profile_or_without(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    sandbox.page_size = 2
    sandbox.set_profiles(people("a", "b", "z", plan="pro"))
    sandbox.set_cohorts([cohort(1, "a", "b", "nobody"), cohort(2), cohort(3, "a")])
    result = run_load(resources=MEMBERS)
    assert (result.tables[0].table, result.tables[0].rows) == ("cohort_members", 4)
    assert in_cohorts(sql) == [(1, "a"), (1, "b"), (1, "nobody"), (3, "a")]
    asked = engage_asked(sandbox)
    assert [params["filter_by_cohort"] for params in asked] == ['{"id":1}', '{"id":1}', '{"id":3}']
    assert {(params["include_all_users"], params["output_properties"]) for params in asked} == {
        ("true", '["$distinct_id"]')
    }
    sandbox.set_cohorts([cohort(1), cohort(4, "z"), cohort(5, count=7)])
    run_load(resources=MEMBERS)
    assert in_cohorts(sql) == [(4, "z")]
    assert [params["filter_by_cohort"] for params in engage_asked(sandbox)] == ['{"id":4}', '{"id":5}']
    sandbox.set_cohorts([])
    run_load(resources=MEMBERS)
    assert in_cohorts(sql) == []
    columns = sql("select column_name, data_type from information_schema.columns where table_name = 'cohort_members'")
    assert dict(columns) == {"cohort_id": "BIGINT", "distinct_id": "VARCHAR", "_dlt_load_id": "VARCHAR"}


def test_the_cohorts_named_are_loaded_and_the_others_stay(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    sandbox.set_cohorts([cohort(1, "a"), cohort(2, "b"), cohort(3, "c"), cohort(4, "d")])
    run_load(resources=MEMBERS)
    sandbox.set_cohorts([cohort(1, "x"), cohort(2, "y"), cohort(3)])
    run_load(resources=MEMBERS, members=MembersAsked((1, 3)))
    assert in_cohorts(sql) == [(1, "x"), (2, "b"), (4, "d")]
    sandbox.requests.clear()
    with pytest.raises(EntityNotFoundError, match="no cohort 4"):
        run_load(resources=MEMBERS, members=MembersAsked((4,)))
    assert engage_asked(sandbox) == []
    assert in_cohorts(sql) == [(1, "x"), (2, "b"), (4, "d")]


def test_a_cohort_that_fails_stays_as_it_was_and_the_others_are_loaded(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    project = replace(project, retries=0)
    sandbox.set_cohorts([cohort(1, "a"), cohort(2, "b"), cohort(3, "c")])
    run_load(resources=MEMBERS)
    sandbox.set_cohorts([cohort(1, "x"), cohort(2, "y")])
    sandbox.faults.next("engage", Fault.http(500))
    result = run_load(resources=MEMBERS, project=project, raises=False)
    assert result.tables[0].error is not None
    assert [warning.split(":")[0] for warning in result.warnings] == ["the members of cohort 1 are as before"]
    assert in_cohorts(sql) == [(1, "a"), (2, "y")]
    sandbox.faults.next("engage", Fault.none(), Fault.http(401))
    with pytest.raises(MixpanelDataError):
        run_load(resources=MEMBERS, project=project)
    assert in_cohorts(sql) == [(1, "x"), (2, "y")]


def test_a_list_of_cohorts_that_is_none_changes_nothing(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    sandbox.set_cohorts([cohort(1, "a")])
    run_load(resources=MEMBERS)
    for body in (b'[{"name":"x","count":1}]', b'{"error":"no"}', b"[1]"):
        sandbox.faults.next("cohorts/list", Fault.body(body, "application/json"))
        with pytest.raises(MixpanelDataError):
            run_load(resources=MEMBERS)
    assert in_cohorts(sql) == [(1, "a")]


def test_members_are_written_before_a_long_wait(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixpanel_source.resources.cohort_members.PACKAGE_S", 0.0)
    sandbox.set_cohorts([cohort(1, "a"), cohort(2, "b"), cohort(3, "c")])
    assert run_load(resources=MEMBERS).tables[0].rows == 3
    assert in_cohorts(sql) == [(1, "a"), (2, "b"), (3, "c")]
    assert sql("select count(distinct _dlt_load_id) from cohort_members") == [(3,)]
    sandbox.set_cohorts([cohort(2, "b"), cohort(3, "d")])
    run_load(resources=MEMBERS)
    assert in_cohorts(sql) == [(2, "b"), (3, "d")]


def test_members_read_before_the_hour_is_used_up_are_written(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(settings.LIMITS, "query", ((3, 3600.0),))
    sandbox.set_cohorts([cohort(1, "a"), cohort(2, "b"), cohort(3, "c")])
    with pytest.raises(RateLimitError):
        run_load(resources=MEMBERS, project=replace(project, wait=False))
    assert in_cohorts(sql) == [(1, "a"), (2, "b")]


def spans(sql: Sql, table: str, columns: str) -> list[tuple[Any, ...]]:
    """Each version with the numbers of the loads that began and ended it."""
    begun_or_ended = f"select valid_from from {table} union select valid_to from {table}"
    moments = {row[0]: number for number, row in enumerate(sql(f"{begun_or_ended} order by 1 nulls last"))}
    rows = sql(f"select {columns}, valid_from, valid_to from {table}")
    return sorted(
        ((*row[:-2], moments[row[-2]], None if row[-1] is None else moments[row[-1]]) for row in rows), key=str
    )


def test_the_history_of_a_cohort_tells_who_joined_left_and_came_back(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql
) -> None:
    def load(*cohorts: dict[str, Any]) -> None:
        sandbox.set_cohorts(list(cohorts))
        run_load(resources=MEMBERS, members=MembersAsked(history=True))

    def history() -> list[tuple[Any, ...]]:
        return spans(sql, "cohort_members_history", "cohort_id, distinct_id")

    load(cohort(1, "stays", "leaves"), cohort(2, "stays"))
    assert history() == [(1, "leaves", 0, None), (1, "stays", 0, None), (2, "stays", 0, None)]
    load(cohort(1, "stays", "joins"), cohort(2, "stays"))
    assert history() == [(1, "joins", 1, None), (1, "leaves", 0, 1), (1, "stays", 0, None), (2, "stays", 0, None)]
    load(cohort(1, "stays", "joins", "leaves"), cohort(2, "stays"))
    rejoined = [
        (1, "joins", 1, None),
        (1, "leaves", 0, 1),
        (1, "leaves", 2, None),
        (1, "stays", 0, None),
        (2, "stays", 0, None),
    ]
    assert history() == rejoined
    sandbox.set_cohorts([cohort(1, "other")])
    for table in ("cohort_members_history", "cohort_members"):
        with merge_broken_off(table), pytest.raises(WarehouseError):
            run_load(resources=MEMBERS, members=MembersAsked(history=True))
        if table.endswith("history"):
            assert history() == rejoined
    load(cohort(1, "stays", "joins", "leaves"))
    assert (2, "stays") not in in_cohorts(sql)
    assert [row[:2] for row in history() if row[-1] is None] == [(1, "joins"), (1, "leaves"), (1, "stays")]
    load()
    assert in_cohorts(sql) == []
    assert sql("select count(*) from cohort_members_history where valid_to is null") == [(0,)]
    types = sql("select column_name, data_type from information_schema.columns where table_name like '%_history'")
    assert dict(types) == {
        "cohort_id": "BIGINT",
        "distinct_id": "VARCHAR",
        "row_hash": "VARCHAR",
        "valid_from": "TIMESTAMP WITH TIME ZONE",
        "valid_to": "TIMESTAMP WITH TIME ZONE",
        "_dlt_load_id": "VARCHAR",
    }


def test_the_history_of_the_cohorts_named_leaves_that_of_the_others_alone(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixpanel_source.resources.cohort_members.PACKAGE_S", 0.0)
    sandbox.set_cohorts([cohort(1, "a"), cohort(2, "b"), cohort(3, "c")])
    run_load(resources=MEMBERS, members=MembersAsked(history=True))
    sandbox.set_cohorts([cohort(1, "x"), cohort(2, "y"), cohort(3)])
    run_load(resources=MEMBERS, members=MembersAsked((1, 3), history=True))
    now = "select cohort_id, distinct_id from cohort_members_history where valid_to is null order by all"
    assert sql(now) == in_cohorts(sql) == [(1, "x"), (2, "b")]
    assert sql("select count(*) from cohort_members_history") == [(4,)]


# --- parts of the profiles


PROFILES = ("profiles",)


def in_table(sql: Sql, table: str = "profiles") -> list[tuple[Any, ...]]:
    found = sql(f"select distinct_id, properties::varchar from {table} order by all")
    return [(id_, json.loads(properties)) for id_, properties in found]


@pytest.mark.parametrize(
    ("asked", "params"),
    [
        (ProfilesAsked(where='properties["plan"] == "pro"'), {"where": 'properties["plan"] == "pro"'}),
        (
            ProfilesAsked(filter_by_cohort=5),
            {"filter_by_cohort": '{"id":5}', "include_all_users": "false"},
        ),
        (
            ProfilesAsked(where='properties["plan"] == "pro" or true', since=datetime(2024, 3, 2).date()),
            {"where": '(properties["plan"] == "pro" or true) and properties["$last_seen"] >= "2024-03-02T00:00:00"'},
        ),
    ],
)
def test_a_part_of_the_profiles_takes_the_place_of_its_own_rows_only(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, asked: ProfilesAsked, params: dict[str, str]
) -> None:
    old = {"plan": "free", "$last_seen": "2024-03-01T10:00:00"}
    new = {"plan": "pro", "$last_seen": "2024-03-02T00:00:00"}
    sandbox.set_cohorts([cohort(5, "changed", "joined", "nobody")])
    sandbox.set_profiles(people("changed", "gone", "same", **old))
    run_load(resources=PROFILES)
    sandbox.requests.clear()
    sandbox.set_profiles([*people("changed", "joined", **new), *people("same", **old)])
    result = run_load(resources=PROFILES, profiles=asked)
    assert engage_asked(sandbox) == [params]
    assert result.tables[0].rows == 2
    assert in_table(sql) == [("changed", new), ("gone", old), ("joined", new), ("same", old)]
    with merge_broken_off("profiles"), pytest.raises(WarehouseError):
        run_load(resources=PROFILES, profiles=asked)
    assert len(in_table(sql)) == 4
    run_load(resources=PROFILES)
    assert in_table(sql) == [("changed", new), ("joined", new), ("same", old)]


def test_results_without_an_id_are_left_out_of_a_part_and_told(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = ["left out of a part of the profiles: 2 results without a distinct_id"]
    body = b'{"page":0,"page_size":9,"results":["odd",{"$distinct_id":"a"},{"$properties":{"n":1}}]}'
    for where, warnings in ((None, []), ("true", told), ("true", told)):
        sandbox.faults.next("engage", Fault.body(body, "application/json"))
        assert run_load(resources=PROFILES, profiles=ProfilesAsked(where=where)).warnings == warnings
    assert in_table(sql) == [("a", {}), (None, "odd"), (None, {"n": 1})]
    last_run = status(database, project).last_run
    assert last_run is not None
    assert list(last_run.warnings) == told
    assert caplog.messages == []
    one = b'{"page":0,"page_size":9,"results":[{"$properties":{"n":1}}]}'
    sandbox.faults.next("engage", Fault.body(one, "application/json"))
    list(profiles_resource(lambda: project, ProfilesAsked(where="true")))  # by dlt alone
    assert caplog.messages == ["left out of a part of the profiles: 1 result without a distinct_id"]


def test_profiles_with_some_properties_have_a_table_of_their_own(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    odd = "it's; {1}\n"
    sandbox.set_profiles([*people("a", "b", plan="pro", **{odd: 1}), *people("c", plan="free")])
    run_load(resources=PROFILES)
    whole = in_table(sql)
    result = run_load(resources=PROFILES, profiles=ProfilesAsked(output_properties=("plan",)))
    assert (result.tables[0].table, result.tables[0].rows) == ("profiles_partial", 3)
    assert in_table(sql, "profiles_partial") == [
        ("a", {"plan": "pro"}),
        ("b", {"plan": "pro"}),
        ("c", {"plan": "free"}),
    ]
    run_load(resources=PROFILES, profiles=ProfilesAsked(output_properties=(odd, "plan")))
    sandbox.set_profiles(people("b", "d", plan="new"))
    run_load(resources=PROFILES, profiles=ProfilesAsked('properties["plan"] == "new"', ("plan", odd)))
    run_load(resources=PROFILES, profiles=ProfilesAsked(output_properties=("plan",)))
    rows = sql("select output_properties, distinct_id, properties->>'$.plan' from profiles_partial order by all")
    both = json.dumps([odd, "plan"], separators=(",", ":"))
    assert sorted(rows) == sorted(
        [
            ('["plan"]', "b", "new"),
            ('["plan"]', "d", "new"),
            (both, "a", "pro"),
            (both, "b", "new"),
            (both, "c", "free"),
            (both, "d", "new"),
        ]
    )
    assert in_table(sql) == whole


def test_last_goes_on_from_the_last_walk_that_missed_nothing(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    now = datetime.now(UTC)
    since_last = ProfilesAsked(since=LAST)
    days_ago = {days: (now - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%S") for days in (1, 5)}
    sandbox.set_profiles(people("a", "b", **{"$last_seen": days_ago[5]}))
    run_load(resources=PROFILES, profiles=since_last)
    assert engage_asked(sandbox) == [{}], "nothing to go on from: all of them"
    mark = (now - timedelta(days=2)).date().isoformat()
    asked = [{"where": f'properties["$last_seen"] >= "{mark}T00:00:00"'}]
    sandbox.set_profiles([*people("a", x=1, **{"$last_seen": days_ago[1]}), *people("b", y=1), *people("c")])
    with merge_broken_off("profiles"), pytest.raises(WarehouseError):
        run_load(resources=PROFILES, profiles=since_last)
    assert engage_asked(sandbox) == asked
    run_load(resources=PROFILES, profiles=since_last)
    assert engage_asked(sandbox) == asked
    assert in_table(sql) == [("a", {"x": 1, "$last_seen": days_ago[1]}), ("b", {"$last_seen": days_ago[5]})]


def test_a_part_is_nothing_to_go_on_from(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    sandbox.set_profiles(people("a", plan="pro"))
    run_load(resources=PROFILES, profiles=ProfilesAsked(where='properties["plan"] == "pro"'))
    run_load(resources=PROFILES, profiles=ProfilesAsked(since=datetime(2024, 3, 2).date()))
    run_load(resources=PROFILES, profiles=ProfilesAsked(output_properties=("plan",)))
    sandbox.requests.clear()
    run_load(resources=PROFILES, profiles=ProfilesAsked(since=LAST))
    assert engage_asked(sandbox) == [{}]


@pytest.mark.parametrize(
    "given",
    [
        {"output_properties": ("plan",), "history": True},
        {"output_properties": ("plan",), "since": LAST},
        {"where": "true", "since": LAST},
        {"filter_by_cohort": 1, "since": LAST},
    ],
)
def test_what_cannot_go_together_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ProfilesAsked(**given)


def test_an_expression_that_mixpanel_refuses_changes_nothing(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    sandbox.set_profiles(people("a"))
    run_load(resources=PROFILES)
    with pytest.raises(QueryError):
        run_load(resources=PROFILES, profiles=ProfilesAsked(where="properties["))
    assert in_table(sql) == [("a", {})]


# --- the history of profiles


def test_the_history_of_profiles_has_each_version(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    def load(*profiles: dict[str, Any], where: str | None = None) -> None:
        sandbox.set_profiles(list(profiles))
        run_load(resources=PROFILES, profiles=ProfilesAsked(where, history=True))

    def history() -> list[tuple[Any, ...]]:
        return spans(sql, "profiles_history", "distinct_id, properties::varchar")

    load(*people("a", plan="free", n=1), *people("b"))
    assert history() == [("a", '{"plan":"free","n":1}', 0, None), ("b", "{}", 0, None)]
    load(*people("a", n=1, plan="free"), *people("b"))
    assert len(history()) == 2, "another order is no change"
    load(*people("a", plan="pro"))
    changed = [("a", '{"plan":"free","n":1}', 0, 1), ("a", '{"plan":"pro"}', 1, None), ("b", "{}", 0, 1)]
    assert history() == changed
    sandbox.set_profiles(people("c"))
    with merge_broken_off("profiles_history"), pytest.raises(WarehouseError):
        run_load(resources=PROFILES, profiles=ProfilesAsked(history=True))
    assert history() == changed
    load(*people("a", plan="free", n=1), *people("d", plan="pro"), where='properties["plan"] == "pro"')
    assert history() == [*changed, ("d", '{"plan":"pro"}', 2, None)], "a part ends no other's version"
    load(*people("a", plan="free", n=1), *people("d", plan="free"), where='properties["plan"] == "free"')
    assert history() == [
        ("a", '{"plan":"free","n":1}', 0, 1),
        ("a", '{"plan":"free","n":1}', 3, None),
        ("a", '{"plan":"pro"}', 1, 3),
        ("b", "{}", 0, 1),
        ("d", '{"plan":"free"}', 3, None),
        ("d", '{"plan":"pro"}', 2, 3),
    ]
    types = sql("select column_name, data_type from information_schema.columns where table_name = 'profiles_history'")
    assert dict(types) == {
        "distinct_id": "VARCHAR",
        "last_seen": "TIMESTAMP",
        "properties": "JSON",
        "row_hash": "VARCHAR",
        "valid_from": "TIMESTAMP WITH TIME ZONE",
        "valid_to": "TIMESTAMP WITH TIME ZONE",
        "_dlt_load_id": "VARCHAR",
    }


def test_odd_profiles_do_not_fail_the_history(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    odd = [
        b'"no profile"',
        b'{"$properties":{}}',
        b'{"$distinct_id":"a","$properties":[1]}',
        b'{"$distinct_id":7,"$properties":"\\ud800"}',
    ]
    body = b'{"page":0,"page_size":9,"results":[' + b",".join(odd) + b"]}"
    for _ in range(2):
        sandbox.faults.next("engage", Fault.body(body, "application/json"))
        run_load(resources=PROFILES, profiles=ProfilesAsked(history=True))
    assert spans(sql, "profiles_history", "distinct_id, properties::varchar") == [
        ("7", '"\\ufffd"', 0, None),
        ("a", "[1]", 0, None),
    ]


# --- the source and the command


def test_the_source_takes_the_same(
    server: SandboxServer,
    sandbox: Sandbox,
    quick: None,
    database: Path,
    sql: Sql,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"USERNAME": "sandbox", "SECRET": "sandbox", "PROJECT_ID": "1", "REGION": "us"}.items():
        monkeypatch.setenv(f"MP_{name}", value)
    monkeypatch.setenv("SOURCES__MIXPANEL__DATA_GROUP_IDS", json.dumps([COMPANY]))
    sandbox.set_profiles(people("a", "b", plan="pro"))
    sandbox.set_profiles(people("acme"), COMPANY)
    sandbox.set_cohorts([cohort(1, "a", "b"), cohort(2, "b")])
    pipeline = dlt.pipeline(
        "plain",
        destination=dlt.destinations.duckdb(str(database)),
        dataset_name="mixpanel",
        pipelines_dir=str(tmp_path / "plain"),
    )

    def run(*resources: str, **given: Any) -> None:
        pipeline.run(mixpanel_source(base_url=server.url, **given).with_resources(*resources))

    for _ in range(2):
        run("profiles", "group_profiles", "cohort_members", cohort_history=True, profiles_history=True)
        assert groups(sql) == [(COMPANY, "acme", None)]
        assert in_cohorts(sql) == [(1, "a"), (1, "b"), (2, "b")]
        assert sql("select count(*), count(valid_to) from cohort_members_history") == [(3, 0)]
        assert sql("select count(*), count(valid_to) from profiles_history") == [(2, 0)]
    sandbox.set_cohorts([cohort(1, "a")])
    run("cohort_members", cohort_ids=[1])
    assert in_cohorts(sql) == [(1, "a"), (2, "b")]
    sandbox.set_profiles(people("c", plan="pro"))
    run("profiles", profiles_where='properties["plan"] == "pro"')
    assert [id_ for id_, _ in in_table(sql)] == ["a", "b", "c"]
    run("profiles", profiles_properties=["plan"])
    assert in_table(sql, "profiles_partial") == [("c", {"plan": "pro"})]
    run("profiles", profiles_since="last")
    run("profiles")
    assert [id_ for id_, _ in in_table(sql)] == ["c"]
    with pytest.raises(ConfigError, match="profiles_since 'soon' is not a day"):
        mixpanel_source(profiles_since="soon")


@pytest.fixture
def mpload(
    server: SandboxServer,
    quick: None,
    database: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """Exit code, stdout and stderr of `mpload load ...` on the sandbox."""
    for name, value in {"USERNAME": "sandbox", "SECRET": "sandbox", "PROJECT_ID": "1", "REGION": "us"}.items():
        monkeypatch.setenv(f"MP_{name}", value)
    monkeypatch.setenv("MP_BASE_URL", server.url)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["load", *arguments, "--db", str(database), "--format", "json"])
        code = ended.value.code
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return run


def test_the_command_takes_ids_cohorts_and_history(mpload: Any, sandbox: Sandbox, sql: Sql) -> None:
    sandbox.set_profiles(people("a", plan="pro"))
    sandbox.set_profiles(people("acme"), COMPANY)
    sandbox.set_profiles(people("shop"), SHOP)
    sandbox.set_cohorts([cohort(1, "a"), cohort(2, "b")])
    code, out, _ = mpload("group_profiles", "--group", COMPANY, "--group", SHOP)
    assert (code, json.loads(out)[0]["rows"]) == (0, 2)
    assert groups(sql) == [(COMPANY, "acme", None), (SHOP, "shop", None)]
    code, out, _ = mpload("cohort_members", "profiles", "--cohort", "2", "--history")
    assert (code, [(row["table"], row["rows"]) for row in json.loads(out)]) == (
        0,
        [("profiles", 1), ("cohort_members", 1)],
    )
    assert in_cohorts(sql) == [(2, "b")]
    assert sql("select count(*) from cohort_members_history") == sql("select count(*) from profiles_history") == [(1,)]
    code, out, _ = mpload(
        "profiles", "--profiles-property", "plan", "--profiles-where", "true", "--profiles-cohort", "1"
    )
    assert (code, json.loads(out)[0]["table"]) == (0, "profiles_partial")
    assert mpload("profiles", "--profiles-since", "last")[0] == 0
    code, _, error = mpload("cohort_members", "--cohort", "9")
    assert (code, json.loads(error.splitlines()[-1])["error"]) == (4, "EntityNotFoundError")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("group_profiles",), "no data_group_id"),
        (("group_profiles", "--group", "1.5"), "'1.5' is no data_group_id"),
        (("--group", COMPANY), "--group goes with group_profiles"),
        (("profiles", "--cohort", "1"), "--cohort goes with cohort_members"),
        (("--history",), "--history goes with profiles or cohort_members"),
        (("events", "--history"), "--history goes with profiles or cohort_members"),
        (("--profiles-where", "true"), "--profiles-where goes with profiles"),
        (("profiles", "--profiles-where", " "), "--profiles-where is empty"),
        (("profiles", "--where", "true"), "--where goes with events"),
        (("profiles", "--profiles-since", "soon"), "is not a day"),
        (("profiles", "--profiles-property", "plan", "--history"), "only some properties"),
    ],
)
def test_options_that_go_with_nothing_end_with_3(
    mpload: Any, sandbox: Sandbox, arguments: tuple[str, ...], message: str
) -> None:
    code, _, error = mpload(*arguments)
    assert code == 3
    assert message in json.loads(error.splitlines()[-1])["message"]
    assert sandbox.requests == []
