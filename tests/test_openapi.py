"""The product and the sandbox against Mixpanel's OpenAPI files, where `MIXPANEL_OPENAPI_DIR` names their folder.

What is not as those files have it is listed here with its reason, and a reason that no longer holds fails a test.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from openapi_core import OpenAPI
from openapi_core.contrib.requests import RequestsOpenAPIRequest, RequestsOpenAPIResponse
from openapi_core.validation.request.exceptions import RequestBodyValidationError
from openapi_core.validation.schemas.exceptions import InvalidSchemaValue
from request_cases import (
    CASES,
    FLAG,
    ODD,
    PROJECT_ID,
    WORKSPACE_ID,
    Case,
    Sent,
    filled_sandbox,
    record,
    sent_by,
    usual_answer,
)

from mixpanel_source import settings
from mixpanel_source.credentials import KINDS, Credentials
from mixpanel_source.sandbox import SandboxServer

FOLDER = os.environ.get("MIXPANEL_OPENAPI_DIR", "")
pytestmark = [
    pytest.mark.skipif(not FOLDER, reason="MIXPANEL_OPENAPI_DIR does not name a folder with Mixpanel's OpenAPI files"),
    pytest.mark.usefixtures("quick"),
]

READING_POSTS = {"/engage", "/cohorts/list", "/jql"}
"""All other operations that only read are GET."""


@dataclass(frozen=True)
class Deviation:
    """What a request has that the files do not allow: `problem`, wherever the parameter `given` is in it."""

    path: str
    given: str
    problem: str
    why: str


UNDOCUMENTED_PATHS = {
    "/api/app/me": "who the credentials belong to, the project's time zone and workspaces: from nowhere else",
    f"/api/app/projects/{PROJECT_ID}/bookmarks": "the only way to find the id that /insights asks for",
}

DEVIATIONS = (
    *(
        Deviation(
            path, "interval", f"Missing required query parameter: {name}", "the text says: either dates or interval"
        )
        for path in ("/api/query/events", "/api/query/events/properties")
        for name in ("from_date", "to_date")
    ),
    Deviation(
        "/api/query/engage",
        "behaviors",
        "behaviors: Failed to cast value to integer type",
        "a JSON list for every client, and on the page itself",
    ),
    Deviation(
        "/api/query/engage", "page_size", "page_size is not documented", "works for clients; sent only on request"
    ),
)

NOT_OFFERED = {
    ("/segmentation", "format"): "CSV says the same as JSON",
    ("/events", "format"): "CSV says the same as JSON",
    ("/events/properties", "format"): "CSV says the same as JSON",
    **{
        ("/projects/{projectId}/annotations", name): "the table has them all: `date` is not when one was made"
        for name in ("fromDate", "toDate")
    },
}
"""Documented parameters that no method of the product takes but request_json, which takes any."""

NOT_READ = {
    "/events/top": "compares today with yesterday: /events tells the same of any days",
    "/projects/{projectId}/annotations/{annotationId}": "one row of the list",
    "/projects/{projectId}/annotations/tags": "those in use are in the rows of the list",
    "/projects/{projectId}/schemas/{entityType}": "part of the list",
    "/projects/{projectId}/schemas/{entityType}/{name}": "one entry of the list",
    "/workspaces/{workspace_id}/experiments/{experiment_id}": "one row of the list",
    "/projects/{project_id}/workspaces/{workspace_id}/feature-flags/{flag_id}": "one row of the list",
    "/flags": "evaluates flags for one user",
    "/flags/definitions": "the list of feature flags, compact, for evaluating them",
    "/data-retrievals/v3.0/{tracking_id}": "the state of a request that only writing makes; OAuth alone",
    "/data-deletions/v3.0/{tracking_id}": "the state of a request that only writing makes; OAuth alone",
    "/organizations/{organizationId}/service-accounts": "who may ask; for owners and admins alone",
    "/organizations/{organizationId}/service-accounts/{serviceAccountId}": "who may ask; for owners and admins alone",
    "/projects/{projectId}/service-accounts": "who may ask; for owners and admins alone",
    "/projects/{projectId}/warehouse-sources/imports": "how imports went, and no data",
    "/projects/{projectId}/warehouse-sources/imports/{importId}": "how imports went, and no data",
    "/projects/{projectId}/warehouse-sources/imports/{importId}/history": "how imports went, and no data",
}
"""Documented operations that only read, and that the product has no use for."""


# --- what the files say


@dataclass(frozen=True, eq=False)
class Operation:
    """One of a file's operations, its references followed. `origins` are the hosts, with their scheme, by region."""

    file: OpenAPI
    method: str
    path: str
    root: str
    origins: frozenset[str]
    parameters: Sequence[Mapping[str, Any]]
    form: Mapping[str, Any]
    responses: Mapping[str, Any]

    @property
    def query(self) -> dict[str, Mapping[str, Any]]:
        return {one["name"]: one for one in self.parameters if one["in"] == "query"}

    @property
    def fields(self) -> Mapping[str, Any]:
        fields: Mapping[str, Any] = self.form.get("properties", {})
        return fields

    @property
    def reads(self) -> bool:
        return self.method == "GET" or (self.method == "POST" and self.path in READING_POSTS)

    def is_that_of(self, sent: Sent) -> bool:
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(self.root + self.path))
        origin = sent.url.removesuffix(sent.path)
        return sent.method == self.method and origin in self.origins and re.fullmatch(pattern, sent.path) is not None


