"""Every way in which the product asks Mixpanel for something, and exactly what it then has to send.

`record` answers a case from memory; `ask` asks the real hosts, or the origin that `MP_BASE_URL` names. A parameter that
the product learns, or a place in it that asks, has to have a case here: test_requests sees to that.
"""

from __future__ import annotations

import functools
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import duckdb
import pytest
import requests
import requests_mock
from conftest import NO_LIMITS, NOW

import mixpanel_source
from mixpanel_source import settings
from mixpanel_source.account_check import check_account, credentials_in_any_region
from mixpanel_source.client import MixpanelClient
from mixpanel_source.credentials import Account, Credentials
from mixpanel_source.discovery import Discovery
from mixpanel_source.engage import MembersAsked, ProfilesAsked
from mixpanel_source.errors import ConfigError
from mixpanel_source.exports import EventFilter
from mixpanel_source.fetch import fetch_events, fetch_profiles
from mixpanel_source.listings import LISTINGS
from mixpanel_source.project import Project
from mixpanel_source.rate_limit import RequestLedger
from mixpanel_source.report_questions import questions_of
from mixpanel_source.reports import Reports
from mixpanel_source.resources.cohort_members import cohort_members
from mixpanel_source.resources.events import events
from mixpanel_source.resources.group_profiles import group_profiles
from mixpanel_source.resources.listings import listing_resource
from mixpanel_source.resources.profiles import profiles
from mixpanel_source.resources.report_tables import report_table
from mixpanel_source.sandbox import Sandbox
from mixpanel_source.sweep import sweep
from mixpanel_source.verify import verify
from mixpanel_source.windows import DateRange, LoadedDay, Window

PRODUCT = Path(mixpanel_source.__file__).parent
PROJECT_ID, WORKSPACE_ID = "12345", "9"
FIRST, LAST = date(2024, 3, 1), date(2024, 3, 2)
DAYS = {"from_date": "2024-03-01", "to_date": "2024-03-02"}
ODD = 'J\u00f6\u65e5 "in" & +1=100%;?/#\\'
"""A name that means something else to whoever encodes too little of it, or twice."""
ODD_JSON = '"J\\u00f6\\u65e5 \\"in\\" & +1=100%;?/#\\\\"'
WHERE = f'properties["plan"] == {json.dumps(ODD, ensure_ascii=False)}'
GROUP_ID = "-1405123456789012345"
FLAG: Mapping[str, Any] = {
    "id": "3f2b8c1e-5d47-4a90-8e63-1b7c9d0a2f54",
    "name": "New",
    "key": "new",
    "status": "enabled",
    "context": "distinct_id",
    "tags": ["core"],
    "serving_method": "client",
    "ruleset": {
        "variants": [{"key": "on", "value": True, "is_control": False, "split": 1.0}],
        "rollout": [{"rollout_percentage": 0.5, "variant_splits": {"on": 1.0}}],
    },
    "project_id": int(PROJECT_ID),
    "content_type": "feature-flags",
    "created": "2024-03-01T10:00:00Z",
    "modified": "2024-03-01T10:00:00Z",
    "creator_id": 1,
    "creator_name": "Ann",
    "creator_email": None,
}
BEHAVIORS = [{"window": "90d", "name": "b1", "event_selectors": [{"event": ODD}]}]


@dataclass(frozen=True)
class Sent:
    """One request. `form` has the fields of a form, None where there is no body; `json` is a body that is no form."""

    method: str
    url: str
    query: Mapping[str, str]
    form: Mapping[str, str] | None = None
    json: Any = None

    @property
    def path(self) -> str:
        return urlsplit(self.url).path


@dataclass(frozen=True, eq=False)
class Case:
    """`asks` names what is called; `given` says how much it is told: the `least`, with no workspace set, or more."""

    asks: str
    given: str
    arguments: Mapping[str, Any]
    sent: Sequence[Sent]

    def __str__(self) -> str:
        return f"{self.asks}-{self.given}"

    @property
    def credentials(self) -> Credentials:
        workspace_id = None if self.given.startswith("least") else WORKSPACE_ID
        return Credentials("user", "planted", PROJECT_ID, "us", workspace_id=workspace_id)


