"""What is saved in the sandbox's project, over real HTTP: cohorts, annotations, schemas, reports, flags and so on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from mixpanel_source.sandbox import Fault, Sandbox, SandboxServer

NOW = datetime(2024, 3, 11, 12, tzinfo=UTC)
PROJECT = "/api/app/projects/1"
WORKSPACE = "/api/app/workspaces/9"
FLAGS = f"{PROJECT}/workspaces/9/feature-flags"

Get = Callable[..., requests.Response]


@pytest.fixture
def http() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.auth = ("sandbox", "sandbox")
        yield session


@pytest.fixture
def get(server: SandboxServer, http: requests.Session) -> Get:
    def answer(path: str, **params: str) -> requests.Response:
        return http.get(server.url + path, params=params)

    return answer


def results(response: requests.Response) -> Any:
    """What an answer of the App API holds."""
    assert (response.status_code, response.json()["status"]) == (200, "ok")
    return response.json()["results"]


# Cohorts and their members


def test_cohorts_are_listed_by_either_method(sandbox: Sandbox, server: SandboxServer, http: requests.Session) -> None:
    sandbox.set_cohorts(
        [
            {"id": 501, "name": "Payers", "members": ["a", "b"], "description": "d", "created": "2024-03-01 10:00:00"},
            {"id": 502, "is_visible": False, "count": 7},
        ]
    )
    url = f"{server.url}/api/query/cohorts/list"
    posted = http.post(url, params={"project_id": "1"}).json()
    assert posted == http.get(url, params={"project_id": "1"}).json()
    assert posted == [
        {
            "count": 2,
            "is_visible": 1,
            "description": "d",
            "created": "2024-03-01 10:00:00",
            "project_id": 1,
            "id": 501,
            "name": "Payers",
        },
        {
            "count": 7,
            "is_visible": 0,
            "description": "",
            "created": "2024-01-01 00:00:00",
            "project_id": 1,
            "id": 502,
            "name": "",
        },
    ]


def test_members_without_a_profile_come_last_unless_they_are_not_wanted(sandbox: Sandbox, get: Get) -> None:
    sandbox.set_cohorts([{"id": 1, "members": ["ghost", "b", "a"]}, {"id": 2}, {"id": 3, "members": ["acme"]}])
    sandbox.set_profiles([{"$distinct_id": name, "$properties": {"n": n}} for n, name in enumerate("abc")])
    group = "-9223372036854775808"
    sandbox.set_profiles([{"$distinct_id": "acme", "$properties": {}}], data_group_id=group)

    def members(number: int, **params: str) -> list[str]:
        params = {"project_id": "1", "filter_by_cohort": json.dumps({"id": number}), **params}
        return [row["$distinct_id"] for row in get("/api/query/engage", **params).json()["results"]]

    assert members(1) == ["a", "b", "ghost"]
    assert members(1, include_all_users="false") == ["a", "b"]
    assert members(1, where='properties["n"] > 0') == ["b"]
    assert members(1, distinct_ids='["ghost","c"]') == ["ghost"]
    assert members(1, page_size="2") == ["a", "b"]
    assert members(2) == []
    assert members(3, data_group_id=group, include_all_users="false") == ["acme"]


# The App API


def test_annotations_are_those_of_the_days_asked_for(sandbox: Sandbox, get: Get) -> None:
    tag = {"id": 8, "name": "release"}
    user = {"id": 2, "first_name": "A", "last_name": "B"}
    sandbox.set_annotations(
        [
            {"id": 3, "date": "2024-03-05 23:59:59", "description": "v2 out", "user": user, "tags": [tag]},
            {"id": 4, "date": "2024-03-06 00:00:00"},
        ],
        tags=[{"id": 5, "name": "unused"}],
    )
    path = f"{PROJECT}/annotations"
    first = {
        "id": 3,
        "date": "2024-03-05 23:59:59",
        "description": "v2 out",
        "user": user,
        "tags": [tag],
        "project_id": 1,
    }
    assert results(get(path, toDate="2024-03-05")) == [first]
    assert [row["id"] for row in results(get(path, fromDate="2024-03-06", toDate="2024-03-06"))] == [4]
    assert [row["id"] for row in results(get(f"{path}/"))] == [3, 4]
    assert results(get(f"{path}/3")) == first
    assert get(f"{path}/9").status_code == 404
    tags = [
        {"id": 5, "name": "unused", "project_id": 1, "has_annotations": False},
        {"id": 8, "name": "release", "project_id": 1, "has_annotations": True},
    ]
    assert get(f"{path}/tags").json() == tags
    sandbox.other_shape = ["annotations/tags"]
    assert results(get(f"{path}/tags")) == tags


def test_schemas_are_listed_whole_by_type_and_by_name(sandbox: Sandbox, get: Get) -> None:
    shape = {"properties": {"amount": {"type": "number"}}}
    rows = [
        {"entityType": "event", "name": "Order/Placed", "schemaJson": shape},
        {"entityType": "event", "name": "B", "schemaJson": {}},
        {"entityType": "profile", "name": "$user", "schemaJson": {}},
        {"entityType": "custom_event", "name": "C", "schemaJson": {}},
    ]
    sandbox.set_schemas(rows)
    assert results(get(f"{PROJECT}/schemas")) == rows
    assert results(get(f"{PROJECT}/schemas/event")) == rows[:2]
    assert results(get(f"{PROJECT}/schemas/event", entity_name="B")) == rows[1:2]
    assert get(f"{PROJECT}/schemas/event/Order%2FPlaced").json() == shape
    sandbox.other_shape = ["schemas"]
    assert results(get(f"{PROJECT}/schemas/event/Order%2FPlaced")) == shape
    assert get(f"{PROJECT}/schemas/event/Z").status_code == 404
    assert get(f"{PROJECT}/schemas/custom_event").status_code == 400


def test_saved_reports_are_listed_without_what_is_in_them(sandbox: Sandbox, get: Get) -> None:
    sandbox.set_bookmarks(
        [
            {"id": 5, "name": "Counted", "query": {}, "creator_name": "Ann"},
            {"id": 6, "name": "Buy", "type": "funnels", "report": {}, "dashboard_id": 3},
        ]
    )
    path = f"{PROJECT}/bookmarks"
    listed = results(get(path, v="2"))["results"]
    assert listed[0] == {
        "id": 5,
        "name": "Counted",
        "type": "insights",
        "project_id": 1,
        "workspace_id": 9,
        "dashboard_id": None,
        "created": "2024-01-01T00:00:00",
        "modified": "2024-01-01T00:00:00",
        "creator_id": 1,
        "creator_name": "Ann",
    }
    assert results(get(path)) == listed
    assert [row["id"] for row in results(get(path, v="2", type="funnels"))["results"]] == [6]


def test_experiments_flags_and_lookup_tables_are_served_as_they_were_set(sandbox: Sandbox, get: Get) -> None:
    experiments = [{"id": "e1", "name": "Button", "status": "active"}]
    flags = [{"id": "f1", "key": "new", "status": "enabled"}, {"id": "f2", "key": "old", "status": "archived"}]
    tables = [{"id": "8b0ae7d5-3b2f-4f2c-9f4e-2f4a6f6b5d10", "name": "Products"}]
    sandbox.set_experiments(experiments)
    sandbox.set_flags(flags)
    sandbox.set_lookup_tables(tables)
    assert results(get(f"{WORKSPACE}/experiments")) == experiments
    assert results(get(f"{WORKSPACE}/experiments/e1")) == experiments[0]
    assert results(get(FLAGS)) == flags[:1]
    assert results(get(FLAGS, include_archived="true")) == flags
    assert results(get(f"{FLAGS}/f2")) == flags[1]
    assert get("/lookup-tables", project_id="1").json() == {"code": 200, "status": "OK", "results": tables}


@pytest.mark.parametrize(
    ("path", "params", "status"),
    [
        ("/api/app/projects/2/annotations", {}, 403),
        ("/api/app/workspaces/8/experiments", {}, 403),
        (f"{PROJECT}/workspaces/8/feature-flags", {}, 403),
        (f"{PROJECT}/annotations", {"from_date": "2024-03-05"}, 400),
        (f"{PROJECT}/annotations", {"project_id": "1"}, 400),
        (f"{PROJECT}/annotations", {"fromDate": "5 March"}, 400),
        (f"{PROJECT}/annotations", {"fromDate": "2024-03-06", "toDate": "2024-03-05"}, 400),
        (f"{PROJECT}/annotations", {"fromDate": "2023-12-01"}, 403),
        (f"{PROJECT}/annotations/3", {"fromDate": "2024-03-05"}, 400),
        (f"{PROJECT}/annotations/tags", {"tags": "1"}, 400),
        (f"{PROJECT}/schemas", {"entity_name": "B"}, 400),
        (f"{PROJECT}/schemas/group", {}, 400),
        (f"{PROJECT}/schemas/group/x", {}, 400),
        (f"{PROJECT}/schemas/event", {"name": "B"}, 400),
        (f"{PROJECT}/schemas/event/B", {"entity_name": "B"}, 400),
        (f"{PROJECT}/bookmarks", {"v": "3"}, 400),
        (f"{PROJECT}/bookmarks", {"v": "2", "type": "report"}, 400),
        (f"{PROJECT}/bookmarks", {"page": "1"}, 400),
        (f"{WORKSPACE}/experiments", {"include_archived": "true"}, 400),
        (f"{WORKSPACE}/experiments/x", {}, 404),
        (FLAGS, {"include_archived": "1"}, 400),
        (FLAGS, {"archived": "true"}, 400),
        (f"{FLAGS}/x", {}, 404),
        ("/api/app/projects/1/nothing", {}, 404),
    ],
)
def test_the_app_api_refuses_what_it_does_not_know(
    sandbox: Sandbox, get: Get, path: str, params: dict[str, str], status: int
) -> None:
    sandbox.history_days = 90
    refused = get(path, **params)
    assert refused.status_code == status
    assert refused.json()["status"] == "error"
    assert refused.json()["error"]


def test_lookup_tables_tell_errors_as_the_ingestion_host_does(server: SandboxServer, get: Get) -> None:
    unknown = requests.get(f"{server.url}/lookup-tables", timeout=10)
    assert unknown.json() == {"code": 401, "error": "Unable to authenticate request", "status": "Unauthorized"}
    assert get("/lookup-tables").status_code == 400
    assert get("/lookup-tables", project_id="2").status_code == 403
    assert get("/lookup-tables", project_id="1", page="1").status_code == 400


def test_the_ingestion_host_belongs_to_a_region(http: requests.Session) -> None:
    with SandboxServer(Sandbox(now=NOW, limits=False, region="eu")) as server:
        for host, status in (("api-eu.mixpanel.com", 200), ("api.mixpanel.com", 401), ("api-in.mixpanel.com", 401)):
            url = f"{server.url}/lookup-tables?project_id=1"
            assert http.get(url, headers={"Host": host}).status_code == status


def test_a_project_secret_opens_reports_only() -> None:
    with SandboxServer(Sandbox(now=NOW, limits=False, project_secret="secret")) as server:
        asked = {
            "/api/query/cohorts/list": 200,
            f"{PROJECT}/annotations": 401,
            f"{WORKSPACE}/experiments": 401,
            "/lookup-tables?project_id=1": 401,
        }
        for path, status in asked.items():
            assert requests.get(server.url + path, auth=("secret", ""), timeout=10).status_code == status


# Limits, plans and faults


def test_all_reports_share_the_60_an_hour(http: requests.Session) -> None:
    now = [1000.0]
    with SandboxServer(Sandbox(now=NOW, clock=lambda: now[0])) as server:
        for number in range(60):
            path = ("cohorts/list", "funnels/list", "engage")[number % 3]
            assert http.get(f"{server.url}/api/query/{path}", params={"project_id": "1"}).status_code == 200
        refused = http.get(f"{server.url}/api/query/events/names", params={"project_id": "1", "type": "general"})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "3600")
        assert "61/60 queries running in the last hour" in refused.json()["error"]
        for _ in range(61):
            assert http.get(f"{server.url}{PROJECT}/annotations").status_code == 200


def test_schemas_are_limited_to_5_a_minute(http: requests.Session) -> None:
    now = [1000.0]
    with SandboxServer(Sandbox(now=NOW, clock=lambda: now[0])) as server:
        paths = [f"{PROJECT}/schemas", f"{PROJECT}/schemas/event", f"{PROJECT}/schemas/event/x"] * 2
        answers = [http.get(server.url + path) for path in paths]
        assert [answer.status_code for answer in answers] == [200, 200, 404, 200, 200, 429]
        assert answers[-1].json() == {"status": "error", "error": "Rate limit exceeded"}
        assert answers[-1].headers["retry-after"] == "60"
        now[0] += 60
        assert http.get(server.url + paths[0]).status_code == 200


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [("cohorts/list", "/api/query/cohorts/list?project_id=1"), ("schemas", f"{PROJECT}/schemas/event")],
)
def test_any_endpoint_can_be_outside_the_plan_or_fail(sandbox: Sandbox, get: Get, endpoint: str, path: str) -> None:
    sandbox.plan_402 = [endpoint]
    assert get(path).status_code == 402
    assert get("/api/query/funnels/list?project_id=1").status_code == 200
    sandbox.plan_402 = []
    sandbox.faults.next(endpoint, Fault.http(503), Fault.error_in_200("oops"))
    assert get(path).status_code == 503
    inside = get(path)
    assert (inside.status_code, inside.json()["error"]) == (200, "oops")
    assert (inside.json().keys() == {"status", "error"}) == path.startswith("/api/app/")
    assert get(path).status_code == 200


# A folder


def test_a_folder_says_what_is_saved(tmp_path: Path, http: requests.Session) -> None:
    saved: dict[str, list[Any]] = {
        "cohorts": [{"id": 1, "members": ["u"]}],
        "funnels": [{"funnel_id": 2, "name": "F", "steps": ["A", {"event": "B", "label": "Second"}]}],
        "bookmarks": [{"id": 3}],
        "annotations": [{"id": 4, "date": "2024-03-05 00:00:00"}],
        "annotation_tags": [{"id": 5, "name": "t"}],
        "schemas": [{"entityType": "event", "name": "A", "schemaJson": {}}],
        "lookup_tables": [{"id": "6", "name": "T"}],
        "experiments": [{"id": "7"}],
        "feature_flags": [{"id": "8"}],
    }
    (tmp_path / "saved.json").write_text(json.dumps(saved))
    with SandboxServer(Sandbox(tmp_path, now=NOW, limits=False)) as server:

        def ask(path: str) -> Any:
            return http.get(f"{server.url}{path}").json()

        assert ask("/api/query/cohorts/list?project_id=1")[0]["count"] == 1
        assert ask("/api/query/funnels/list?project_id=1") == [{"funnel_id": 2, "name": "F"}]
        assert ask("/lookup-tables?project_id=1")["results"] == saved["lookup_tables"]
        assert ask(f"{PROJECT}/annotations/tags")[0]["name"] == "t"
        for path, name in (("bookmarks", "bookmarks"), ("annotations", "annotations"), ("schemas", "schemas")):
            assert len(ask(f"{PROJECT}/{path}")["results"]) == len(saved[name])
        assert ask(f"{WORKSPACE}/experiments")["results"] == saved["experiments"]
        assert ask(FLAGS)["results"] == saved["feature_flags"]
    (tmp_path / "saved.json").write_text('{"cohort": []}')
    with pytest.raises(ValueError, match="nothing is called cohort"):
        Sandbox(tmp_path)