@functools.cache
def operations() -> Sequence[Operation]:
    """Those without variables in their paths come first."""
    paths = sorted(Path(FOLDER).glob("*.yaml"))
    assert paths, f"no OpenAPI files in {FOLDER}"
    found = [operation for path in paths for operation in _operations_of(OpenAPI.from_path(path))]
    return sorted(found, key=lambda operation: "{" in operation.path)


def _operations_of(file: OpenAPI) -> Iterator[Operation]:
    with file.spec.open() as raw:
        (server,) = raw["servers"]
        variables = {name: variable["enum"] for name, variable in server.get("variables", {}).items()}
        urls = [
            server["url"].format(**dict(zip(variables, values, strict=True)))
            for values in itertools.product(*variables.values())
        ]
        origins = frozenset("/".join(url.split("/")[:3]) for url in urls)
        root = "".join(f"/{part}" for part in urls[0].split("/")[3:])
        for path, item in raw["paths"].items():
            for method, operation in item.items():
                if method not in ("get", "post"):
                    continue
                parameters = [*item.get("parameters", []), *operation.get("parameters", [])]
                bodies = _followed(raw, operation.get("requestBody", {})).get("content", {})
                yield Operation(
                    file,
                    method.upper(),
                    path,
                    root,
                    origins,
                    [_with_schema(raw, _followed(raw, parameter)) for parameter in parameters],
                    _followed(raw, bodies.get("application/x-www-form-urlencoded", {}).get("schema", {})),
                    operation["responses"],
                )


def _with_schema(raw: Mapping[str, Any], parameter: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**parameter, "schema": _followed(raw, parameter["schema"])}