@dataclass(frozen=True)
class Recorded:
    """The requests of a case, the lines of the product that were under way when one was sent, and what came of it."""

    requests: tuple[requests.PreparedRequest, ...]
    lines: frozenset[tuple[str, int]]
    result: Any

    @property
    def sent(self) -> list[Sent]:
        return [sent_by(request) for request in self.requests]


class Loads:
    """What loads, snapshots and checks ask for. No part of it keeps anything but `snapshot.duckdb`."""

    def __init__(self, project: Project) -> None:
        self._project = project

    def events(self, **filter_: Any) -> list[Any]:
        return list(events(lambda: self._project, DateRange(FIRST, LAST), EventFilter(**filter_)))

    def profiles(self, **asked: Any) -> list[Any]:
        return list(profiles(lambda: self._project, ProfilesAsked(**asked)))

    def group_profiles(self, data_group_ids: Sequence[str]) -> list[Any]:
        return list(group_profiles(lambda: self._project, data_group_ids))

    def cohort_members(self) -> list[Any]:
        return list(cohort_members(lambda: self._project, MembersAsked()))

    def listing(self, table: str) -> list[Any]:
        return list(listing_resource(LISTINGS[table], lambda: self._project))

    def report_table(self, bookmark_id: int) -> list[Any]:
        questions = questions_of("insights", [{"report": "a", "bookmark_id": bookmark_id}])
        return list(report_table(lambda: replace(self._project, questions=questions), "insights"))

    def fetch_events(self) -> None:
        fetch_events(self._project, self._database, "snapshot", from_date=FIRST, to_date=FIRST)

    def fetch_profiles(self, where: str) -> None:
        fetch_profiles(self._project, self._database, "snapshot", where=where)

    def sweep(self) -> None:
        """Of a file in which two settled days are loaded, without a row."""
        database = self._database
        with duckdb.connect(str(database)) as connection:
            connection.execute(
                "CREATE SCHEMA mixpanel; CREATE TABLE mixpanel.events (event_date DATE, processed_at TIMESTAMPTZ)"
            )
        settled = datetime(2024, 3, 9, tzinfo=UTC)
        days = [LoadedDay(day, settled, complete=True) for day in (FIRST, LAST)]
        sweep(replace(self._project, sweep_days=30), database, days, NOW)

    def verify(self) -> None:
        """Of a file that says no more than that a day is loaded."""
        database = self._database
        with duckdb.connect(str(database)) as connection:
            connection.execute(f"""
                CREATE SCHEMA mixpanel;
                SET search_path = 'mixpanel';
                CREATE TABLE _dlt_loads AS SELECT '1' AS load_id, 0 AS status;
                CREATE TABLE event_days AS SELECT DATE '{FIRST}' AS day, NULL::VARCHAR AS filter, 0 AS rows, 0 AS bytes,
                    TIMESTAMPTZ '{NOW}' AS exported_at, true AS complete, '1' AS _dlt_load_id;
                CREATE TABLE events (event_name VARCHAR, event_time TIMESTAMPTZ, event_date DATE, distinct_id VARCHAR,
                    insert_id VARCHAR, properties JSON)
            """)
        verify(self._project, database, from_date=FIRST, to_date=LAST)

    def check_account(self) -> None:
        check_account(Account(self._project.credentials))

    def find_region(self, kind: str) -> None:
        """In vain: every region answers the same."""
        username = "user" if kind == "service_account" else ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of project secrets, which end
            with pytest.raises(ConfigError, match="several regions"):
                credentials_in_any_region(username, "planted", PROJECT_ID, kind=kind)

    @property
    def _database(self) -> Path:
        folder = settings.data_folder()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "snapshot.duckdb"
        path.unlink(missing_ok=True)
        return path


