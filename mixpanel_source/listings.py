"""What Mixpanel lists of a project: which endpoint is asked for each table, and the rows in its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mixpanel_source.client import MixpanelClient
from mixpanel_source.errors import QueryError, ServerError
from mixpanel_source.settings import ApiFamily

DataType = Literal["text", "bigint", "bool", "timestamp", "json"]
Rows = list[dict[str, Any]]

_LEXICON = "com.mixpanel"
"""Whose part of a schema's metadata is Mixpanel's own (Mixpanel docs: Lexicon Schemas)."""


@dataclass(frozen=True)
class Listing:
    """One table: asked for as a whole, with one request. What `columns` does not name is typed as it comes.

    `path` may hold {project_id} and {workspace_id}; `read` gives the rows of the answer.
    """

    table: str
    key: tuple[str, ...]
    columns: Mapping[str, DataType]
    family: ApiFamily
    path: str
    read: Callable[[Any], Rows]
    method: Literal["GET", "POST"] = "GET"
    params: Mapping[str, str] = field(default_factory=dict)

    def ask(self, client: MixpanelClient, *, wait: bool | None = None) -> Rows:
        """The rows, by asking Mixpanel. Takes `wait`, and raises, as `MixpanelClient.request_json`."""
        path = self.path.replace("{project_id}", client.credentials.project_id)
        if "{workspace_id}" in path:
            path = path.replace("{workspace_id}", workspace_of(client))
        answer = client.request_json(self.family, self.method, path, self.params, wait=wait)
        try:
            return self.read(answer)
        except (TypeError, KeyError, AttributeError):
            raise ServerError(
                f"{self.method} {path} answered with something that is no list of {self.table}", hint="try again later"
            ) from None


def workspace_of(client: MixpanelClient) -> str:
    """The account's workspace, else the project's default one, by `app/me`. Raises QueryError where there is none."""
    if client.credentials.workspace_id is not None:
        return client.credentials.workspace_id
    found = client.me().get("results")
    known = found.get("workspaces") if isinstance(found, dict) else None
    workspaces = [one for one in known.values() if isinstance(one, dict)] if isinstance(known, dict) else []
    own = [one for one in workspaces if str(one.get("project_id")) == client.credentials.project_id]
    for mark in ("is_default", "is_global"):
        for workspace in own:
            if workspace.get(mark):
                return str(workspace["id"])
    raise QueryError("the project has no workspace that these credentials see", hint="set the account's workspace_id")


def _bare(answer: Any) -> Rows:
    if not isinstance(answer, list) or not all(isinstance(row, dict) for row in answer):
        raise TypeError("not a list of objects")
    return answer


def _results(answer: Any) -> Rows:
    return _bare(answer["results"])


def _event_definitions(answer: Any) -> Rows:
    return [
        {"name": entity["name"], **_definition(entity["schemaJson"])}
        for entity in _results(answer)
        if entity["entityType"] == "event"
    ]


def _property_definitions(answer: Any) -> Rows:
    return list(_properties(answer))


def _properties(answer: Any) -> Iterator[dict[str, Any]]:
    for entity in _results(answer):
        for name, schema in (entity["schemaJson"].get("properties") or {}).items():
            yield {
                "entity_type": entity["entityType"],
                "entity_name": entity["name"],
                "name": name,
                "type": schema.get("type"),
                **_definition(schema),
            }


def _definition(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What the Lexicon says of an event or a property, and its schema as it came."""
    own = (schema.get("metadata") or {}).get(_LEXICON) or {}
    return {
        "description": schema.get("description"),
        "display_name": own.get("displayName"),
        "hidden": own.get("hidden"),
        "dropped": own.get("dropped"),
        "tags": own.get("tags"),
        "schema_json": dict(schema),
    }


_DEFINITION: Mapping[str, DataType] = {
    "description": "text",
    "display_name": "text",
    "hidden": "bool",
    "dropped": "bool",
    "tags": "json",
    "schema_json": "json",
}
_SCHEMAS = "/api/app/projects/{project_id}/schemas"

LISTINGS: Mapping[str, Listing] = {
    listing.table: listing
    for listing in (
        Listing(
            "cohorts",
            ("id",),
            {
                "id": "bigint",
                "name": "text",
                "description": "text",
                "count": "bigint",
                "created": "text",  # in a zone that is not published
                "is_visible": "bigint",
                "project_id": "bigint",
            },
            "query",
            "/api/query/cohorts/list",
            _bare,
            method="POST",
        ),
        Listing(
            "funnels",
            ("funnel_id",),
            {"funnel_id": "bigint", "name": "text"},
            "query",
            "/api/query/funnels/list",
            _bare,
        ),
        Listing(
            "annotations",
            ("id",),
            {
                "id": "bigint",
                "date": "text",  # in a zone that is not published
                "description": "text",
                "user": "json",
                "tags": "json",
                "project_id": "bigint",
            },
            "app",
            "/api/app/projects/{project_id}/annotations",
            _results,
        ),
        Listing(
            "event_definitions", ("name",), {"name": "text", **_DEFINITION}, "lexicon", _SCHEMAS, _event_definitions
        ),
        Listing(
            "property_definitions",
            ("entity_type", "entity_name", "name"),
            {"entity_type": "text", "entity_name": "text", "name": "text", "type": "text", **_DEFINITION},
            "lexicon",
            _SCHEMAS,
            _property_definitions,
        ),
        Listing("lookup_tables", ("id",), {"id": "text", "name": "text"}, "ingestion", "/lookup-tables", _results),
        Listing(
            "experiments",
            ("id",),
            {
                "id": "text",
                "name": "text",
                "hypothesis": "text",
                "status": "text",
                "variants": "json",
                "metrics": "json",
                "settings": "json",
                "feature_flag": "json",
                "tags": "json",
                "exposures_cache": "json",
                "results_cache": "json",
            },
            "app",
            "/api/app/workspaces/{workspace_id}/experiments",
            _results,
        ),
        Listing(
            "feature_flags",
            ("id",),
            {
                "id": "text",
                "name": "text",
                "key": "text",
                "status": "text",
                "context": "text",
                "data_group_id": "text",
                "serving_method": "text",
                "ruleset": "json",
                "experiment_id": "text",
                "tags": "json",
            },
            "app",
            "/api/app/projects/{project_id}/workspaces/{workspace_id}/feature-flags",
            _results,
            params={"include_archived": "true"},
        ),
    )
}
"""By table. Mixpanel docs: List Saved Cohorts; List Saved Funnels; Annotations; Lexicon Schemas; List Lookup Tables;
Experiments; Feature Flags."""