def _followed(raw: Mapping[str, Any], node: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in node:
        node = functools.reduce(lambda found, key: found[key], node["$ref"].split("/")[1:], raw)
    return node


def operation_of(sent: Sent) -> Operation | None:
    return next((operation for operation in operations() if operation.is_that_of(sent)), None)


def used() -> dict[Operation, list[Sent]]:
    """The operations that the product asks for by itself, with the requests."""
    found: dict[Operation, list[Sent]] = {}
    for case in CASES:
        for sent in record(case).sent if case.asks != "MixpanelClient.request_json" else ():
            if (operation := operation_of(sent)) is not None:
                found.setdefault(operation, []).append(sent)
    return found


def problems(request: requests.PreparedRequest) -> list[str]:
    """What is wrong with a request for a documented operation; names that it does not have are, too."""
    sent = sent_by(request)
    operation = operation_of(sent)
    assert operation is not None
    form = sent.form or {}
    unknown = [*(sent.query.keys() - operation.query), *(form.keys() - operation.fields)]
    missing = [name for name in operation.form.get("required", []) if name not in form]
    found = [f"{name} is not documented" for name in unknown] + [f"{name} is missing" for name in missing]
    found += [str(error) for error in _errors(operation, request) if not (form and _is_of_body(error))]
    for name in form:  # one by one: of a body's errors only the first is told
        alone = request.copy()
        alone.prepare_body({name: form[name]}, None)
        causes = [error.__cause__ for error in _errors(operation, alone) if _is_of_body(error)]
        found += [f"{name}: {str(cause).partition(': ')[0]}" for cause in causes]
    return sorted(found)


def _errors(operation: Operation, request: requests.PreparedRequest) -> list[Exception]:
    return list(operation.file.request_validator.iter_errors(RequestsOpenAPIRequest(request)))


def _is_of_body(error: Exception) -> bool:
    return isinstance(error, RequestBodyValidationError)


# --- requests


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_request_is_as_documented(case: Case) -> None:
    for request in record(case).requests:
        sent = sent_by(request)
        if sent.path in UNDOCUMENTED_PATHS:
            assert operation_of(sent) is None
        elif sent.json is None:  # else it is what the caller of request_json wanted
            given = {**sent.query, **(sent.form or {})}
            expected = [one.problem for one in DEVIATIONS if one.path == sent.path and one.given in given]
            assert problems(request) == sorted(expected)


def test_a_wrong_request_is_noticed() -> None:
    """Or else the test before says nothing."""

    def wrong(path: str, form: Mapping[str, str] | None = None, **query: str) -> list[str]:
        url = f"https://mixpanel.com/api/query/{path}"
        request = requests.Request("GET" if form is None else "POST", url, params=query, data=form, auth=("user", "x"))
        return problems(request.prepare())

    assert wrong("insights", project_id="1", bookmark_id="5") == []
    assert wrong("insights", project_id="1") == ["Missing required query parameter: bookmark_id"]
    assert wrong("insights", project_id="one", bookmark_id="5") == ["Query parameter error: project_id"]
    assert wrong("insights", project_id="1", bookmark_id="5", from_date="x") == ["from_date is not documented"]
    assert wrong("events/top", project_id="1", type="total") == ["Invalid query parameter: type"]
    assert wrong("engage", {"page": "x", "include_all_users": "maybe", "search": "s"}, project_id="1") == [
        "include_all_users: Failed to cast value to boolean type",
        "page: Failed to cast value to integer type",
        "search is not documented",
    ]
    assert wrong("jql", {"params": "{}"}, project_id="1") == ["script is missing"]


def test_what_is_listed_here_is_so() -> None:
    sent = [one for case in CASES for one in record(case).sent]
    assert {one.path for one in sent} >= UNDOCUMENTED_PATHS.keys()
    for deviation in DEVIATIONS:
        assert any(
            one.path == deviation.path and deviation.given in {**one.query, **(one.form or {})} for one in sent
        ), deviation


def test_the_hosts_of_every_region_are_documented() -> None:
    for operation, sent in used().items():
        for origin in {one.url.removesuffix(one.path) for one in sent}:
            for hosts in settings.HOSTS.values():
                if origin == hosts["us"]:
                    assert set(hosts.values()) == operation.origins, operation.path


def test_every_documented_parameter_can_be_given() -> None:
    left_out = {
        (operation.path, name)
        for operation, sent in used().items()
        for name in [*operation.query, *operation.fields]
        if not any(name in {**one.query, **(one.form or {})} for one in sent)
    }
    assert left_out == NOT_OFFERED.keys()


def test_every_documented_read_is_made_or_has_a_reason_not_to_be() -> None:
    reads = {operation.path for operation in operations() if operation.reads}
    assert reads - {operation.path for operation in used()} == NOT_READ.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_who_asks_is_told_as_documented(kind: str) -> None:
    username = "user" if kind == "service_account" else ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of project secrets, which end
        header = Credentials(username, "planted", PROJECT_ID, "us", kind).authorization()
    first: dict[Operation | None, requests.PreparedRequest] = {}
    for case in CASES:
        for request in record(case).requests:
            first.setdefault(operation_of(sent_by(request)), request)
    found = set()
    for operation, request in first.items():
        if operation is not None:
            told = request.copy()
            told.headers["Authorization"] = header
            found |= {problem.partition(":")[0] for problem in problems(told)}
    # Bearer tokens are documented for other paths alone; a known client sends them to these, too.
    assert found == ({"SecurityValidationError"} if kind == "oauth_token" else set())


# --- the sandbox


BEYOND_THE_PRODUCT = (
    Sent("GET", "https://mixpanel.com/api/query/events/top", {"project_id": PROJECT_ID, "type": "general"}),
    *(
        Sent("GET", f"https://mixpanel.com/api/app/{path}", {})
        for path in (
            f"projects/{PROJECT_ID}/annotations/3",
            f"projects/{PROJECT_ID}/annotations/tags",
            f"projects/{PROJECT_ID}/schemas/event",
            f"projects/{PROJECT_ID}/schemas/event/{quote(ODD, safe='')}",
            f"workspaces/{WORKSPACE_ID}/experiments/e1",
            f"projects/{PROJECT_ID}/workspaces/{WORKSPACE_ID}/feature-flags/{FLAG['id']}",
        )
    ),
)
"""Documented requests that the sandbox answers and the product does not make."""

SANDBOX_TAKES = {
    ("/events/properties/top", "event is missing"): "clients leave it out: all events then",
    ("/engage", "by GET"): "the way of several clients",
    ("/engage", "fields as JSON"): "the way of two clients",
    ("/engage", "fields in the query"): "the way of several clients",
    ("/cohorts/list", "by GET"): "the way of several clients",
    **{
        (path, "parameters in the form"): "the way of Mixpanel's own helper for Python"
        for path in ("/engage", "/cohorts/list", "/jql")
    },
}
"""What the files do not allow, and the sandbox does."""

ANSWERED_OTHERWISE = {
    ("/export", "Missing response data"): "days without events have an empty body",
    ("/engage", "$.results[]['$distinct_id'] is not of type 'integer'"): "ids are text",
    **{
        ("/funnels", f"$.data[].steps[].{name} {problem}"): "null at the first step, as the text says"
        for name in ("avg_time", "avg_time_from_start")
        for problem in ("is not of type 'integer'", "for not nullable")
    },
    ("/segmentation/sum", "$.results[] is not of type 'integer'"): "the sum of fractions is no whole number",
    ("/retention/addiction", "$.data[] is not of type 'array'"): "with `on`, a level more",
    **{
        (
            f"/projects/{{projectId}}/annotations{path}",
            f"{place} Additional properties are not allowed ('project_id' was unexpected)",
        ): "clients meet it"
        for path, place in (("", "$.results[]"), ("/{annotationId}", "$.results"))
    },
}
"""What the sandbox answers though the files do not have it so."""


def served() -> dict[Operation, list[Sent]]:
    """What the sandbox answers, with requests for it: pages after the first aside, which need a session."""
    found = {operation: list(sent) for operation, sent in used().items()}
    for sent in BEYOND_THE_PRODUCT:
        operation = operation_of(sent)
        assert operation is not None, sent
        found.setdefault(operation, []).append(sent)
    return {
        operation: [one for one in sent if "session_id" not in (one.form or {})] for operation, sent in found.items()
    }


@pytest.fixture(scope="module")
def sandbox_url() -> Iterator[str]:
    with SandboxServer(filled_sandbox()) as server:
        yield server.url


@pytest.fixture
def http() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.auth = ("user", "planted")
        yield session


def asked(http: requests.Session, url: str, sent: Sent) -> requests.Response:
    form = sent.form and dict(sent.form)
    return http.request(sent.method, url + sent.path, params=dict(sent.query), data=form, json=sent.json)


def test_the_sandbox_refuses_what_is_not_as_documented(sandbox_url: str, http: requests.Session) -> None:
    taken = set()
    for operation, requests_made in served().items():
        for wrong, sent, statuses in mistakes(operation, requests_made):
            status = asked(http, sandbox_url, sent).status_code
            if status == 200:
                taken.add((operation.path, wrong))
            else:
                assert status in statuses, (operation.path, wrong, sent)
    assert taken == SANDBOX_TAKES.keys()


def mistakes(operation: Operation, made: Sequence[Sent]) -> Iterator[tuple[str, Sent, set[int]]]:
    """What is wrong, the request, and the statuses that refuse it. All else in the request is as it was made."""
    least = made[0]
    other = "GET" if operation.method == "POST" else "POST"
    yield f"by {other}", replace(least, method=other), {405}
    yield "an unknown parameter", replace(least, query={**least.query, "extra": "1"}), {400}
    if operation.fields:
        yield "an unknown field", replace(least, form={**(least.form or {}), "extra": "1"}), {400}
        fullest = max((one.form or {} for one in made), key=len)
        yield "fields as JSON", replace(least, form=None, json=fullest), {400}
        yield "fields in the query", replace(least, form=None, query={**least.query, **fullest}), {400}
    if operation.method == "POST":
        yield "parameters in the form", replace(least, query={}, form={**(least.form or {}), **least.query}), {400}
    for name, parameter in operation.query.items():
        base = next((one for one in made if name in one.query), least)
        if parameter.get("required"):
            rest = {key: value for key, value in base.query.items() if key != name}
            yield f"{name} is missing", replace(base, query=rest), {400}
        for value in wrong_values(parameter["schema"]):
            # Any other project is somebody else's.
            statuses = {400, 403} if name == "project_id" else {400}
            yield f"{name}={value}", replace(base, query={**base.query, name: value}), statuses
    for name, schema in operation.fields.items():
        base = next((one for one in made if name in (one.form or {})), least)
        form = base.form or {}
        if name in operation.form.get("required", []):
            rest = {key: value for key, value in form.items() if key != name}
            yield f"{name} is missing", replace(base, form=rest), {400}
        for value in wrong_values(schema):
            yield f"{name}={value}", replace(base, form={**form, name: value}), {400}
    parts = list(zip(operation.path.split("/"), least.path.removeprefix(operation.root).split("/"), strict=True))
    for parameter in operation.parameters:
        if parameter["in"] != "path":
            continue
        placeholder = f"{{{parameter['name']}}}"
        for value in filter(None, wrong_values(parameter["schema"])):
            path = operation.root + "/".join(value if named == placeholder else part for named, part in parts)
            yield f"{placeholder}={value}", replace(least, url=least.url.replace(least.path, path)), {400, 403, 404}


def wrong_values(schema: Mapping[str, Any]) -> list[str]:
    if "enum" in schema:
        return ["nothing", "", schema["enum"][0].upper()]
    return {"integer": ["x", "1.5", ""], "number": ["x", ""], "boolean": ["maybe", "True", "1", ""]}.get(
        schema["type"], []
    )


def test_the_sandbox_answers_as_documented(sandbox_url: str, http: requests.Session) -> None:
    found = set()
    for operation, made in served().items():
        for sent in made:
            response = asked(http, sandbox_url, sent)
            assert response.status_code == 200, (sent, response.text)
            found |= {(operation.path, problem) for problem in answer_problems(operation, sent, response)}
    assert found == ANSWERED_OTHERWISE.keys()


def answer_problems(operation: Operation, sent: Sent, response: requests.Response) -> Iterator[str]:
    """Each with its place, dates and numbers in it aside."""
    request = requests.Request(sent.method, sent.url, params=dict(sent.query), data=sent.form and dict(sent.form))
    told = RequestsOpenAPIRequest(request)
    for error in operation.file.response_validator.iter_errors(told, RequestsOpenAPIResponse(response)):
        if not isinstance(error.__cause__, InvalidSchemaValue):
            yield str(error)
            continue
        schema_errors: Iterable[Any] = error.__cause__.schema_errors
        for one in schema_errors:
            place = re.sub(r"\[(\d+|'[\d-]+')\]", "[]", one.json_path)
            yield f"{place} {one.message.removeprefix(repr(one.instance)).strip()}"


# --- answers


def test_the_product_reads_the_answers_that_the_files_give_as_examples() -> None:
    reading = [case for case in CASES if not case.asks.startswith("MixpanelClient.")]
    read = set()
    for operation in used():
        case = next(case for case in reading if operation_of(case.sent[-1]) is operation)
        for example in examples(operation):
            found = record(
                case,
                lambda sent, operation=operation, example=example: (
                    example if operation_of(sent) is operation else usual_answer(sent)
                ),
            ).result
            assert getattr(found, "rows", found), case
            read.add(operation.path)
    assert read == {operation.path for operation in used() if any(examples(operation))}


def examples(operation: Operation) -> Iterator[Any]:
    content = operation.responses["200"].get("content", {}).get("application/json", {})
    yield from (example["value"] for example in content.get("examples", {}).values())
    if "example" in content:
        yield content["example"]