def ask(case: Case) -> Any:
    """What comes of the call of `case`."""
    credentials = case.credentials
    ledger = RequestLedger(None, origin="any", project_id=credentials.project_id, limits=NO_LIMITS)
    owner, _, name = case.asks.partition(".")
    with MixpanelClient(credentials, ledger=ledger, retries=0) as client:
        if owner == "LISTINGS":
            return LISTINGS[name].ask(client)
        owners: dict[str, Callable[[], object]] = {
            "MixpanelClient": lambda: client,
            "Reports": lambda: Reports(client),
            "Discovery": lambda: Discovery(client, cache_s=0),
            "Loads": lambda: Loads(Project(credentials, retries=0)),
        }
        return getattr(owners[owner](), name)(**case.arguments)


@functools.cache
def record(case: Case, answer: Callable[[Sent], Any] | None = None) -> Recorded:
    """What `case` sends where `answer` (else `usual_answer`) is what comes. Nothing leaves the process."""
    asked: list[requests.PreparedRequest] = []
    lines: set[tuple[str, int]] = set()

    def content(request: Any, context: Any) -> bytes:
        asked.append(request._request)
        lines.update(_lines_under_way())
        found = (answer or usual_answer)(sent_by(request._request))
        body = found if isinstance(found, bytes) else json.dumps(found).encode()
        context.headers["Content-Length"] = str(len(body))
        return body

    with requests_mock.Mocker() as mocker:
        mocker.register_uri(requests_mock.ANY, requests_mock.ANY, content=content)
        result = ask(case)
    return Recorded(tuple(asked), frozenset(lines), result)


def sent_by(request: requests.PreparedRequest) -> Sent:
    """A request in the terms of the table. Raises ValueError for one that gives a parameter twice."""
    url, _, query = str(request.url).partition("?")
    body = request.body
    text = body.decode() if isinstance(body, bytes) else body
    assert text is None or isinstance(text, str)
    if text is None:
        return Sent(str(request.method), url, _once(query))
    if request.headers["Content-Type"] == "application/json":
        return Sent(str(request.method), url, _once(query), json=json.loads(text))
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    return Sent(str(request.method), url, _once(query), _once(text))


def _once(encoded: str) -> dict[str, str]:
    pairs = parse_qsl(encoded, keep_blank_values=True, strict_parsing=bool(encoded))
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"a parameter is given twice: {encoded}")
    return dict(pairs)


def _lines_under_way() -> Iterator[tuple[str, int]]:
    frame: Any = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PRODUCT):
            yield str(path.relative_to(PRODUCT)), frame.f_lineno
        frame = frame.f_back


# --- what is answered

_SERIES: Any = {"data": {"series": [], "values": {}}}
ANSWERS: Mapping[str, Any] = {
    "/api/2.0/export": b"",
    "/api/query/cohorts/list": [{"id": 7, "name": "C", "count": 1}],
    "/api/query/funnels/list": [{"funnel_id": 7, "name": "F"}],
    "/api/query/segmentation": _SERIES,
    "/api/query/segmentation/numeric": _SERIES,
    "/api/query/segmentation/sum": {"results": {}},
    "/api/query/segmentation/average": {"results": {}},
    "/api/query/events": _SERIES,
    "/api/query/events/properties": _SERIES,
    "/api/query/events/names": [ODD],
    "/api/query/events/properties/top": {"plan": {"count": 1}},
    "/api/query/events/properties/values": ["v"],
    "/api/query/insights": {"headers": [], "series": {}},
    "/api/query/stream/query": {"status": "ok", "results": {"events": []}},
    "/api/query/jql": [],
    "/api/app/me": {
        "status": "ok",
        "results": {
            "user_name": "user",
            "projects": {PROJECT_ID: {"name": "P", "timezone": "UTC"}},
            "workspaces": {WORKSPACE_ID: {"id": int(WORKSPACE_ID), "project_id": int(PROJECT_ID), "is_default": True}},
        },
    },
    f"/api/app/projects/{PROJECT_ID}/bookmarks": {"status": "ok", "results": {"results": []}},
    "/lookup-tables": {"code": 200, "status": "OK", "results": []},
}


