"""What can be asked: which path is answered by what, with which parameters, under which limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from . import account, activity, engage, event_counts, export, funnels, insights, metadata, retention, segmentation
from .reply import ApiError, Family, Reply

if TYPE_CHECKING:
    from .app import Sandbox

LimitName = Literal["export", "query", "lexicon"]
Answer = Callable[["Sandbox", "Call"], Reply]


@dataclass(frozen=True)
class Call:
    """What a handler reads of a request. Header names are in lower case; `path` has the variable parts of the path."""

    params: Mapping[str, str]
    headers: Mapping[str, str]
    path: Mapping[str, str]


@dataclass(frozen=True)
class Endpoint:
    """One thing that can be asked. Its name is the one that faults, plan_402 and other_shape use."""

    name: str
    family: Family
    methods: frozenset[str]
    paths: tuple[str, ...]
    params: frozenset[str] | None
    answer: Answer
    limit: LimitName | None
    is_quick: Callable[[Sandbox, Call], bool] = lambda sandbox, call: True
    is_follow_up: Callable[[Call], bool] = lambda call: False


GET, POST, GET_OR_POST = frozenset({"GET"}), frozenset({"POST"}), frozenset({"GET", "POST"})


def _query_paths(path: str) -> tuple[str, ...]:
    """The documented root of the Query API, and the older one that is still served."""
    return f"/api/query/{path}", f"/api/2.0/{path}"


def _query(name: str, params: frozenset[str], answer: Answer, methods: frozenset[str] = GET) -> Endpoint:
    """A report: worked out aside, so that nobody else has to wait for it."""
    return Endpoint(name, "query", methods, _query_paths(name), params, answer, "query", lambda sandbox, call: False)


def _app(name: str, path: str, params: frozenset[str], answer: Answer, limit: LimitName | None = None) -> Endpoint:
    return Endpoint(name, "app", GET, (f"/api/app/{path}",), params, answer, limit)


def _not_found(sandbox: Sandbox, call: Call) -> Reply:
    raise ApiError(404)


_NO_PARAMS: frozenset[str] = frozenset()
_PROJECT = "projects/{project_id}"
_FLAGS = f"{_PROJECT}/workspaces/{{workspace_id}}/feature-flags"
_EXPERIMENTS = "workspaces/{workspace_id}/experiments"

ENDPOINTS = (
    Endpoint(
        name="export",
        family="export",
        methods=GET,
        paths=("/api/2.0/export",),
        params=export.PARAMS,
        answer=export.export,
        limit="export",
        is_quick=export.is_quick,
    ),
    Endpoint(
        name="engage",
        family="query",
        methods=GET_OR_POST,
        paths=_query_paths("engage"),
        params=engage.PARAMS,
        answer=engage.engage,
        limit="query",
        is_quick=lambda sandbox, call: engage.is_follow_up(call),
        is_follow_up=engage.is_follow_up,
    ),
    # The docs have POST; clients use GET.
    _query("cohorts/list", metadata.COHORTS_PARAMS, metadata.cohorts, GET_OR_POST),
    _query("funnels", funnels.PARAMS, funnels.funnel),
    _query("funnels/list", funnels.LIST_PARAMS, funnels.listed),
    _query("segmentation", segmentation.PARAMS, segmentation.segmentation),
    _query("segmentation/numeric", segmentation.NUMERIC_PARAMS, segmentation.numeric),
    _query("segmentation/sum", segmentation.SUM_PARAMS, segmentation.total),
    _query("segmentation/average", segmentation.SUM_PARAMS, segmentation.average),
    _query("events", event_counts.PARAMS, event_counts.counts),
    _query("events/top", event_counts.TOP_PARAMS, event_counts.top),
    _query("events/names", event_counts.NAMES_PARAMS, event_counts.names),
    _query("events/properties", event_counts.PROPERTIES_PARAMS, event_counts.property_counts),
    _query("events/properties/top", event_counts.TOP_PROPERTIES_PARAMS, event_counts.top_properties),
    _query("events/properties/toptypes", event_counts.TOP_PROPERTIES_PARAMS, event_counts.property_types),
    _query("events/properties/values", event_counts.VALUES_PARAMS, event_counts.values),
    _query("retention", retention.PARAMS, retention.retention),
    _query("retention/addiction", retention.FREQUENCY_PARAMS, retention.frequency),
    _query("insights", insights.PARAMS, insights.insights),
    _query("stream/query", activity.STREAM_PARAMS, activity.stream),
    _query("jql", activity.JQL_PARAMS, activity.jql, POST),
    _app("me", "me", account.PARAMS, account.me),
    _app("annotations/tags", f"{_PROJECT}/annotations/tags", _NO_PARAMS, metadata.annotation_tags),
    _app("annotations", f"{_PROJECT}/annotations", metadata.ANNOTATIONS_PARAMS, metadata.annotation_list),
    _app("annotations", f"{_PROJECT}/annotations/{{id}}", _NO_PARAMS, metadata.annotation),
    _app("schemas", f"{_PROJECT}/schemas", _NO_PARAMS, metadata.schemas, "lexicon"),
    _app(
        "schemas",
        f"{_PROJECT}/schemas/{{type}}",
        metadata.SCHEMAS_OF_TYPE_PARAMS,
        metadata.schemas_of_type,
        "lexicon",
    ),
    # A name may hold a slash.
    _app("schemas", f"{_PROJECT}/schemas/{{type}}/{{name:path}}", _NO_PARAMS, metadata.schema, "lexicon"),
    _app("bookmarks", f"{_PROJECT}/bookmarks", metadata.BOOKMARKS_PARAMS, metadata.bookmarks),
    _app("experiments", _EXPERIMENTS, _NO_PARAMS, metadata.experiments),
    _app("experiments", f"{_EXPERIMENTS}/{{id}}", _NO_PARAMS, metadata.experiment),
    _app("feature-flags", _FLAGS, metadata.FLAGS_PARAMS, metadata.feature_flags),
    _app("feature-flags", f"{_FLAGS}/{{id}}", _NO_PARAMS, metadata.feature_flag),
    Endpoint(
        name="lookup-tables",
        family="ingestion",
        methods=GET,
        paths=("/lookup-tables",),
        params=metadata.LOOKUP_TABLES_PARAMS,
        answer=metadata.lookup_tables,
        limit=None,
    ),
    # Everywhere else; params None: whatever is given.
    Endpoint("", "app", GET_OR_POST, ("/api/app/{path:path}",), None, _not_found, None),
    Endpoint("", "query", GET_OR_POST, ("/{path:path}",), None, _not_found, None),
)
