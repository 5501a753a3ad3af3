"""The tables of what Mixpanel lists: over real HTTP into real DuckDB, each replaced as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dlt
import pytest
from conftest import NO_LIMITS, RunLoad, Sql, merge_broken_off

from mixpanel_source import settings
from mixpanel_source.errors import ConfigError, PlanError, QueryError, ServerError, WarehouseError
from mixpanel_source.listings import LISTINGS
from mixpanel_source.load_record import read_records
from mixpanel_source.project import Project
from mixpanel_source.sandbox import Fault, Sandbox, SandboxServer
from mixpanel_source.source import mixpanel_source

pytestmark = pytest.mark.long

BIG = -1405123456789012345
"""As group ids are: beyond what a float can hold."""

SCHEMA = {
    "description": "A paid order",
    "properties": {
        "amount": {"type": "number", "description": "EUR", "metadata": {"com.mixpanel": {"displayName": "Amount"}}},
        "Plan": {"type": "string"},
        "plan": {"type": "string"},
    },
    "metadata": {"com.mixpanel": {"displayName": "Order", "tags": ["core"], "hidden": False, "dropped": True}},
}


@pytest.fixture(autouse=True)
def _listed(sandbox: Sandbox) -> None:
    sandbox.set_cohorts([{"id": 501, "name": "Payers", "members": ["u1", "u2"], "created": "2024-03-01 10:00:00"}])
    sandbox.set_funnels([{"funnel_id": 7, "name": "Signup", "steps": ["A", "B"]}])
    sandbox.set_annotations(
        [{"id": 3, "date": "2024-03-05 12:00:00", "description": "v2 out", "tags": [{"id": 8, "name": "release"}]}]
    )
    sandbox.set_schemas(
        [
            {"entityType": "event", "name": "Order Placed", "schemaJson": SCHEMA},
            {"entityType": "profile", "name": "$user", "schemaJson": {"properties": {"age": {"type": "integer"}}}},
            {"entityType": "custom_event", "name": "$custom_event:9", "schemaJson": {}},
        ]
    )
    sandbox.set_lookup_tables([{"id": "6f1e", "name": "Products"}])
    sandbox.set_experiments([{"id": "e1", "name": "Blue", "variants": [{"key": "a"}], "start_date": None}])
    sandbox.set_flags(
        [
            {"id": "f1", "key": "blue", "status": "enabled", "data_group_id": BIG, "ruleset": {"rollout": [0.5]}},
            {"id": "f2", "key": "old", "status": "archived", "data_group_id": None},
        ]
    )


EXPECTED: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
    "cohorts": (
        "id, name, description, count, created, is_visible, project_id",
        [(501, "Payers", "", 2, "2024-03-01 10:00:00", 1, 1)],
    ),
    "funnels": ("funnel_id, name", [(7, "Signup")]),
    "annotations": (
        "id, date, description, \"user\"->>'first_name', tags->>'$[0].name', project_id",
        [(3, "2024-03-05 12:00:00", "v2 out", "Sandbox", "release", 1)],
    ),
    "event_definitions": (
        "name, description, display_name, hidden, dropped, tags->>'$[0]', schema_json->'properties'->'amount'->>'type'",
        [("Order Placed", "A paid order", "Order", False, True, "core", "number")],
    ),
    "property_definitions": (
        "entity_type, entity_name, name, type, description, display_name",
        [
            ("event", "Order Placed", "Plan", "string", None, None),
            ("event", "Order Placed", "amount", "number", "EUR", "Amount"),
            ("event", "Order Placed", "plan", "string", None, None),
            ("profile", "$user", "age", "integer", None, None),
        ],
    ),
    "lookup_tables": ("id, name", [("6f1e", "Products")]),
    "experiments": ("id, name, variants->0->>'key'", [("e1", "Blue", "a")]),
    "feature_flags": (
        "id, key, status, data_group_id, ruleset->'rollout'->>0",
        [("f1", "blue", "enabled", str(BIG), "0.5"), ("f2", "old", "archived", None, None)],
    ),
}


def in_table(sql: Sql, table: str) -> list[tuple[Any, ...]]:
    return sql(f"select {EXPECTED[table][0]} from {table} order by all")


def test_every_listing_has_a_test() -> None:
    assert EXPECTED.keys() == LISTINGS.keys()


@pytest.mark.parametrize("table", EXPECTED)
def test_a_listing_becomes_a_table_that_each_load_replaces(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, table: str
) -> None:
    rows = EXPECTED[table][1]
    for _ in range(2):
        result = run_load(resources=(table,))
        assert in_table(sql, table) == rows
        assert (result.tables[0].table, result.tables[0].rows) == (table, len(rows))
    for key in LISTINGS[table].key:
        assert sql(f"select count(distinct {key}) > 0, count(*) filter ({key} is null) from {table}") == [(True, 0)]


@pytest.mark.parametrize("table", EXPECTED)
def test_an_empty_listing_empties_its_table(run_load: RunLoad, sandbox: Sandbox, sql: Sql, table: str) -> None:
    run_load(resources=(table,))
    for empty in (
        sandbox.set_cohorts,
        sandbox.set_funnels,
        sandbox.set_annotations,
        sandbox.set_schemas,
        sandbox.set_lookup_tables,
        sandbox.set_experiments,
        sandbox.set_flags,
    ):
        empty([])
    run_load(resources=(table,))
    assert in_table(sql, table) == []


def test_a_listing_that_is_empty_at_first_is_an_empty_table(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    sandbox.set_cohorts([])
    run_load(resources=("cohorts",))
    assert in_table(sql, "cohorts") == []


def test_a_field_that_nobody_told_of_becomes_a_column(run_load: RunLoad, sandbox: Sandbox, sql: Sql) -> None:
    sandbox.set_experiments([{"id": "e1", "name": "Blue", "creatorEmail": "a@x.test", "winner": {"key": ["a"]}}])
    run_load(resources=("experiments",))
    assert sql("select creator_email, winner->>'$.key[0]' from experiments") == [("a@x.test", "a")]


def test_a_replacement_that_stops_half_way_leaves_the_table_as_it_was(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql
) -> None:
    run_load(resources=("cohorts",))
    sandbox.set_cohorts([{"id": 9, "name": "Other"}])
    with merge_broken_off("cohorts"), pytest.raises(WarehouseError):
        run_load(resources=("cohorts",))
    assert in_table(sql, "cohorts") == EXPECTED["cohorts"][1]


def test_what_the_plan_lacks_is_left_out_with_a_warning(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql, database: Path
) -> None:
    sandbox.plan_402 = ["cohorts/list"]
    sandbox.set_profiles([{"$distinct_id": "u1", "$properties": {}}])
    result = run_load(resources=("profiles", "cohorts", "funnels"))
    assert [(table.table, table.rows, table.is_left_out) for table in result.tables] == [
        ("profiles", 1, False),
        ("cohorts", 0, True),
        ("funnels", 1, False),
    ]
    assert len(result.warnings) == 1
    assert result.warnings[0].startswith("cohorts is left out: POST /api/query/cohorts/list answered 402")
    last = read_records(database)[1]
    assert last is not None
    assert (last.outcome, list(last.warnings)) == ("done", result.warnings)


def test_a_plan_without_profiles_is_an_error(run_load: RunLoad, sandbox: Sandbox) -> None:
    sandbox.plan_402 = ["engage"]
    with pytest.raises(PlanError):
        run_load(resources=("profiles",))


def test_an_answer_of_another_shape_is_an_error_and_leaves_the_table(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql
) -> None:
    run_load(resources=("cohorts",))
    for body in (b'{"cohorts":[]}', b"{}", b"[1]", b'{"error":"no"}'):
        sandbox.faults.next("cohorts/list", Fault.body(body, "application/json"))
        with pytest.raises((ServerError, QueryError)):
            run_load(resources=("cohorts",))
    assert in_table(sql, "cohorts") == EXPECTED["cohorts"][1]


def test_the_accounts_workspace_is_asked_for_where_it_is_known(
    run_load: RunLoad, sandbox: Sandbox, project: Project
) -> None:
    run_load(resources=("experiments",))
    assert [request.path for request in sandbox.requests] == ["/api/app/me", "/api/app/workspaces/9/experiments"]


def test_a_project_without_a_workspace_says_so(run_load: RunLoad, sandbox: Sandbox) -> None:
    body = json.dumps({"status": "ok", "results": {"projects": {"1": {}}, "workspaces": {}}}).encode()
    sandbox.faults.next("me", Fault.body(body, "application/json"))
    with pytest.raises(QueryError, match="no workspace"):
        run_load(resources=("feature_flags",))


def test_a_resource_that_is_none_is_refused_before_anything(run_load: RunLoad, sandbox: Sandbox) -> None:
    with pytest.raises(ConfigError, match="there is no resource 'cohort'"):
        run_load(resources=("cohort",))
    assert sandbox.requests == []


def test_the_source_has_them_and_loads_them_only_where_they_are_named(
    server: SandboxServer,
    sandbox: Sandbox,
    quick: None,
    database: Path,
    sql: Sql,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"USERNAME": "sandbox", "SECRET": "sandbox", "PROJECT_ID": "1", "REGION": "us"}
    for name, value in given.items():
        monkeypatch.setenv(f"MP_{name}", value)

    def source() -> Any:
        return mixpanel_source("2024-03-01", "2024-03-01", base_url=server.url)

    pipeline = dlt.pipeline(
        "plain",
        destination=dlt.destinations.duckdb(str(database)),
        dataset_name="mixpanel",
        pipelines_dir=str(tmp_path / "plain"),
    )
    assert set(LISTINGS) < set(source().resources)
    assert sorted(source().selected_resources) == ["events", "profiles"]
    pipeline.run(source().with_resources("cohorts", "lookup_tables"))
    assert in_table(sql, "cohorts") == EXPECTED["cohorts"][1]
    assert in_table(sql, "lookup_tables") == EXPECTED["lookup_tables"][1]
    assert not [request for request in sandbox.requests if request.path == "/api/2.0/export"]


def test_the_lexicon_has_a_limit_of_its_own() -> None:
    assert settings.LIMITS["lexicon"] == ((5, 60.0),)
    assert NO_LIMITS.keys() == settings.LIMITS.keys()


def test_a_table_that_fails_while_it_is_written_does_not_take_the_place_of_the_next(
    run_load: RunLoad, sandbox: Sandbox, sql: Sql
) -> None:
    sandbox.set_profiles([{"$distinct_id": "u1", "$properties": {}}])
    run_load(resources=("cohorts",))
    sandbox.set_cohorts([{"id": 9, "name": "Other"}])
    with merge_broken_off("cohorts"):
        result = run_load(resources=("profiles", "cohorts", "funnels"), raises=False)
    assert [(table.table, table.rows, table.error is None) for table in result.tables] == [
        ("profiles", 1, True),
        ("cohorts", 0, False),
        ("funnels", 1, True),
    ]
    assert in_table(sql, "cohorts") == EXPECTED["cohorts"][1]
    assert in_table(sql, "funnels") == EXPECTED["funnels"][1]


def test_groups_that_are_not_named_are_told_before_anything_is_loaded(run_load: RunLoad, sandbox: Sandbox) -> None:
    with pytest.raises(ConfigError, match="no data_group_id"):
        run_load("2024-03-01", "2024-03-01", resources=("events", "group_profiles"))
    assert sandbox.requests == []