def usual_answer(sent: Sent) -> Any:
    """The least that each endpoint may answer; profiles come on a full page, so that a second one is asked for."""
    path = sent.path
    if path == "/api/query/engage":
        results = [] if "page" in (sent.form or {}) else [{"$distinct_id": "u", "$properties": {}}]
        return {"page_size": 1, "session_id": "S+1/=", "status": "ok", "results": results}
    if path in ANSWERS:
        return ANSWERS[path]
    return {"status": "ok", "results": []} if path.startswith("/api/app/") else {}


def filled_sandbox(**options: Any) -> Sandbox:
    """A local Mixpanel that has something for every case."""
    sandbox = Sandbox(now=NOW, limits=False, project_id=PROJECT_ID, username="user", secret="planted", **options)
    for n, (name, user) in enumerate([(ODD, "u"), (ODD, "w"), ("B", "u"), ("B", "w"), (ODD, "u")]):
        properties = {
            "time": 1_709_287_200_000 + n,
            "distinct_id": user,
            "plan": ODD,
            "amount": n,
            "$insert_id": str(n),
        }
        sandbox.add_events([{"event": name, "properties": properties}])
    people = [
        {"$distinct_id": user, "$properties": {"plan": ODD, "$last_seen": "2024-03-01T10:00:00"}} for user in "uw"
    ]
    sandbox.set_profiles(people)
    sandbox.set_profiles(people, GROUP_ID)
    sandbox.set_cohorts([{"id": 7, "name": "C", "members": ["u", "w", "x"]}])
    sandbox.set_funnels([{"funnel_id": 7, "name": "F", "steps": [ODD, {"event": "B", "label": "Buy"}]}])
    query = {"events": [ODD, "B"], **DAYS}
    sandbox.set_bookmarks([{"id": 5, "name": "R", "query": query}])
    tag = {"id": 8, "name": "release"}
    sandbox.set_annotations([{"id": 3, "date": "2024-03-01 12:00:00", "description": "v2", "tags": [tag]}], [tag])
    sandbox.set_schemas(
        [
            {
                "entityType": "event",
                "name": ODD,
                "schemaJson": {
                    "description": "An order",
                    "properties": {"amount": {"type": "number", "description": "EUR"}},
                    "metadata": {"com.mixpanel": {"displayName": "Order", "tags": ["core"], "hidden": False}},
                },
            }
        ]
    )
    sandbox.set_lookup_tables([{"id": "8b0ae7d5-3b2f-4f2c-9f4e-2f4a6f6b5d10", "name": "Products"}])
    sandbox.set_experiments([{"id": "e1", "name": "Button", "status": "active", "variants": [], "tags": ["core"]}])
    sandbox.set_flags([FLAG])
    sandbox.set_jql(ODD, [{"n": 1}])
    return sandbox


# --- the table


def _case(asks: str, given: str, arguments: Mapping[str, Any], *sent: Sent) -> Case:
    """The workspace is a parameter of the whole Query API, and of nothing else."""
    if not given.startswith("least"):
        sent = tuple(
            replace(one, query={**one.query, "workspace_id": WORKSPACE_ID}) if "/api/query/" in one.url else one
            for one in sent
        )
    return Case(asks, given, arguments, sent)


def _export(**params: str) -> Sent:
    query = {"project_id": PROJECT_ID, **DAYS, "time_in_ms": "true", **params}
    return Sent("GET", "https://data.mixpanel.com/api/2.0/export", query)


def _get(path: str, **params: str) -> Sent:
    return Sent("GET", f"https://mixpanel.com/api/query/{path}", {"project_id": PROJECT_ID, **params})


def _post(path: str, form: Mapping[str, str] | None) -> Sent:
    return Sent("POST", f"https://mixpanel.com/api/query/{path}", {"project_id": PROJECT_ID}, form)


def _pages(**form: str) -> tuple[Sent, Sent]:
    """A walk: the second page is asked for with all that the first one was, its session and its number."""
    return _post("engage", form or None), _post("engage", {**form, "session_id": "S+1/=", "page": "1"})


