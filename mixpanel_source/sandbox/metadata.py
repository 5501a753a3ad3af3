"""Lists of what is saved in the project: cohorts, annotations, schemas, reports, experiments, flags, lookup tables.

Mixpanel docs: List Saved Cohorts; Annotations; Lexicon Schemas; Experiments; Feature Flags; List Lookup Tables. The
list of bookmarks is undocumented. Rows are served as they were set, with what they lack filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

from . import parameters
from .reply import ApiError, Reply, json_reply

if TYPE_CHECKING:
    from .app import Sandbox
    from .endpoints import Call

COHORTS_PARAMS = frozenset({"project_id", "workspace_id"})
ANNOTATIONS_PARAMS = frozenset({"fromDate", "toDate"})
SCHEMAS_OF_TYPE_PARAMS = frozenset({"entity_name"})
BOOKMARKS_PARAMS = frozenset({"v", "type"})
FLAGS_PARAMS = frozenset({"include_archived"})
LOOKUP_TABLES_PARAMS = frozenset({"project_id"})

WORKSPACE_ID = 9

ENTITY_TYPES = ("event", "profile")
"""What schemas can be asked for. Others may be among those listed."""

BOOKMARK_TYPES = ("insights", "funnels", "retention", "flows", "launch-analysis")


def cohorts(sandbox: Sandbox, call: Call) -> Reply:
    """Every cohort with the number of its members. The zone of `created` is not known."""
    rows = [
        {
            "count": len(cohort.members) if cohort.count is None else cohort.count,
            "is_visible": int(cohort.is_visible),
            "description": cohort.description,
            "created": cohort.created,
            "project_id": int(sandbox.project_id),
            "id": cohort.id,
            "name": cohort.name,
        }
        for cohort in sandbox.saved.cohorts
    ]
    return json_reply(200, rows)


def annotation_list(sandbox: Sandbox, call: Call) -> Reply:
    """Those whose date lies in the days given, which are the project's own, as far as is known."""
    from_day, to_day = (
        parameters.day(call.params, name) if call.params.get(name) else None for name in ("fromDate", "toDate")
    )
    if from_day is not None:
        if to_day is not None and from_day > to_day:
            raise ApiError(400, "fromDate cannot be later than toDate")
        parameters.check_history(sandbox, from_day, parameters.project_today(sandbox))

    def is_asked(row: Mapping[str, Any]) -> bool:
        day = date.fromisoformat(row["date"][:10])
        return (from_day is None or from_day <= day) and (to_day is None or day <= to_day)

    return _ok([_annotation(sandbox, row) for row in sandbox.saved.annotations if is_asked(row)])


def annotation(sandbox: Sandbox, call: Call) -> Reply:
    row = _with_id(sandbox.saved.annotations, call.path["id"], "annotation")
    return _ok(_annotation(sandbox, row))


def annotation_tags(sandbox: Sandbox, call: Call) -> Reply:
    """The tags of annotations, and those set by hand. A bare array in the docs, under `results` for clients."""
    used = {tag["id"]: tag for row in sandbox.saved.annotations for tag in row.get("tags", [])}
    every = {tag["id"]: tag for tag in sandbox.saved.annotation_tags} | used
    rows = [
        {"id": number, "name": tag["name"], "project_id": int(sandbox.project_id), "has_annotations": number in used}
        for number, tag in sorted(every.items())
    ]
    return _ok(rows) if "annotations/tags" in sandbox.other_shape else json_reply(200, rows)


def schemas(sandbox: Sandbox, call: Call) -> Reply:
    return _ok(sandbox.saved.schemas)


def schemas_of_type(sandbox: Sandbox, call: Call) -> Reply:
    """Those of one entity type, or only the one of the name in the query."""
    entity_type, name = _entity_type(call), call.params.get("entity_name")
    rows = [row for row in sandbox.saved.schemas if row["entityType"] == entity_type]
    return _ok([row for row in rows if not name or row["name"] == name])


def schema(sandbox: Sandbox, call: Call) -> Reply:
    """One schema by itself: bare in the docs, under `results` for a known client."""
    entity_type, name = _entity_type(call), call.path["name"]
    for row in sandbox.saved.schemas:
        if (row["entityType"], row["name"]) == (entity_type, name):
            found = row["schemaJson"]
            return _ok(found) if "schemas" in sandbox.other_shape else json_reply(200, found)
    raise ApiError(404, f"there is no schema of the {entity_type} {name}")


def bookmarks(sandbox: Sandbox, call: Call) -> Reply:
    """Saved reports, without what is in them; v=2 nests them twice, as a known client has it."""
    version = parameters.choice(call.params, "v", ("1", "2"), "1")
    kind = parameters.choice(call.params, "type", BOOKMARK_TYPES) if "type" in call.params else None
    usual = {
        "name": "",
        "type": "insights",
        "project_id": int(sandbox.project_id),
        "workspace_id": WORKSPACE_ID,
        "dashboard_id": None,
        "created": "2024-01-01T00:00:00",
        "modified": "2024-01-01T00:00:00",
        "creator_id": 1,
        "creator_name": sandbox.username,
    }
    rows = [
        {name: value for name, value in {**usual, **row}.items() if name not in ("report", "query")}
        for row in sandbox.saved.bookmarks
    ]
    rows = [row for row in rows if kind is None or row["type"] == kind]
    return _ok({"results": rows} if version == "2" else rows)


def experiments(sandbox: Sandbox, call: Call) -> Reply:
    return _ok(sandbox.saved.experiments)


def experiment(sandbox: Sandbox, call: Call) -> Reply:
    return _ok(_with_id(sandbox.saved.experiments, call.path["id"], "experiment"))


def feature_flags(sandbox: Sandbox, call: Call) -> Reply:
    """Archived ones only where asked for."""
    archived = parameters.choice(call.params, "include_archived", ("true", "false"), "false") == "true"
    return _ok([row for row in sandbox.saved.feature_flags if archived or row.get("status") != "archived"])


def feature_flag(sandbox: Sandbox, call: Call) -> Reply:
    return _ok(_with_id(sandbox.saved.feature_flags, call.path["id"], "feature flag"))


def lookup_tables(sandbox: Sandbox, call: Call) -> Reply:
    return json_reply(200, {"code": 200, "status": "OK", "results": sandbox.saved.lookup_tables})


def _annotation(sandbox: Sandbox, row: Mapping[str, Any]) -> dict[str, Any]:
    """With a project_id, which the docs do not have and clients have met."""
    user = {"id": 1, "first_name": "Sandbox", "last_name": "User"}
    return {"description": "", "user": user, "tags": [], "project_id": int(sandbox.project_id), **row}


def _entity_type(call: Call) -> str:
    entity_type = call.path["type"]
    if entity_type not in ENTITY_TYPES:
        raise ApiError(400, f"{entity_type!r} is none of {', '.join(ENTITY_TYPES)}")
    return entity_type


def _with_id(rows: Any, wanted: str, what: str) -> Mapping[str, Any]:
    for row in rows:
        if str(row["id"]) == wanted:
            found: Mapping[str, Any] = row
            return found
    raise ApiError(404, f"there is no {what} {wanted}")


def _ok(results: object) -> Reply:
    return json_reply(200, {"status": "ok", "results": results})