def _app(path: str, **params: str) -> Sent:
    return Sent("GET", f"https://mixpanel.com/api/app/{path}", params)


def _in_each_region(sent: Sent) -> Iterator[Sent]:
    for host in ("mixpanel.com", "eu.mixpanel.com", "in.mixpanel.com"):
        yield replace(sent, url=sent.url.replace("//mixpanel.com", f"//{host}"))


_NOBODY = _post("engage", {"distinct_id": "mpload-auth-test"})
_PROJECT = f"projects/{PROJECT_ID}"
_ON = {"on": 'properties["amount"]'}
_COUNTED = {"type": "general", "unit": "day"}
_MEMBERS = {"filter_by_cohort": '{"id":7}', "include_all_users": "true", "output_properties": '["$distinct_id"]'}

CASES: Sequence[Case] = (
    # Mixpanel docs: Raw Event Export
    _case("MixpanelClient.export", "least", {"window": Window(FIRST, LAST)}, _export()),
    _case(
        "MixpanelClient.export",
        "all",
        {"window": Window.of(LAST), "events": [ODD, "B"], "where": WHERE, "limit": 10},
        _export(from_date="2024-03-02", event=f'[{ODD_JSON},"B"]', where=WHERE, limit="10"),
    ),
    # Mixpanel docs: Query Profiles
    _case("MixpanelClient.profiles", "least", {}, *_pages()),
    _case(
        "MixpanelClient.profiles",
        "all, of a cohort",
        {
            "where": WHERE,
            "output_properties": ["$email", ODD],
            "filter_by_cohort": 7,
            "include_all_users": False,
            "data_group_id": int(GROUP_ID),
            "distinct_id": ODD,
            "distinct_ids": ["u", ODD],
            "as_of_timestamp": 1_709_287_300,
            "page_size": 1,
        },
        *_pages(
            where=WHERE,
            output_properties=f'["$email",{ODD_JSON}]',
            filter_by_cohort='{"id":7}',
            include_all_users="false",
            data_group_id=GROUP_ID,
            distinct_id=ODD,
            distinct_ids=f'["u",{ODD_JSON}]',
            as_of_timestamp="1709287300",
            page_size="1",
        ),
    ),
    _case(
        "MixpanelClient.profiles",
        "what they did",
        {"where": 'behaviors["b1"] > 0', "behaviors": BEHAVIORS, "as_of_timestamp": 1_709_287_300},
        *_pages(
            where='behaviors["b1"] > 0',
            behaviors=f'[{{"window":"90d","name":"b1","event_selectors":[{{"event":{ODD_JSON}}}]}}]',
            as_of_timestamp="1709287300",
        ),
    ),
    _case("MixpanelClient.me", "least", {}, _app("me")),
    _case("MixpanelClient.me", "in a workspace", {}, _app("me")),
    _case(
        "MixpanelClient.request_json",
        "least",
        {"family": "query", "method": "GET", "path": "/api/query/funnels/list"},
        _get("funnels/list"),
    ),
    _case(
        "MixpanelClient.request_json",
        "a form",
        {
            "family": "query",
            "method": "POST",
            "path": "/api/query/engage",
            "params": {"project_id": PROJECT_ID},
            "data": {"where": WHERE, "page": 0},
            "send_project": False,
        },
        _post("engage", {"where": WHERE, "page": "0"}),
    ),
    _case(
        "MixpanelClient.request_json",
        "JSON",
        {"family": "query", "method": "POST", "path": "/api/query/engage", "json_body": {"page": 0}},
        replace(_post("engage", None), json={"page": 0}),
    ),
    _case(
        "MixpanelClient.request_json",
        "a path with the project",
        {
            "family": "app",
            "method": "GET",
            "path": f"/api/app/{_PROJECT}/annotations",
            "params": {"fromDate": "2024-03-01", "toDate": "2024-03-02"},
        },
        _app(f"{_PROJECT}/annotations", fromDate="2024-03-01", toDate="2024-03-02"),
    ),
    # Mixpanel docs: Query Segmentation Report; Numerically Bucket; Sum; Average
    _case("Reports.segmentation", "least", {"event": ODD, **DAYS}, _get("segmentation", event=ODD, **DAYS)),
    _case(
        "Reports.segmentation",
        "all, by a unit",
        {"event": ODD, **DAYS, "on": "plan", "unit": "hour", "where": WHERE, "type": "unique", "limit": 3},
        _get(
            "segmentation",
            event=ODD,
            **DAYS,
            on='properties["plan"]',
            unit="hour",
            where=WHERE,
            type="unique",
            limit="3",
        ),
    ),
    _case(
        "Reports.segmentation",
        "all, by an interval",
        {"event": ODD, **DAYS, "on": 'user["plan"]', "interval": 2, "where": WHERE, "type": "average", "limit": 10_000},
        _get(
            "segmentation",
            event=ODD,
            **DAYS,
            on='user["plan"]',
            interval="2",
            where=WHERE,
            type="average",
            limit="10000",
        ),
    ),
    _case(
        "Reports.segmentation",
        "all, by ranges",
        {"event": ODD, **DAYS, **_ON, "math": "numeric", "unit": "hour", "where": WHERE, "type": "unique"},
        _get("segmentation/numeric", event=ODD, **DAYS, **_ON, unit="hour", where=WHERE, type="unique"),
    ),
    *(
        _case(
            "Reports.segmentation",
            f"all, the {math}",
            {"event": ODD, **DAYS, **_ON, "math": math, "unit": "day", "where": WHERE},
            _get(f"segmentation/{math}", event=ODD, **DAYS, **_ON, unit="day", where=WHERE),
        )
        for math in ("sum", "average")
    ),
    # Mixpanel docs: Funnels, Query Saved Report
    _case("Reports.funnel", "least", {"funnel_id": 7, **DAYS}, _get("funnels", funnel_id="7", **DAYS)),
    *(
        _case(
            "Reports.funnel",
            f"all, by {name}",
            {
                "funnel_id": 7,
                **DAYS,
                "length": 90,
                "length_unit": "day",
                name: value,
                **_ON,
                "where": WHERE,
                "limit": 3,
            },
            _get(
                "funnels",
                funnel_id="7",
                **DAYS,
                length="90",
                length_unit="day",
                **{name: str(value)},
                **_ON,
                where=WHERE,
                limit="3",
            ),
        )
        for name, value in (("unit", "week"), ("interval", 2))
    ),
    _case(
        "Reports.funnel",
        "days for its steps",
        {"funnel_id": 7, **DAYS, "length": 5},
        _get("funnels", funnel_id="7", **DAYS, length="5", length_unit="day"),
    ),
    # Mixpanel docs: Query Retention Report; Query Frequency Report
    _case("Reports.retention", "least", {"born_event": ODD, **DAYS}, _get("retention", born_event=ODD, **DAYS)),
    *(
        _case(
            "Reports.retention",
            f"all, by {name}",
            {
                **DAYS,
                "retention_type": "birth",
                "born_event": ODD,
                "event": "B",
                "born_where": WHERE,
                "where": WHERE,
                name: value,
                "interval_count": 4,
                "unbounded_retention": unbounded,
                "on": "plan",
                "limit": 3,
            },
            _get(
                "retention",
                **DAYS,
                retention_type="birth",
                born_event=ODD,
                event="B",
                born_where=WHERE,
                where=WHERE,
                **{name: str(value)},
                interval_count="4",
                unbounded_retention=str(unbounded).lower(),
                on='properties["plan"]',
                limit="3",
            ),
        )
        for name, value, unbounded in (("unit", "month", True), ("interval", 90, False))
    ),
    _case(
        "Reports.retention",
        "recurring",
        {**DAYS, "retention_type": "compounded", "event": ODD},
        _get("retention", **DAYS, retention_type="compounded", event=ODD),
    ),
    _case("Reports.frequency", "least", DAYS, _get("retention/addiction", **DAYS, unit="day", addiction_unit="hour")),
    _case(
        "Reports.frequency",
        "all",
        {**DAYS, "unit": "month", "addiction_unit": "day", "event": ODD, "where": WHERE, "on": "plan", "limit": 3},
        _get(
            "retention/addiction",
            **DAYS,
            unit="month",
            addiction_unit="day",
            event=ODD,
            where=WHERE,
            on='properties["plan"]',
            limit="3",
        ),
    ),
    # Mixpanel docs: Insights, Query Saved Report
    _case("Reports.insights", "least", {"bookmark_id": 5}, _get("insights", bookmark_id="5")),
    _case("Reports.insights", "in a workspace", {"bookmark_id": 5}, _get("insights", bookmark_id="5")),
    # Mixpanel docs: Aggregate Event Counts; Aggregated Event Property Values
    _case(
        "Reports.event_counts",
        "least",
        {"events": [ODD], **DAYS},
        _get("events", event=f"[{ODD_JSON}]", **DAYS, **_COUNTED),
    ),
    _case(
        "Reports.event_counts",
        "all, by an interval",
        {"events": [ODD, "B"], "interval": 2, "type": "unique", "unit": "week"},
        _get("events", event=f'[{ODD_JSON},"B"]', interval="2", type="unique", unit="week"),
    ),
    _case(
        "Reports.property_counts",
        "least",
        {"event": ODD, "name": "plan", **DAYS},
        _get("events/properties", event=ODD, name="plan", **DAYS, **_COUNTED),
    ),
    _case(
        "Reports.property_counts",
        "all",
        {"event": ODD, "name": ODD, **DAYS, "values": [ODD, "pro"], "type": "average", "unit": "month", "limit": 3},
        _get(
            "events/properties",
            event=ODD,
            name=ODD,
            **DAYS,
            values=f'[{ODD_JSON},"pro"]',
            type="average",
            unit="month",
            limit="3",
        ),
    ),
    _case(
        "Reports.property_counts",
        "all, by an interval",
        {"event": ODD, "name": "plan", "interval": 3, "unit": "minute"},
        _get("events/properties", event=ODD, name="plan", interval="3", type="general", unit="minute"),
    ),
    # Mixpanel docs: Profile Event Activity; Custom JQL Query
    *(
        _case(
            "Reports.activity",
            given,
            {"distinct_ids": [ODD, "u"], **DAYS},
            _get("stream/query", distinct_ids=f'[{ODD_JSON},"u"]', **DAYS),
        )
        for given in ("least", "in a workspace")
    ),
    _case("Reports.jql", "least", {"script": ODD}, _post("jql", {"script": ODD})),
    _case(
        "Reports.jql",
        "all",
        {"script": ODD, "params": {"n": 1, "event": ODD}},
        _post("jql", {"script": ODD, "params": f'{{"n":1,"event":{ODD_JSON}}}'}),
    ),
    # Mixpanel docs: Top Events; Top Event Properties; Top Event Property Values
    _case("Discovery.events", "least", {}, _get("events/names", type="general", limit="5000")),
    _case("Discovery.events", "all", {"limit": 3}, _get("events/names", type="general", limit="3")),
    _case(
        "Discovery.day_counts",
        "least",
        {"first": FIRST, "last": LAST, "events": [ODD, "B"]},
        _get("events", **DAYS, event=f'[{ODD_JSON},"B"]', type="general", unit="day"),
    ),
    _case("Discovery.properties", "least", {"event": ODD}, _get("events/properties/top", event=ODD, limit="255")),
    _case(
        "Discovery.properties", "all", {"event": ODD, "limit": 3}, _get("events/properties/top", event=ODD, limit="3")
    ),
    _case(
        "Discovery.values",
        "least",
        {"event": ODD, "name": "plan"},
        _get("events/properties/values", event=ODD, name="plan", limit="100"),
    ),
    _case(
        "Discovery.values",
        "all",
        {"event": ODD, "name": ODD, "limit": 3},
        _get("events/properties/values", event=ODD, name=ODD, limit="3"),
    ),
    # Mixpanel docs: List Saved Funnels; List Saved Cohorts
    *(
        _case(asks, given, {}, sent)
        for given in ("least", "in a workspace")
        for asks, sent in (
            ("Discovery.funnels", _get("funnels/list")),
            ("Discovery.cohorts", _post("cohorts/list", None)),
            ("LISTINGS.funnels", _get("funnels/list")),
            ("LISTINGS.cohorts", _post("cohorts/list", None)),
        )
    ),
    # Not documented
    _case("Discovery.projects", "least", {}, _app("me")),
    _case("Discovery.bookmarks", "least", {}, _app(f"{_PROJECT}/bookmarks", v="2")),
    # Mixpanel docs: Annotations; Lexicon Schemas; List Lookup Tables
    _case("LISTINGS.annotations", "least", {}, _app(f"{_PROJECT}/annotations")),
    _case("LISTINGS.event_definitions", "least", {}, _app(f"{_PROJECT}/schemas")),
    _case("LISTINGS.property_definitions", "least", {}, _app(f"{_PROJECT}/schemas")),
    _case(
        "LISTINGS.lookup_tables",
        "least",
        {},
        Sent("GET", "https://api.mixpanel.com/lookup-tables", {"project_id": PROJECT_ID}),
    ),
    # Mixpanel docs: Experiments; Feature Flags
    *(
        _case(asks, given, {}, *looked_up, sent)
        for given, looked_up in (("least", [_app("me")]), ("in a workspace", []))
        for asks, sent in (
            ("LISTINGS.experiments", _app(f"workspaces/{WORKSPACE_ID}/experiments")),
            (
                "LISTINGS.feature_flags",
                _app(f"{_PROJECT}/workspaces/{WORKSPACE_ID}/feature-flags", include_archived="true"),
            ),
        )
    ),
    # Loads, snapshots and accounts
    *(
        _case(
            "Loads.events",
            given,
            filter_,
            *(_export(from_date=day, to_date=day, **params) for day in DAYS.values()),
        )
        for given, filter_, params in (
            ("least", {}, {}),
            ("all", {"events": ("B",), "where": WHERE}, {"event": '["B"]', "where": WHERE}),
        )
    ),
    _case("Loads.profiles", "least", {}, *_pages()),
    _case(
        "Loads.profiles",
        "all",
        {"where": "true", "output_properties": ("plan",), "filter_by_cohort": 7, "since": FIRST},
        *_pages(
            where='(true) and properties["$last_seen"] >= "2024-03-01T00:00:00"',
            output_properties='["plan"]',
            filter_by_cohort='{"id":7}',
            include_all_users="false",
        ),
    ),
    _case("Loads.group_profiles", "least", {"data_group_ids": [GROUP_ID]}, *_pages(data_group_id=GROUP_ID)),
    _case("Loads.cohort_members", "least", {}, _post("cohorts/list", None), *_pages(**_MEMBERS)),
    _case("Loads.listing", "least", {"table": "funnels"}, _get("funnels/list")),
    _case("Loads.report_table", "least", {"bookmark_id": 5}, _get("insights", bookmark_id="5")),
    _case("Loads.sweep", "least", {}, _export(where='number(properties["mp_processing_time_ms"]) >= 1709938800000')),
    _case("Loads.fetch_events", "least", {}, _export(to_date="2024-03-01")),
    _case("Loads.fetch_profiles", "all", {"where": WHERE}, *_pages(where=WHERE)),
    _case(
        "Loads.verify",
        "least",
        {},
        _get("events/names", type="general", limit="5000"),
        _get("events", event=f"[{ODD_JSON}]", **DAYS, **_COUNTED),
    ),
    _case("Loads.check_account", "least", {}, _app("me"), _NOBODY),
    _case("Loads.check_account", "in a workspace", {}, _app("me"), _NOBODY),
    _case(
        "Loads.find_region",
        "least",
        {"kind": "service_account"},
        *_in_each_region(_app("me")),
    ),
    _case(
        "Loads.find_region",
        "least, with a project secret",
        {"kind": "project_secret"},
        *_in_each_region(_post("engage", {"distinct_id": "mpload-auth-test"})),
    ),
)
